"""Holds each layer of an exported model to its framework's, fed with what the framework feeds it.

Errors do not add up so: what rounds to codes is within a step, layer by layer, and a fault stays
where it is, however little of it is left at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.runtime.export.divergence import (
    Aligned,
    LayerError,
    aligned_values,
    nearest_compared,
    shared_names,
)
from onnxfold.runtime.export.evidence import says_something
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.cut import cut_at
from onnxfold.runtime.verify.gates import Gate, Verdict
from onnxfold.runtime.verify.metrics import OutputMetrics, measure

_ROUNDS = 4
_STEPS_8, _STEPS_16 = 2, 8
"""What a layer may be off in codes: tables of tanh and softmax are rough in the last bits."""
_RELATIVE, _ABSOLUTE, _RARE = 1e-3, 1e-6, 1e-3


@dataclass(frozen=True)
class LayerGate(Gate):
    """What a layer promises that is fed with the framework's values.

    Less than the outputs do: no kernel of a framework's has to round as those around it. What is
    wrong in a layer is wrong by far.
    """

    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """See ``Gate``."""
        if metrics.dtype.startswith(("float", "bfloat")):
            allowed = _RELATIVE * metrics.max_abs_reference + _ABSOLUTE
            return Verdict(not metrics.nonfinite_mismatches and metrics.max_abs_diff <= allowed)
        steps = {"int8": _STEPS_8, "uint8": _STEPS_8, "int16": _STEPS_16, "uint16": _STEPS_16}
        most = steps.get(metrics.dtype)
        if most is None:
            return Verdict(metrics.different <= _RARE * metrics.elements)
        beyond = sum(count for step, count in metrics.lsb.items() if step > most)
        return Verdict(beyond <= _RARE * metrics.elements)


_GATE = LayerGate()


@dataclass(frozen=True)
class Segments:
    """What the layers of a model come to, one by one.

    Attributes:
        compared: Tensors inside that both have, in the model's order, outputs apart.
        telling: How many of them say something about what is ahead of them.
        fault: The first layer that computes something else of the framework's own values.
    """

    compared: tuple[str, ...] = ()
    telling: int = 0
    fault: LayerError | None = None


def compare_segments(
    model: ir.Model,
    feeds: Sequence[Feed],
    values: Sequence[Feed],
    layers: Mapping[str, str],
) -> Segments:
    """Compare layer by layer, each one on the framework's values.

    Exporters give names to other tensors too. A tensor that differs counts where the layers behind
    it take the framework's value for it, and no other tensor has that value.

    Args:
        model: With the exporter's names.
        feeds: What the framework was fed, by the model's names.
        values: What it computed inside, by names of tensors of the model, and at the ends.
        layers: Names of tensors to the framework's names of layers.

    Raises:
        ExecutionError: The model does not run.
    """
    names = shared_names(model, values)
    if not names:
        return Segments()
    found = aligned_values(model, feeds, values, names)
    ends = {value.name for value in model.graph.outputs}
    inside = tuple(name for name in found if name not in ends)
    telling = sum(says_something([want for want, _ in found[name]]) for name in inside)
    fault = _first_fault(_Judge(model, feeds, found), layers)
    return Segments(inside, telling, fault)


def _first_fault(judge: _Judge, layers: Mapping[str, str]) -> LayerError | None:
    beyond = judge.beyond({name: [got for _, got in each] for name, each in judge.found.items()})
    if not beyond:
        return None
    readers = {name: set(nearest_compared(judge.model, name, judge.found)) for name in judge.found}
    fed = set(judge.found)
    for _ in range(_ROUNDS):
        beyond = judge.beyond(judge.computed(fed))
        doubted = {name for name in fed & set(beyond) if readers[name] & set(beyond)}
        if not doubted:
            break
        fed -= doubted
    outputs = {value.name for value in judge.model.graph.outputs}
    for name, metrics in beyond.items():
        counts = name in outputs or readers[name]
        if name in fed and counts and not judge.is_another(name, fed):
            return LayerError(layers.get(name, name), metrics, passed=False)
    return None


@dataclass(frozen=True)
class _Judge:
    """Runs parts of a model on the framework's values, and compares.

    Attributes:
        model: The model.
        feeds: Its inputs.
        found: Of each tensor and sample, what the framework computed and what the model did.
    """

    model: ir.Model
    feeds: Sequence[Feed]
    found: Mapping[str, Aligned]

    def beyond(self, computed: Mapping[str, Sequence[Any]]) -> dict[str, OutputMetrics]:
        """The tensors that are beyond the gate, in the model's order."""
        comparer = Comparer()
        for sample in range(len(self.feeds)):
            comparer.add(
                {name: each[sample][0] for name, each in self.found.items()},
                {name: computed[name][sample] for name in self.found},
            )
        metrics = {name: comparer.metrics[name] for name in self.found}
        return {name: each for name, each in metrics.items() if not _GATE.judge_output(each).passed}

    def computed(self, fed: Collection[str]) -> dict[str, list[Any]]:
        """What the model computes of each tensor where those of ``fed`` are the framework's."""
        return self._run(list(self.found), fed)

    def is_another(self, name: str, fed: Collection[str]) -> bool:
        """Whether the framework's value of ``name`` is that of another tensor of the model."""
        wanted = [want for want, _ in self.found[name]]
        others = [
            value.name
            for node in self.model.graph
            for value in node.outputs
            if value.name and value.name not in self.found
        ]
        runs = self._run(others, set(fed) - {name})
        return any(self._equal(wanted, each) for each in runs.values())

    def _equal(self, wanted: Sequence[Any], got: Sequence[Any]) -> bool:
        for want, have in zip(wanted, got, strict=True):
            if not isinstance(have, np.ndarray):
                return False
            array = cast("Array", have)
            if array.shape != want.shape or array.dtype != want.dtype:
                return False
            if not _GATE.judge_output(measure("", want, array)).passed:
                return False
        return True

    def _run(self, targets: Sequence[str], fed: Collection[str]) -> dict[str, list[Any]]:
        if not targets:
            return {}
        borders = {name: _type(self.found[name]) for name in fed}
        cut, outputs = cut_at(self.model, targets, borders)
        session = Session(cut, REFERENCE)
        inputs = {each.name for each in session.inputs}
        runs: dict[str, list[Any]] = {name: [] for name in targets}
        for sample, feed in enumerate(self.feeds):
            given = {**feed, **{name: self.found[name][sample][0] for name in fed}}
            got = session.run({name: array for name, array in given.items() if name in inputs})
            for name in targets:
                runs[name].append(got[outputs[name]])
        return runs


def _type(pairs: Aligned) -> ir.TypeAndShape:
    """Of what is fed: the shape that all samples have, or none."""
    arrays = [want for want, _ in pairs]
    shape = arrays[0].shape if len({each.shape for each in arrays}) == 1 else None
    kind = ir.TensorType(ir.DataType.from_numpy(arrays[0].dtype))
    return ir.TypeAndShape(kind, None if shape is None else ir.Shape(shape))
