"""What losses over classes share: log-probabilities, and picking the label's without surprises."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.graph import Dims, LossGraph, Variable

TINY = 1e-37
"""What probabilities are raised to before their logarithm: a normal number in float32."""


def class_axis(x: Variable, axis: int) -> int:
    """``axis`` of ``x`` counted from the front.

    Raises:
        UsageError: There is no such axis, or fewer than two classes on it.
    """
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise UsageError(f"there is no axis {axis} in {rank} dimensions")
    classes = x.shape[axis]
    if isinstance(classes, int) and classes < 2:
        raise UsageError(
            f"{classes} classes on axis {axis}, of which there must be two at least; "
            "for one logit take bce-with-logits"
        )
    return axis % rank


def without_axis(x: Variable, axis: int) -> Dims:
    """The shape of ``x`` without ``axis``."""
    return (*x.shape[:axis], *x.shape[axis + 1 :])


def log_probabilities(
    graph: LossGraph,
    x: Variable,
    axis: int,
    *,
    from_probabilities: bool = False,
    from_log_probabilities: bool = False,
    temperature: float = 1.0,
) -> Variable:
    """Logarithms of the classes' probabilities; of logits, after division by ``temperature``.

    Raises:
        UsageError: The temperature is not positive, or given with what are no logits.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"temperature is {temperature}; it must be positive")
    if temperature != 1 and (from_probabilities or from_log_probabilities):
        raise UsageError("temperature divides logits; there are none where probabilities are given")
    if from_log_probabilities:
        return x
    if from_probabilities:
        return safe_log(graph, x)
    scaled = x if temperature == 1 else graph.op("Div", x, float(temperature))
    return graph.op("LogSoftmax", scaled, axis=axis)


def safe_log(graph: LossGraph, x: Variable) -> Variable:
    """log(max(x, 1e-37)): finite at 0, with a gradient of 0 there."""
    return graph.op("Log", graph.op("Max", x, TINY))


def guarded_labels(graph: LossGraph, labels: Variable, classes: Variable) -> tuple[Variable, Any]:
    """Labels with 0 for those that are no class, and a factor: 1, or NaN for these.

    ONNX counts negative indices from the end: without the guard a label of -1 would silently be
    the last class. Multiplied with a loss, NaN reaches its gradient too.
    """
    is_class = graph.op(
        "And", graph.op("GreaterOrEqual", labels, 0), graph.op("Less", labels, classes)
    )
    safe = graph.op("Where", is_class, labels, 0)
    return safe, graph.op("Where", is_class, 1.0, math.nan)


def picked(graph: LossGraph, x: Variable, labels: Variable, axis: int) -> Variable:
    """``x`` at each of the guarded labels along ``axis``, without the axis."""
    values = graph.op("GatherElements", x, graph.op("Unsqueeze", labels, [axis]), axis=axis)
    return graph.op("Squeeze", values, [axis])


def labels_input(
    graph: LossGraph, shape: Dims, dtype: str = "int64", name: str = "labels"
) -> Variable:
    """An input of integer labels, as int64."""
    if dtype == "int32":
        return graph.cast(graph.data_input(name, ir.DataType.INT32, shape), ir.DataType.INT64)
    return graph.data_input(name, ir.DataType.INT64, shape)
