"""Says layer by layer how far an exported model is from its framework, and where that begins."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.cut import keep_outputs, values_read
from onnxfold.runtime.verify.gates import Gate
from onnxfold.runtime.verify.metrics import OutputMetrics

Aligned = Sequence[tuple[Array, Array]]
"""What the framework computed and what the model does, in one layout, a pair for each sample."""


@dataclass(frozen=True)
class LayerError:
    """How far one tensor of the exported model is from the framework's.

    Attributes:
        layer: The layer that computes it, as the framework calls it.
        metrics: The numbers, by the tensor's name in the model that the exporter wrote.
        passed: Whether they are within the gate, or nothing that reads the tensor is beyond it.
    """

    layer: str
    metrics: OutputMetrics
    passed: bool

    def __str__(self) -> str:
        """For messages."""
        metrics = self.metrics
        return (
            f"{self.layer} (tensor '{metrics.name}': max |difference| {metrics.max_abs_diff:.3g}, "
            f"largest value {metrics.max_abs_reference:.3g})"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {"layer": self.layer, "passed": self.passed} | self.metrics.to_json()


def compare_layers(
    model: ir.Model,
    feeds: Sequence[Feed],
    values: Sequence[Feed],
    layers: Mapping[str, str],
    gate: Gate,
) -> tuple[LayerError, ...]:
    """Compare what ``model`` and its framework compute inside, in the order of the model.

    Exporters move axes: images may lie as NHWC in the framework and as NCHW in ONNX. A tensor of
    another shape still is left out, and so is one that is beyond the gate although all that is
    computed from it is right: exporters give names to other tensors too.

    Args:
        model: As the exporter wrote it.
        feeds: What the framework was fed, by the model's names.
        values: What it computed inside, by names of tensors of the model.
        layers: Names of tensors to the framework's names of layers.
        gate: What judges.

    Raises:
        ExecutionError: The model does not run.
    """
    found = aligned_values(model, feeds, values, shared_names(model, values))
    comparer = Comparer()
    for sample in range(len(feeds)):
        pairs = {name: each[sample] for name, each in found.items()}
        comparer.add(
            {name: want for name, (want, _) in pairs.items()},
            {name: have for name, (_, have) in pairs.items()},
        )
    metrics = {name: comparer.metrics[name] for name in found}
    beyond = {name for name, each in metrics.items() if not gate.judge_output(each).passed}
    return tuple(
        LayerError(
            layer=layers.get(name, name),
            metrics=each,
            passed=name not in beyond or not _spreads(model, name, set(metrics), beyond),
        )
        for name, each in metrics.items()
    )


def first_divergence(errors: Sequence[LayerError]) -> LayerError | None:
    """The first layer that is beyond the gate: all that it is computed from is within."""
    return next((each for each in errors if not each.passed), None)


def shared_names(model: ir.Model, values: Sequence[Feed]) -> list[str]:
    """Tensors that every sample has a value for, in the order in which the model computes them."""
    known = set[str].intersection(*(set(each) for each in values)) if values else set[str]()
    computed = (value for node in model.graph for value in node.outputs)
    return [value.name for value in computed if value.name and value.name in known]


def aligned_values(
    model: ir.Model, feeds: Sequence[Feed], values: Sequence[Feed], names: Sequence[str]
) -> dict[str, Aligned]:
    """The framework's tensors and the model's, in the model's layouts.

    Args:
        model: As the exporter wrote it.
        feeds: What the framework was fed, by the model's names.
        values: What it computed inside, by names of tensors of the model.
        names: What to compare; tensors of other shapes or types are left out.

    Returns:
        For each tensor a pair a sample: what the framework computed, and what the model does.

    Raises:
        ExecutionError: The model does not run.
    """
    if not names:
        return {}
    session = Session(keep_outputs(model, names), REFERENCE)
    inputs = {each.name for each in session.inputs}
    found: dict[str, list[tuple[Array, Array] | None]] = {name: [] for name in names}
    for feed, wanted in zip(feeds, values, strict=True):
        got = session.run({name: array for name, array in feed.items() if name in inputs})
        for name in names:
            found[name].append(_aligned(wanted[name], got[name]))
    return {
        name: [pair for pair in pairs if pair is not None]
        for name, pairs in found.items()
        if None not in pairs
    }


def _aligned(wanted: Array, found: Any) -> tuple[Array, Array] | None:
    """Both arrays in one layout and of one type; None where they cannot be compared.

    Axes of size 1 come and go between operators of a framework and of ONNX.
    """
    if not isinstance(found, np.ndarray):
        return None
    got = cast("Array", found)
    if wanted.dtype.kind != got.dtype.kind:
        return None
    layouts = [wanted, np.moveaxis(wanted, -1, 1)] if wanted.ndim > 2 else [wanted]
    fitting: list[Array] = [
        each.reshape(got.shape).astype(got.dtype)
        for each in layouts
        if [size for size in each.shape if size != 1] == [size for size in got.shape if size != 1]
    ]
    if not fitting:
        return None
    return min(fitting, key=partial(_distance, got)), got


def _distance(got: Array, wanted: Array) -> float:
    if got.dtype.kind not in "fiu":
        return float(np.count_nonzero(wanted != got))
    with np.errstate(invalid="ignore"):
        difference = np.abs(wanted.astype(np.float64) - got.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0))


def _spreads(model: ir.Model, name: str, compared: set[str], beyond: set[str]) -> bool:
    """Whether something beyond the gate is computed from a tensor that is; or nothing compared."""
    nearest = set(nearest_compared(model, name, compared))
    return not nearest or bool(nearest & beyond)


def nearest_compared(model: ir.Model, name: str, compared: Collection[str]) -> Iterator[str]:
    """The compared tensors that are computed from ``name`` without another one between."""
    readers: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        for value in values_read(node, model.graph):
            readers.setdefault(value.name or "", []).append(node)
    waiting, seen = [name], {name}
    while waiting:
        for node in readers.get(waiting.pop(), ()):
            for value in node.outputs:
                if not value.name or value.name in seen:
                    continue
                seen.add(value.name)
                if value.name in compared:
                    yield value.name
                else:
                    waiting.append(value.name)
