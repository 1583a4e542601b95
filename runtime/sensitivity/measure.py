"""Measures what quantizing each layer adds to a loss: g.d + d^T H d / 2, for all layers at once.

Without a loss it is the relative squared error of the outputs, of which the gradient is 0 at the
float model and H = 2 J^T J: |J d|^2 is estimated by (v^T J d)^2 with random signs v (Hutchinson,
1990), one backward pass for all layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.add_cotangents import PREFIX, AddCotangents
from onnxfold.passes.grad.add_gradient import AddGradient
from onnxfold.passes.grad.lower_gradient import LowerGradient
from onnxfold.passes.loss.inject_loss import InjectLoss
from onnxfold.passes.loss.record import TOTAL
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.calibrate.counterparts import typed
from onnxfold.runtime.finetune.training_graph import (
    PREPARE,
    Matched,
    add_error,
    matched_outputs,
    only_loss,
    relative,
)
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.sensitivity.gates import GatedLayer, GatedModel, gated, opened
from onnxfold.runtime.sensitivity.table import Method, Sensitivities, Sensitivity
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.cut import keep_outputs

OUTPUT_ERROR = "relative error of the outputs"
"""The loss where the user names none."""
_CONFIG = replace(DEPLOYMENT, name="sensitivity")
_DIRECTION = "direction"
_SLOPE = "slope"


def sensitivities(
    original: ir.Model,
    quantized: ir.Model,
    feeds: Iterable[Feed],
    *,
    loss: str = "",
    method: Method | None = None,
    limit: int = 32,
    probes: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivities:
    """What quantizing each layer of ``quantized`` adds to a loss of the float model.

    Args:
        original: The float model; not changed.
        quantized: What was made of it, with Q/DQ pairs; not changed.
        feeds: One array per input each, and per label where there is a loss. Read once.
        loss: As ``inject-loss`` takes it; without it the relative squared error of the outputs.
        method: ``fisher``: second derivatives are the mean squares of each feed's gradients, which
            suits losses that are negative log-likelihoods of one sample a feed; without a loss, of
            random projections of the outputs: one backward pass for all layers. ``hessian``: they
            are exact, by differentiating twice, a run for each layer. ``measured``: no derivative
            at all: each layer alone is quantized, and run. By default ``hessian`` where there is a
            loss, else ``fisher``.
        limit: Feeds that are read at most.
        probes: Random projections of each feed, where there is no loss.
        seed: Of these.
        progress: Told how far it is.

    Raises:
        UsageError: There is no data, the models have no layer in common, or an operator has no
            gradient.
        ExecutionError: ONNX Runtime failed.
    """
    bar = progress or Silent()
    method = method or ("hessian" if loss else "fisher")
    few = list(islice(feeds, limit))
    if not few:
        raise UsageError("there is no data to measure sensitivities on: give at least one sample")
    prepared = Pipeline(parse_passes(PREPARE)).run(quantized.clone()).model
    model = gated(typed(original), prepared)
    problem = _losing(model, few, loss) if loss else _matching(model, few)
    bar.stage("measuring sensitivities", len(few))
    if method == "measured":
        first, second = _measured(problem, bar)
    elif method == "hessian":
        first, second = _exact(problem, bar)
    elif loss:
        first, second = _fisher(problem, bar)
    else:
        first, second = _projected(problem, bar, probes, np.random.default_rng(seed))
    rows = [
        Sensitivity(layer.name, layer.bits, float(one), float(two))
        for layer, one, two in zip(problem.layers, first, second, strict=True)
    ]
    return Sensitivities(rows, method=method, loss=loss or OUTPUT_ERROR)


@dataclass(frozen=True, eq=False)
class _Problem:
    """A loss as a function of gates.

    Attributes:
        model: Has the output ``loss``.
        layers: Its gated layers.
        feeds: With labels, or with what the float model gives.
        matched: What the loss compares, and the weights of its squares; empty for another loss.
    """

    model: ir.Model
    layers: tuple[GatedLayer, ...]
    feeds: tuple[Feed, ...]
    matched: tuple[Matched, ...] = ()

    @property
    def gates(self) -> tuple[str, ...]:
        """The names of the inputs that the loss is differentiated by."""
        return tuple(re.escape(each.gate) for each in self.layers)

    def slopes(self, found: Mapping[str, Array]) -> Array:
        """The gradients among the outputs of a model, float64, in the order of the layers."""
        return np.array([float(found[f"grad_{each.gate}"]) for each in self.layers])


def _losing(model: GatedModel, feeds: Sequence[Feed], loss: str) -> _Problem:
    InjectLoss(loss).run(model.model)
    only_loss(model.model)
    return _Problem(model.model, model.layers, tuple(feeds))


def _matching(model: GatedModel, feeds: Sequence[Feed]) -> _Problem:
    """The error of the outputs against those with all gates closed: the float model's."""
    matched = matched_outputs(model.model, model.model)
    session = Session(keep_outputs(model.model, [each.quantized for each in matched]), _CONFIG)
    closed = opened(model.layers, {})
    found: list[Feed] = []
    for feed in feeds:
        given = session.run(_of(session, {**feed, **closed}))
        found.append({**feed, **{each.target: given[each.quantized] for each in matched}})
    shared = tuple(relative(each, found, len(matched)) for each in matched)
    add_error(model.model, shared)
    return _Problem(model.model, model.layers, tuple(found), shared)


def _measured(problem: _Problem, progress: Progress) -> tuple[Array, Array]:
    """The loss with one gate open after the other."""
    model = problem.model.clone()
    only_loss(model)
    session = Session(model, _CONFIG)
    choices = [{}, *({each.name: 1.0} for each in problem.layers)]
    total = np.zeros(len(choices))
    for feed in problem.feeds:
        for index, which in enumerate(choices):
            given = {**feed, **opened(problem.layers, which)}
            total[index] += float(session.run(_of(session, given))[TOTAL])
        progress.advance()
    changes = (total[1:] - total[0]) / len(problem.feeds)
    return changes, np.zeros_like(changes)


def _fisher(problem: _Problem, progress: Progress) -> tuple[Array, Array]:
    """Means of each feed's gradients, and half the means of their squares."""
    session = _differentiated(problem, TOTAL)
    found = [problem.slopes(each) for each in _closed_runs(problem, session, progress)]
    return np.mean(found, axis=0), np.mean(np.square(found), axis=0) / 2


def _projected(
    problem: _Problem, progress: Progress, probes: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """The mean squares of random projections of what each layer does to the outputs."""
    model = keep_outputs(problem.model, [each.quantized for each in problem.matched])
    AddCotangents().run(model)
    AddGradient(of=AddCotangents.total, wrt=problem.gates).run(model)
    LowerGradient().run(model)
    session = Session(model, _CONFIG)
    total = np.zeros(len(problem.layers))
    for feed in problem.feeds:
        given = {**feed, **opened(problem.layers, {})}
        for _ in range(probes):
            for each in problem.matched:
                shape = feed[each.target].shape
                signs = random.integers(0, 2, shape) * 2 - 1
                size = math.sqrt(each.weight / max(signs.size, 1))
                given[f"{PREFIX}{each.quantized}"] = (signs * size).astype(np.float32)
            total += np.square(problem.slopes(session.run(_of(session, given))))
        progress.advance()
    return np.zeros_like(total), total / (probes * len(problem.feeds))


def _exact(problem: _Problem, progress: Progress) -> tuple[Array, Array]:
    """Means of gradients, and halves of exact second derivatives: gradients of slopes."""
    first = _fisher(problem, Silent())[0]
    model = problem.model.clone()
    AddGradient(of=TOTAL, wrt=problem.gates).run(model)
    LowerGradient().run(model)
    directions = _add_slope(model, problem)
    AddGradient(of=_SLOPE, wrt=problem.gates).run(model)
    LowerGradient().run(model)
    names = [value.name or "" for value in model.graph.outputs][1:]
    session = Session(model, _CONFIG)
    total = np.zeros(len(problem.layers))
    for feed in problem.feeds:
        for index, name in enumerate(names):
            chosen = {each: np.array(each == directions[index], np.float32) for each in directions}
            given = {**feed, **opened(problem.layers, {}), **chosen}
            total[index] += float(session.run(_of(session, given))[name])
        progress.advance()
    return first, total / (2 * len(problem.feeds))


def _add_slope(model: ir.Model, problem: _Problem) -> list[str]:
    """Let the model give the slope of the loss in a direction that is fed; names of the inputs."""
    graph = model.graph
    found = {value.name: value for value in graph.outputs}
    gradients = [found[f"grad_{each.gate}"] for each in problem.layers]
    graph.outputs.clear()
    rewriter = Rewriter(model, "sensitivity")
    with rewriter.step("add-slope"):
        directions = [
            rewriter.add_input(f"{_DIRECTION}_{index}", ir.DataType.FLOAT, ())
            for index in range(len(gradients))
        ]
        terms = [
            _scalar(rewriter, "Mul", list(pair), "slope_term")
            for pair in zip(gradients, directions, strict=True)
        ]
        slope = _scalar(rewriter, "Sum", terms, "slope_sum")
        rewriter.add_output(slope, _SLOPE)
    return [value.name or "" for value in directions]


def _scalar(rewriter: Rewriter, op_type: str, inputs: list[ir.Value], name: str) -> ir.Value:
    anchor = rewriter.model.graph[-1]
    return rewriter.insert(
        anchor, op_type, inputs, name=name, dtype=ir.DataType.FLOAT, shape=(), after=True
    )


def _differentiated(problem: _Problem, of: str) -> Session:
    model = problem.model.clone()
    only_loss(model)
    AddGradient(of=of, wrt=problem.gates).run(model)
    LowerGradient().run(model)
    return Session(model, _CONFIG)


def _closed_runs(
    problem: _Problem, session: Session, progress: Progress
) -> Iterator[dict[str, Array]]:
    closed = opened(problem.layers, {})
    for feed in problem.feeds:
        yield session.run(_of(session, {**feed, **closed}))
        progress.advance()


def _of(session: Session, feed: Mapping[str, Array]) -> dict[str, Array]:
    return {each.name: feed[each.name] for each in session.inputs}
