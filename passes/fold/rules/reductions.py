"""Sums and means over axes: of codes, rounded once."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.fold.lowering import (
    Alias,
    Lowering,
    Reduction,
    Refusal,
    RunningSum,
)
from onnxfold.passes.fold.rules.operands import reads
from onnxfold.passes.fold.rules.refusals import not_quantized, touches_quantization
from onnxfold.passes.fold.rules.rounded import rounded_operand
from onnxfold.passes.fold.types import Quantized, TypeState, is_wide
from onnxfold.passes.shapes import axes_of


def global_average(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The mean of each channel's codes over all axes behind the second."""
    rank = _rank(node)
    return _reduction(node, types, None if rank is None else tuple(range(2, rank)))


def reduce(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """ReduceSum and ReduceMean, whose axes are an attribute or, in newer opsets, an input."""
    if not touches_quantization(node, types):
        return None
    given = axes_of(node, "axes", 1)
    absent = "axes" not in node.attributes and (len(node.inputs) < 2 or node.inputs[1] is None)
    if given is None and not absent:
        return Refusal("its axes are computed at run time")
    rank = _rank(node)
    if not given and node.attributes.get_int("noop_with_empty_axes", 0):
        return _unchanged(node, types)
    if rank is None and (not given or min(given) < 0):
        return Refusal("the rank of its operand is not known", "infer shapes first")
    axes = range(rank or 0) if not given else {axis + (rank or 0) * (axis < 0) for axis in given}
    return _reduction(node, types, tuple(sorted(axes)))


def reduce_norm(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Sums of absolute values, squares, exponentials, and products."""
    if not touches_quantization(node, types):
        return None
    return Refusal(f"no integer kernel computes {node.op_type}")


def running_sum(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """CumSum, where the size of its axis is known not to overflow int32."""
    found = rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand, want = found
    source, axis = node.inputs[0], node.inputs[1]
    index = constant_scalar(axis)
    shape = None if source is None else source.shape
    size = None if index is None or shape is None else shape[int(index)]
    if not isinstance(size, int) or axis is None:
        return Refusal("the size of its axis is not known", "fix the input shapes")
    if size > _MOST_CODES and not is_wide(operand.type):
        return Refusal("an int32 sum could overflow", "split it along its axis")
    types.put(node.outputs[0], Quantized(want))
    return RunningSum(
        node=node,
        reads=reads(operand),
        plain=(axis,),
        covered=(node,),
        operand=operand,
        size=size,
        type=want,
    )


def _reduction(
    node: ir.Node, types: TypeState, axes: tuple[int, ...] | None
) -> Lowering | Refusal | None:
    found = rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand, want = found
    types.put(node.outputs[0], Quantized(want))
    return Reduction(
        node=node,
        reads=reads(operand),
        covered=(node,),
        operand=operand,
        axes=axes,
        keepdims=bool(node.attributes.get_int("keepdims", 1)),
        divisor=1 if node.op_type == "ReduceSum" else _count(node, axes),
        type=want,
    )


def _unchanged(node: ir.Node, types: TypeState) -> Lowering | Refusal:
    """A reduction over no axes."""
    data = node.inputs[0]
    known = types.get(data)
    if data is None or known is None or known.codes is not None:
        return not_quantized(data, types)
    types.put(node.outputs[0], known)
    types.follow_accumulator(data, node.outputs[0])
    return Alias(node=node, reads=(data,), covered=(node,))


def _count(node: ir.Node, axes: tuple[int, ...] | None) -> int | None:
    """How many elements are summed up; None where it is not known."""
    source = node.inputs[0]
    if axes is None or source is None or source.shape is None:
        return None
    sizes = [source.shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) and 0 not in known else None


def _rank(node: ir.Node) -> int | None:
    source = node.inputs[0]
    return None if source is None or source.shape is None else len(source.shape)


_MOST_CODES = (2**31 - 1) // 255
_OTHERS = ("L1", "L2", "LogSum", "LogSumExp", "Prod", "SumSquare")

RULES = {
    "CumSum": running_sum,
    "GlobalAveragePool": global_average,
    "ReduceMean": reduce,
    "ReduceSum": reduce,
    **{f"Reduce{name}": reduce_norm for name in _OTHERS},
}
