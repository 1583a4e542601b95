"""Powers in decibels."""

from __future__ import annotations

import math

from onnxfold.passes.loss.graph import LossGraph, Variable


def decibels(graph: LossGraph, power: Variable, at_zero: float) -> Variable:
    """10 log10(power), and ``at_zero`` with a gradient of 0 where the power is 0."""
    is_zero = graph.op("Equal", power, 0.0)
    logarithm = graph.op("Log", graph.op("Where", is_zero, 1.0, power))
    return graph.op("Where", is_zero, at_zero, graph.op("Mul", logarithm, 10 / math.log(10)))
