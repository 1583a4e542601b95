"""Tunes the constants of a quantized model so that it stays as near as it can to the float model.

Codes, scales and biases are moved by gradient descent on the error of the outputs; the gradient
flows straight through all rounding (Bengio et al., "Estimating or Propagating Gradients Through
Stochastic Neurons", 2013; Esser et al., "Learned Step Size Quantization", 2020). The graph of
the forward and the backward pass runs on ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, UsageError
from onnxfold.passes.loss.inject_loss import InjectLoss
from onnxfold.passes.loss.record import TOTAL
from onnxfold.passes.macs import node_macs
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.gptq import Gptq
from onnxfold.passes.quantize.set_constants import SetConstants
from onnxfold.passes.quantize.tuned_constants import TunedConstants
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.counterparts import paired_layers, typed
from onnxfold.runtime.calibrate.input_moments import measure_input_moments
from onnxfold.runtime.calibrate.sweep import MEANING
from onnxfold.runtime.finetune.parameters import Parameters, wanted_weights
from onnxfold.runtime.finetune.samples import Samples, batches
from onnxfold.runtime.finetune.training_graph import (
    PREPARE,
    Matched,
    TrainingGraph,
    add_error,
    matched_outputs,
    only_loss,
    relative,
)
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.session import Session
from onnxfold.runtime.specs import Feed

_CHECKS = 10
_PATIENCE = 6
"""Checks in a row without a gain after which there is none to come: most comes late, when steps
are small."""
_WORK = 1e12
"""Multiply-accumulates at most, forward and backward: half a minute on two cores."""
_A_PARAMETER = 2000
"""Multiply-accumulates that take as long as moving a parameter."""
_BACKWARD = 3
"""What a step costs, in forward passes."""
_ROWS = 128
"""Of each sample, for second moments."""
_LARGE = 2e8
"""Multiply-accumulates of a sample from which on a batch holds one."""


@dataclass(frozen=True)
class FinetuneOptions:
    """How long and how carefully constants are tuned.

    Attributes:
        steps: Steps at most; fewer where the model is large.
        batch: Samples in a step, where the model takes batches; one where it is large.
        rate: How far a step moves a code at first, in codes; falls to 0 along a cosine.
        samples: Feeds that are read at most; a quarter of them judges.
        scales: Whether scales of weights move.
        activations: Whether scales of activations do: it pays where their codes are few.
        rounds: Whether to start with weights that GPTQ rounded, where that is nearer.
        seed: Decides the order of samples, and where images are cut.
    """

    steps: int = 300
    batch: int = 4
    rate: float = 0.01
    samples: int = 64
    scales: bool = True
    activations: bool = False
    rounds: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        constants: What to store, for ``set-constants``; empty where nothing better was found.
        before: The loss on feeds that were not learned from: relative squared error of the
            outputs, or the user's loss.
        after: The same after tuning; never larger.
        steps: Steps made.
    """

    constants: TunedConstants
    before: float
    after: float
    steps: int

    @property
    def gain_db(self) -> float:
        """By how much the error fell, in dB, where the loss is an error."""
        if self.after <= 0 or self.before <= 0:
            return 0.0
        return 10 * math.log10(self.before / self.after)


def finetune_constants(
    quantized: ir.Model,
    feeds: Iterable[Feed],
    *,
    original: ir.Model | None = None,
    loss: str = "",
    options: FinetuneOptions | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Tune codes, scales and biases of the main graph of a model with Q/DQ pairs.

    Args:
        quantized: The model; not changed.
        feeds: One array per input each, and per label where there is a loss. Read once.
        original: The float model that its outputs are to be near to; also where weights start from.
        loss: What is to fall instead, as ``inject-loss`` takes it.
        options: How long and how carefully.
        progress: Told how far it is.

    Raises:
        UsageError: There is no data, nothing to tune, no output in common, neither a float model
            nor a loss, or an operator has no gradient.
        ExecutionError: ONNX Runtime failed.
    """
    options = options or FinetuneOptions()
    bar = progress or Silent()
    if original is None and not loss:
        raise UsageError("tuning needs the float model to stay near to, or a loss")
    reference = None if original is None else typed(original)
    _check(quantized, options)
    task = _Task.of(quantized, reference, loss, feeds, options)
    before = task.judge(quantized)
    start = quantized
    if options.rounds and reference is not None:
        start = _better_rounded(quantized, reference, task, before)
    parameters = _parameters(start, reference, options)
    graph = TrainingGraph(task.model.clone(), parameters)
    size, steps = _effort(task, parameters, options)
    bar.stage("fine-tuning", steps)
    chosen = replace(options, steps=steps, batch=size)
    found, done = _descend(graph, parameters, task.samples, chosen, bar)
    if found is None and start is quantized:
        return Tuned(TunedConstants({}), before, before, done)
    if found is not None:
        parameters.restore(found)
    constants = parameters.constants()
    after = task.judge(Pipeline((SetConstants(constants),)).run(quantized.clone()).model)
    if not after < before:
        return Tuned(TunedConstants({}), before, before, done)
    return Tuned(constants, before, after, done)


@dataclass(frozen=True, eq=False)
class _Task:
    """What is to fall, and on what.

    Attributes:
        model: The quantized model with the output ``loss``, prepared for gradients.
        samples: Inputs, and targets or labels.
        matched: What is compared with the float model; empty for a loss of the user's.
        loss: That loss.
    """

    model: ir.Model
    samples: Samples
    matched: tuple[Matched, ...]
    loss: str

    @classmethod
    def of(
        cls,
        quantized: ir.Model,
        original: ir.Model | None,
        loss: str,
        feeds: Iterable[Feed],
        options: FinetuneOptions,
    ) -> _Task:
        model = _prepared(quantized)
        if loss:
            InjectLoss(loss).run(model)
            samples = Samples.take(None, {}, feeds, limit=options.samples, seed=options.seed)
            return cls(model, samples, (), loss)
        assert original is not None
        matched = matched_outputs(model, original)
        targets = {each.original: each.target for each in matched}
        samples = Samples.take(original, targets, feeds, limit=options.samples, seed=options.seed)
        shared = [relative(each, samples.training, len(matched)) for each in matched]
        add_error(model, shared)
        return cls(model, samples, tuple(shared), "")

    def judge(self, quantized: ir.Model) -> float:
        """The loss of a model as it is stored, on feeds that were not learned from."""
        model = _prepared(quantized)
        if self.loss:
            InjectLoss(self.loss).run(model)
        else:
            add_error(model, self.matched)
        only_loss(model)
        session = Session(model, MEANING)
        names = [each.name for each in session.inputs]
        found = [
            float(session.run({name: feed[name] for name in names})[TOTAL])
            for feed in self.samples.held_out
        ]
        return float(np.mean(found))


def _prepared(model: ir.Model) -> ir.Model:
    return Pipeline(parse_passes(PREPARE)).run(model.clone()).model


def _check(quantized: ir.Model, options: FinetuneOptions) -> None:
    is_coded = any(node.op_type == "DequantizeLinear" for node in quantized.graph)
    if not is_coded or not len(_parameters(quantized, None, options)):
        raise UsageError(
            f"model '{quantized.graph.name or ''}' has no weights or scales in Q/DQ pairs to tune: "
            "run insert-qdq first"
        )


def _better_rounded(
    quantized: ir.Model, original: ir.Model, task: _Task, before: float
) -> ir.Model:
    """``quantized`` with its weights rounded together, layer by layer, where that is nearer."""
    names = [value.name or "" for value in original.graph.inputs]
    names = [name for name in names if name in task.samples.training[0]]
    feeds = [{name: each[name] for name in names} for each in task.samples.training]
    try:
        moments = measure_input_moments(original, None, feeds, rows=_ROWS)
        rounded = Pipeline((Gptq(moments),)).run(quantized.clone()).model
    except UsageError:
        return quantized
    return rounded if task.judge(rounded) < before else quantized


def _parameters(
    quantized: ir.Model, original: ir.Model | None, options: FinetuneOptions
) -> Parameters:
    pairs = [] if original is None else paired_layers(original, quantized)
    wanted = wanted_weights([(each.quantized.node, each.original.node) for each in pairs])
    return Parameters(quantized, wanted, scales=options.scales, activations=options.activations)


def _effort(task: _Task, parameters: Parameters, options: FinetuneOptions) -> tuple[int, int]:
    """Samples in a step, and steps: by the work, not by the clock, to be the same everywhere."""
    macs = _macs(task.model, task.samples.training[0])
    size = 1 if macs > _LARGE else options.batch
    work = _BACKWARD * macs * size + _A_PARAMETER * parameters.count
    steps = int(_WORK / max(work, 1))
    return size, max(min(steps, options.steps), min(_CHECKS, options.steps))


def _macs(model: ir.Model, feed: Feed) -> int:
    """Multiply-accumulates of a run on ``feed``."""
    sized = model.clone()
    for value in sized.graph.inputs:
        if value.name in feed:
            value.shape = ir.Shape(feed[value.name].shape)
    for node in sized.graph:
        for value in node.outputs:
            value.shape = None
    typed_model = Pipeline(parse_passes("infer-shapes")).run(sized).model
    return sum(node_macs(node) or 0 for node in typed_model.graph)


def _descend(
    graph: TrainingGraph,
    parameters: Parameters,
    samples: Samples,
    options: FinetuneOptions,
    progress: Progress,
) -> tuple[list[Array] | None, int]:
    """Where the loss on feeds that are not learned from was least; None at the start."""
    size = _fitting(graph, parameters, samples, options.batch)
    stream = batches(samples.training, size, options.seed)
    best, kept, idle = _held_out(graph, parameters, samples), None, 0
    every = max(options.steps // _CHECKS, 1)
    step = 0
    for step in range(1, options.steps + 1):
        _, gradients = graph.gradient({**next(stream), **parameters.fed()})
        rate = options.rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / options.steps))
        parameters.step(gradients, rate)
        progress.advance()
        if step % every and step != options.steps:
            continue
        now = _held_out(graph, parameters, samples)
        idle = 0 if now < best else idle + 1
        if now < best:
            best, kept = now, parameters.snapshot()
        if idle >= _PATIENCE:
            break
    return kept, step


def _fitting(graph: TrainingGraph, parameters: Parameters, samples: Samples, size: int) -> int:
    """``size``, or 1 where the model does not take that many samples at once."""
    if size == 1:
        return 1
    try:
        graph.loss({**next(batches(samples.training, size, 0)), **parameters.fed()})
    except (ExecutionError, UsageError):
        return 1
    return size


def _held_out(graph: TrainingGraph, parameters: Parameters, samples: Samples) -> float:
    given = parameters.fed()
    found = [graph.loss({**each, **given}) for each in samples.held_out]
    return float(np.mean(found))
