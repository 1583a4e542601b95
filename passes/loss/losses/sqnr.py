"""Signal to quantization noise ratio."""

from __future__ import annotations

import math
from typing import Literal

from onnxfold.passes.loss.decibels import decibels
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected
from onnxfold.passes.loss.shapes import need_samples


@loss("sqnr", better="higher")
def sqnr(
    graph: LossGraph,
    predictions: Variable,
    *,
    over: Literal["all", "samples"] = "all",
    reduction: Reduction = "mean",
) -> Variable:
    """10 log10(sum t^2 / sum (t - p)^2) of a reference t and its approximation p.

    Infinite where nothing differs, with a gradient of 0; -inf where the reference is all zeros and
    the approximation is not.

    Source: the signal to quantization noise ratio that onnxfold's comparisons report.

    Shapes: predictions and targets of any one shape; with ``over=samples`` one value for each
    element of the first axis. Units: dB.

    Args:
        graph: The graph to build in.
        predictions: p, what the altered model computes.
        over: One ratio of all elements, or one of each sample.
        reduction: What becomes of the samples' ratios.
    """
    axes = need_samples(predictions, "predictions") if over == "samples" else None
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    error = graph.op("Sub", targets, predictions)
    noise = graph.reduce("ReduceSum", graph.op("Mul", error, error), axes)
    signal = graph.reduce("ReduceSum", graph.op("Mul", targets, targets), axes)
    ratio = graph.op(
        "Sub",
        decibels(graph, signal, at_zero=-math.inf),
        decibels(graph, noise, at_zero=0.0),
    )
    values = graph.op("Where", graph.op("Equal", noise, 0.0), math.inf, ratio)
    return collected(graph, values, reduction)
