"""Real values that nothing has rounded yet, as expressions of values that have codes.

A forward sweep builds them up node by node; the node whose result is rounded turns one into a
lowering that does the work of all its nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.constants import Array


@dataclass(frozen=True, eq=False)
class FunctionOf:
    """A value each of whose elements is a function of the same element of one other value.

    Attributes:
        source: The value with codes.
        nodes: The nodes from there to the value, producers before consumers; empty for itself.
        axis: The axis (non-negative) along which the function differs; None for one function.
        channels: How many functions there are along ``axis``.
    """

    source: ir.Value
    nodes: tuple[ir.Node, ...] = ()
    axis: int | None = None
    channels: int = 1


@dataclass(frozen=True, eq=False)
class SumOf:
    """A value that is a weighted sum of others, plus a constant.

    Attributes:
        terms: The values with codes, and the factor of each, not 0.
        constant: What is added (float64); None for nothing.
        nodes: The nodes that add, producers before consumers.
    """

    terms: dict[ir.Value, float]
    constant: Array | None = None
    nodes: tuple[ir.Node, ...] = ()
