"""Reading reductions along one axis, however their axis is given and put back."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.shapes import axes_of

_RESTORING = ("Reshape", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class Reduction:
    """A reduction of ``source`` along ``axis``, of size ``size``.

    Attributes:
        source: What is reduced.
        axis: The axis, counted from the front.
        size: The number of elements reduced to one; None where it is not known.
    """

    source: ir.Value
    axis: int
    size: int | None

    @classmethod
    def match(cls, value: ir.Value | None, op_type: str) -> Reduction | None:
        """Read the ``op_type`` node (ReduceSum, ReduceMax, ...) that makes ``value``."""
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type or node.domain:
            return None
        source = node.inputs[0]
        axes = axes_of(node, "axes", 1)
        if source is None or source.shape is None or axes is None or len(axes) != 1:
            return None
        axis = axes[0] % len(source.shape)
        size = source.shape[axis]
        return cls(source, axis, size if isinstance(size, int) else None)

    @classmethod
    def match_mean(cls, value: ir.Value | None) -> Reduction | None:
        """Read a mean: ReduceMean, or ReduceSum times (divided by) a constant."""
        mean = cls.match(value, "ReduceMean")
        node = value.producer() if value is not None else None
        if mean is not None or node is None or node.op_type not in ("Mul", "Div"):
            return mean
        for total, factor in _ordered(node):
            reduction, number = cls.match(total, "ReduceSum"), constant_scalar(factor)
            if reduction is None or reduction.size is None or number is None:
                continue
            count = reduction.size if node.op_type == "Mul" else 1 / reduction.size
            # The reciprocal of the size is rounded to the tensor's type.
            if abs(float(number) * count - 1) < 1e-6:
                return reduction
        return None

    def restored(self, value: ir.Value | None) -> ir.Value | None:
        """The reduced value behind ``value``, which has the axis put back with one element.

        None where the shape of ``value`` is not known to be the source's with 1 for the axis.
        """
        if value is None or value.shape is None or self.source.shape is None:
            return None
        expected = [1 if i == self.axis else dim for i, dim in enumerate(self.source.shape)]
        actual = list(value.shape)
        if len(actual) != len(expected) or 0 in actual:
            return None
        differing = [
            (a, b)
            for a, b in zip(actual, expected, strict=True)
            if not isinstance(a, int) or a != b
        ]
        # One dimension that is not a number follows from the number of elements.
        if len(differing) > 1 or any(isinstance(a, int) for a, _ in differing):
            return None
        return unrestored(value)


def unrestored(value: ir.Value) -> ir.Value:
    """What ``value`` is a Reshape, Unsqueeze or Identity of."""
    producer = value.producer()
    while producer is not None and producer.op_type in _RESTORING and not producer.domain:
        source = producer.inputs[0]
        if source is None:
            return value
        value, producer = source, source.producer()
    return value


def _ordered(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """The operands in the orders in which they mean the same."""
    left, right = node.inputs
    return [(left, right), (right, left)] if node.op_type == "Mul" else [(left, right)]
