"""Fuses the primitives of a layer normalization into LayerNormalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.channel_affine import ChannelAffine, channel_vector, only_consumer
from onnxfold.passes.constants import Array, constant_array, constant_scalar
from onnxfold.passes.linear_fold import rounded
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.reductions import Reduction, unrestored
from onnxfold.passes.rewriter import Rewriter

_INTRODUCED = 17
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Types whose moments float32 holds, in which LayerNormalization computes them."""


@dataclass(frozen=True, eq=False)
class _Normalization:
    """``scale * (x - mean) / sqrt(variance + epsilon) + shift`` along one axis.

    Attributes:
        mean: The mean: of what, and along which axis.
        size: The size of that axis.
        epsilon: Added to the variance.
        scale: float64, [size].
        shift: float64, [size].
        nodes: The last node of the core, and what scales and shifts its result.
    """

    mean: Reduction
    size: int
    epsilon: float
    scale: Array
    shift: Array
    nodes: tuple[ir.Node, ...]


@rule("fuse-layer-norm", "Div", "Mul")
def _fuse(node: ir.Node, rewriter: Rewriter) -> None:
    found = _match(node) if node.outputs[0].uses() or node.outputs[0].is_graph_output() else None
    if found is None:
        return
    source, dtype = found.mean.source, found.mean.source.dtype
    if dtype is None or dtype not in _TYPES or source.shape is None:
        return
    if rewriter.opset(node) < _INTRODUCED:
        rewriter.remark(node, "LayerNormalization needs opset 17", "run upgrade-opset first")
        return
    found = _with_tail(found)
    scale, shift = rounded(found.scale, dtype), rounded(found.shift, dtype)
    if scale is None or shift is None:
        return
    anchor = found.nodes[-1]
    rank = len(source.shape)
    last = rank - 1
    order = [axis for axis in range(rank) if axis != found.mean.axis] + [found.mean.axis]
    name = anchor.name or "layer_norm"
    value = source
    if found.mean.axis != last:
        value = _transposed(anchor, value, order, name, rewriter)
    operands = [
        rewriter.constant(anchor, scale, name=f"{name}_scale"),
        rewriter.constant(anchor, shift, name=f"{name}_bias"),
    ]
    attributes = {"axis": -1, "epsilon": found.epsilon}
    value = rewriter.insert(
        anchor,
        "LayerNormalization",
        [value, *operands],
        name=name,
        attributes=attributes,
        dtype=dtype,
        shape=value.shape,
    )
    if found.mean.axis != last:
        value = _transposed(anchor, value, _inverse(order), name, rewriter)
    rewriter.replace_node(anchor, [value])
    for each in reversed(found.nodes[:-1]):
        rewriter.erase(each)


def _match(node: ir.Node) -> _Normalization | None:
    """Read ``node`` as the product of the centred values and their reciprocal deviation."""
    for centred, factor in (tuple(node.inputs), tuple(reversed(node.inputs))):
        if node.op_type == "Div" and factor is not node.inputs[1]:
            return None
        mean = _centring(centred)
        if mean is None or mean.size is None or centred is None or factor is None:
            continue
        root, scale = (factor, None) if node.op_type == "Div" else _reciprocal(factor, mean)
        epsilon = _epsilon(root, mean, centred)
        if epsilon is None:
            continue
        ones, zeros = np.ones(mean.size), np.zeros(mean.size)
        scaling = ones if scale is None else scale
        return _Normalization(mean, mean.size, epsilon, scaling, zeros, (node,))
    return None


def _with_tail(found: _Normalization) -> _Normalization:
    """Take in the scale and shift that follow."""
    shape = found.mean.source.shape
    rank = len(shape) if shape is not None else None
    while True:
        output = found.nodes[-1].outputs[0]
        consumer = only_consumer(output)
        affine = ChannelAffine.match(consumer, channels=found.size, axis=found.mean.axis, rank=rank)
        if consumer is None or affine is None or affine.source is not output:
            return found
        if consumer.op_type == "BatchNormalization":
            return found
        found = _Normalization(
            found.mean,
            found.size,
            found.epsilon,
            found.scale * affine.scale,
            found.shift * affine.scale + affine.shift,
            (*found.nodes, consumer),
        )


def _centring(value: ir.Value | None) -> Reduction | None:
    """The mean in ``x - mean(x)``."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Sub" or node.domain or node.inputs[1] is None:
        return None
    mean = Reduction.match_mean(unrestored(node.inputs[1]))
    if mean is None or mean.source is not node.inputs[0]:
        return None
    return mean if mean.restored(node.inputs[1]) is not None else None


def _reciprocal(value: ir.Value, mean: Reduction) -> tuple[ir.Value | None, Array | None]:
    """The divisor behind ``1 / divisor``, and the constant it is multiplied with."""
    node = value.producer()
    if node is None or node.domain:
        return None, None
    if node.op_type == "Reciprocal":
        return node.inputs[0], None
    if node.op_type == "Div" and constant_scalar(node.inputs[0]) == 1:
        return node.inputs[1], None
    if node.op_type != "Mul":
        return None, None
    rank = len(mean.source.shape or ())
    for operand, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        array = constant_array(operand)
        if array is None or other is None or mean.size is None:
            continue
        scale = channel_vector(array, mean.size, mean.axis, rank)
        root, inner = _reciprocal(other, mean)
        return (root, scale) if scale is not None and inner is None else (None, None)
    return None, None


def _epsilon(root: ir.Value | None, mean: Reduction, centred: ir.Value) -> float | None:
    """The epsilon in ``sqrt(variance + epsilon)``."""
    node = root.producer() if root is not None else None
    if node is None or node.op_type != "Sqrt" or node.domain:
        return None
    total = node.inputs[0].producer() if node.inputs[0] is not None else None
    if total is None or total.op_type != "Add":
        return None
    for operand, other in (tuple(total.inputs), tuple(reversed(total.inputs))):
        epsilon = constant_scalar(operand)
        if epsilon is not None and other is not None and mean.restored(other) is not None:
            return float(epsilon) if _is_variance(unrestored(other), mean, centred) else None
    return None


def _is_variance(value: ir.Value, mean: Reduction, centred: ir.Value) -> bool:
    """Whether ``value`` is the mean of squares of the centred data, in either form."""
    node = value.producer()
    if node is not None and node.op_type == "Max" and len(node.inputs) == 2:
        # Rounding can make the difference of the two moments negative.
        for operand, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
            if constant_scalar(operand) == 0 and other is not None:
                return _is_variance(other, mean, centred)
    squares = Reduction.match_mean(value)
    if squares is not None:
        return squares.axis == mean.axis and _is_square(squares.source, centred)
    if node is None or node.op_type != "Sub" or node.domain:
        return False
    squares = Reduction.match_mean(node.inputs[0])
    if squares is None or squares.axis != mean.axis or not _is_square(squares.source, mean.source):
        return False
    base = _square_root(node.inputs[1])
    first = Reduction.match_mean(base)
    return first is not None and (first.source, first.axis) == (mean.source, mean.axis)


def _is_square(value: ir.Value, base: ir.Value) -> bool:
    return _square_root(value) is base


def _square_root(value: ir.Value | None) -> ir.Value | None:
    """X of ``x * x`` or ``Pow(x, 2)``."""
    node = value.producer() if value is not None else None
    if node is None or node.domain or len(node.inputs) != 2:
        return None
    base, other = node.inputs
    if node.op_type == "Mul":
        return base if base is other else None
    return base if node.op_type == "Pow" and constant_scalar(other) == 2 else None


def _transposed(
    anchor: ir.Node, value: ir.Value, order: list[int], name: str, rewriter: Rewriter
) -> ir.Value:
    assert value.shape is not None
    return rewriter.insert(
        anchor,
        "Transpose",
        [value],
        name=f"{name}_transposed",
        attributes={"perm": order},
        dtype=value.dtype,
        shape=ir.Shape([value.shape[axis] for axis in order]),
    )


def _inverse(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


@dataclass(frozen=True)
class FuseLayerNorm(PatternPass):
    """Fuse the primitives of a normalization along one axis into LayerNormalization.

    Knows the variance as mean((x - mean)^2) and as mean(x^2) - mean^2, means as ReduceMean and
    as a scaled ReduceSum, and scale and bias by constants. Along an axis that is not the last,
    the data is transposed before and after. Needs opset 17.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_fuse,)
