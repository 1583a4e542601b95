"""Sums, means, interpolation and softmax on codes, in integer ops of ai.onnx."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import (
    AveragePool,
    Interpolation,
    Reduction,
    Refusal,
    RunningSum,
    Softmax,
)
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.fixed_point import IntegerOps, Term, centred, quotient, rescale
from onnxfold.passes.fold.targets.wide_codes import combined, parts_of
from onnxfold.passes.fold.targets.windows import WindowAxis, window_axes
from onnxfold.passes.fold.types import is_wide
from onnxfold.passes.literals import AttributeValue

_INT32, _INT64, _UINT8 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8
_LARGEST_CODE = 255
_INT32_LIMIT = 2**31 - 1
_EXPONENT_BITS = 26  # of the largest entry in the table of exponentials
_QUOTIENT_BITS = 16  # of the factor that turns probabilities into codes
_WEIGHT_BITS = 24  # of an interpolation weight that is no fraction with a small denominator
_LARGEST_DENOMINATOR = 2**20
_NEAR_INTEGER = 2.0**-26  # weights are float64, a few operations behind their fractions
_MOST_PARTS = 2**30  # of a code in an interpolated sum, before it is rescaled
_FINEST_PARTS = 2**14  # among which fixed point always tells what is a half
_MOST_DIVIDED = 2**40  # with which the codes of a sum still fit into int64
_UNKNOWN = "fix the input shapes"


def decline(lowering: Reduction | AveragePool) -> Refusal | None:
    """Means over sizes that are not known have no divisor."""
    if isinstance(lowering, Reduction):
        known = lowering.axes is not None and lowering.divisor is not None
        return None if known else Refusal("it averages over sizes that are not known", _UNKNOWN)
    source = lowering.node.inputs[0]
    shape = None if source is None else source.shape
    if shape is None or not isinstance(shape[1], int):
        return Refusal("its number of channels is not known", _UNKNOWN)
    if window_axes(lowering.node, shape) is None:
        return Refusal("how much its windows cover depends on sizes not known", _UNKNOWN)
    return None


def reduction(lowering: Reduction, build: Builder) -> ir.Value:
    """ReduceSum in int32, of 16-bit codes in int64 where there are many; then one rescaling."""
    output, x = lowering.node.outputs[0], lowering.operand
    assert lowering.axes is not None
    assert lowering.divisor is not None
    codes = build.operand(x, output.name or "sum")
    count = _count(codes.shape, lowering.axes)
    bound = _INT32_LIMIT if count is None else _largest_code(x.type) * count
    if count is None and is_wide(x.type):
        bound *= _LARGEST_CODE
    wide = _summable(centred(codes, x.type, output, build), bound, output, build)
    axes = build.constant(np.asarray(lowering.axes, np.int64), "axes")
    keepdims = {"keepdims": int(lowering.keepdims)}
    dtype = wide.dtype or _INT32
    total = build.insert("ReduceSum", [wide, axes], output, dtype, attributes=keepdims)
    factor = float(x.type.scale) / lowering.divisor / float(lowering.type.scale)
    return rescale([Term(total, np.asarray(factor), 0, bound)], lowering.type, output, build)


def running_sum(lowering: RunningSum, build: Builder) -> ir.Value:
    """CumSum in int32, then one rescaling."""
    node, output, x = lowering.node, lowering.node.outputs[0], lowering.operand
    codes = build.operand(x, output.name or "sum")
    bound = _largest_code(x.type) * lowering.size
    wide = _summable(centred(codes, x.type, output, build), bound, output, build)
    inputs, dtype = [wide, node.inputs[1]], wide.dtype or _INT32
    total = build.insert("CumSum", inputs, output, dtype, attributes=node.attributes)
    factor = np.asarray(float(x.type.scale) / float(lowering.type.scale))
    term = Term(total, factor, 0, bound)
    return rescale([term], lowering.type, output, build)


def average_pool(lowering: AveragePool, build: Builder, *, quantized_kernels: bool) -> ir.Value:
    """A depthwise convolution with weights of one, divided by what each window covers.

    Args:
        lowering: The pool.
        build: Where it is written.
        quantized_kernels: Whether QLinearConv may be used, whose scales are float constants.
    """
    source = lowering.node.inputs[0]
    assert source is not None
    assert source.shape is not None
    channels, *spatial = list(source.shape)[1:]
    axes = window_axes(lowering.node, source.shape)
    assert isinstance(channels, int)
    assert axes is not None
    if all(axis.covers(size) for axis, size in zip(axes, spatial, strict=True)):
        return _whole_map(lowering, axes, build)
    attributes: dict[str, AttributeValue] = {
        "group": channels,
        "kernel_shape": [axis.size for axis in axes],
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [axis.begin for axis in axes] + [axis.end for axis in axes],
    }
    uniform = all(axis.counts is None for axis in axes)
    shape = [channels, 1, *(axis.size for axis in axes)]
    narrow = not (is_wide(lowering.operand.type) or is_wide(lowering.type))
    if quantized_kernels and uniform and narrow:
        return _scaled_windows(lowering, shape, attributes, build)
    x, output = lowering.operand, lowering.node.outputs[0]
    ones = build.constant(np.ones(shape, np.uint8), "window")
    zero_point = build.constant(np.asarray(0, np.uint8), "zero_point")
    sums: list[tuple[int, ir.Value]] = []
    for part in parts_of(build.operand(x, output.name or "pool"), x.type, output, build):
        inputs = [part.codes, ones, part.zero_point, zero_point]
        found = build.insert("ConvInteger", inputs, output, _INT32, attributes=attributes)
        sums.append((part.unit, found))
    factor = float(x.type.scale) / _covered(axes) / float(lowering.type.scale)
    bound = _largest_code(x.type) * math.prod(axis.size for axis in axes)
    total = combined(sums, bound, output, build)
    return rescale([Term(total, factor, 0, bound)], lowering.type, output, build)


def _largest_code(affine: AffineType) -> int:
    return (1 << affine.dtype.bitwidth) - 1


def _summable(codes: ir.Value, bound: int, like: ir.Value, build: Builder) -> ir.Value:
    """int32 ``codes``, as int64 where that does not hold their sums."""
    dtype = _INT32 if bound <= _INT32_LIMIT else _INT64
    return IntegerOps(build, like, codes.shape).cast(codes, dtype)


def _whole_map(lowering: AveragePool, axes: list[WindowAxis], build: Builder) -> ir.Value:
    """One window over everything is a mean."""
    mean = Reduction(
        node=lowering.node,
        operand=lowering.operand,
        axes=tuple(range(2, 2 + len(axes))),
        keepdims=True,
        divisor=math.prod(axis.size for axis in axes),
        type=lowering.type,
    )
    return reduction(mean, build)


def _scaled_windows(
    lowering: AveragePool,
    shape: list[int],
    attributes: dict[str, AttributeValue],
    build: Builder,
) -> ir.Value:
    """QLinearConv with weights 1 / n, as codes 1 of scale 1 / n."""
    x, output = lowering.operand, lowering.node.outputs[0]
    scale = np.asarray(1.0 / math.prod(shape[2:]), np.float32)
    weights = AffineType(scale, np.zeros((), np.int8), ir.DataType.INT8)
    inputs = [
        build.operand(x, output.name or "pool"),
        *build.parameters(x.type),
        build.constant(np.ones(shape, np.int8), "window"),
        *build.parameters(weights),
        *build.parameters(lowering.type),
    ]
    dtype = lowering.type.dtype
    return build.insert("QLinearConv", inputs, output, dtype, attributes=attributes)


def softmax(lowering: Softmax, build: Builder) -> ir.Value:
    """Exponentials of the distance to the largest code from a table, and one exact quotient."""
    output, x, affine = lowering.node.outputs[0], lowering.operand, lowering.type
    codes = build.operand(x, output.name or "logits")
    write = IntegerOps(build, output, output.shape)
    wide = write.cast(codes, _INT32)
    largest = _reduce("ReduceMax", wide, lowering.axis, output, build)
    distance = write.op("Sub", [largest, wide], _INT32)
    steps = np.arange(_LARGEST_CODE + 1) * float(x.type.scale)
    table = np.rint(np.ldexp(np.exp(-steps), _EXPONENT_BITS)).astype(np.int64)
    weight = write.op("Gather", [build.constant(table, "exponentials"), distance], _INT64)
    total = _reduce("ReduceSum", weight, lowering.axis, output, build)
    # y = floor(w f / t + 1/2) with f in units of 2^-bits: (2 w f + t 2^bits) / (t 2^(bits+1)).
    factor = round(math.ldexp(1.0 / float(affine.scale), _QUOTIENT_BITS))
    numerator = write.mul(weight, np.asarray(2 * factor, np.int64))
    half = _scaled(total, 1 << _QUOTIENT_BITS, output, build)
    divisor = _scaled(total, 2 << _QUOTIENT_BITS, output, build)
    quotient = write.op("Div", [write.op("Add", [numerator, half], _INT64), divisor], _INT64)
    shifted = write.add(quotient, np.asarray(int(affine.zero_point), np.int64))
    limits = [build.constant(np.asarray(each, np.int64), "code_limit") for each in affine.limits]
    return write.cast(write.op("Clip", [shifted, *limits], _INT64), affine.dtype)


def interpolation(lowering: Interpolation, build: Builder) -> ir.Value:
    """One integer matrix product an axis, then one rescaling."""
    output, x = lowering.node.outputs[0], lowering.operand
    codes = build.operand(x, output.name or "resize")
    weights = [_integer_weights(matrix) for _, matrix in lowering.matrices]
    reach = math.prod(int(np.max(np.sum(np.abs(matrix), axis=1))) for matrix, _ in weights)
    dtype = _INT32 if _largest_code(x.type) * reach <= _INT32_LIMIT else _INT64
    factor = Fraction(float(x.type.scale)) / Fraction(float(lowering.type.scale))
    narrow = not (is_wide(x.type) or is_wide(lowering.type))
    divided = narrow and _is_divided(factor, math.prod(parts for _, parts in weights))
    parts, bound = 1, _largest_code(x.type)
    value = centred(codes, x.type, output, build)
    if dtype == _INT64:
        value = IntegerOps(build, output, codes.shape).cast(value, _INT64)
    for (axis, _), (matrix, more) in zip(lowering.matrices, weights, strict=True):
        value = _along(value, matrix, axis, dtype, output, build)
        parts, bound = parts * more, bound * int(np.max(np.sum(np.abs(matrix), axis=1)))
        factor /= more
        if parts > _MOST_PARTS and not divided:
            surplus = parts >> _WEIGHT_BITS
            divisor = build.constant(np.asarray(surplus, np.int64), "surplus")
            value = IntegerOps(build, output, value.shape).op("Div", [value, divisor], dtype)
            parts, bound = parts // surplus, bound // surplus + 1
            factor *= surplus
    if divided:
        value = IntegerOps(build, output, output.shape).cast(value, _INT64)
        return quotient(value, factor, bound, lowering.type, output, build)
    term = Term(value, np.asarray(float(factor)), 0, bound)
    return rescale([term], lowering.type, output, build)


def _is_divided(ratio: Fraction, parts: int) -> bool:
    """Whether sums over ``parts`` meet the middle between codes where fixed point cannot tell."""
    denominator = (ratio / parts).denominator
    meets = denominator % 2 == 0 and denominator & (denominator - 1) != 0
    few = max(ratio.numerator, ratio.denominator) <= _LARGEST_CODE
    return meets and few and _FINEST_PARTS < parts <= _MOST_DIVIDED


def _count(shape: ir.Shape | None, axes: tuple[int, ...]) -> int | None:
    """How many elements are added up; None where not known."""
    if shape is None:
        return None
    sizes = [shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _covered(axes: list[WindowAxis]) -> Array:
    """By what each sum is divided: a scalar, or one number an output position."""
    if all(axis.counts is None for axis in axes):
        return np.asarray(math.prod(axis.size for axis in axes), np.float64)
    covered = np.ones((), np.float64)
    for axis in axes:
        counts = np.asarray([axis.size]) if axis.counts is None else axis.counts
        covered = covered[..., None] * counts
    return covered


def _reduce(op_type: str, value: ir.Value, axis: int, like: ir.Value, build: Builder) -> ir.Value:
    assert value.dtype is not None
    if op_type == "ReduceMax" and build.rewriter.opset(build.anchor) < 18:
        inputs, attributes = [value], {"axes": [axis], "keepdims": 1}
        return build.insert(op_type, inputs, like, value.dtype, attributes=attributes)
    axes = build.constant(np.asarray([axis], np.int64), "axes")
    result = build.insert(op_type, [value, axes], like, value.dtype, attributes={"keepdims": 1})
    build.rewriter.set_type(result, value.dtype, _with_size_one(like.shape, axis))
    return result


def _with_size_one(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    if shape is None:
        return None
    sizes = list(shape)
    sizes[axis] = 1
    return ir.Shape(sizes)


def _scaled(value: ir.Value, factor: int, like: ir.Value, build: Builder) -> ir.Value:
    return IntegerOps(build, like, value.shape).mul(value, np.asarray(factor, np.int64))


def _integer_weights(matrix: Array) -> tuple[Array, int]:
    """Integers and their common denominator, that together are ``matrix``.

    Exact where the denominator is small; 2^24 otherwise. Only what is exact meets the middle
    between two codes: ninths of ninths come to a whole number where their codes are alike.
    """
    parts = 1
    for weight in np.unique(np.abs(matrix)).tolist():
        near = Fraction(weight).limit_denominator(_LARGEST_DENOMINATOR)
        parts = math.lcm(parts, near.denominator)
        if parts > _LARGEST_DENOMINATOR or abs(weight - near) * parts > _NEAR_INTEGER:
            parts = 1 << _WEIGHT_BITS
            break
    return np.rint(matrix * parts).astype(np.int64), parts


def _along(
    value: ir.Value, matrix: Array, axis: int, dtype: ir.DataType, like: ir.Value, build: Builder
) -> ir.Value:
    """The product with ``matrix`` [out, in] along ``axis``."""
    assert value.shape is not None
    sizes = list(value.shape)
    rank = len(sizes)
    order = [each for each in range(rank) if each != axis] + [axis]
    turned = value
    if axis != rank - 1:
        turned_shape = ir.Shape([sizes[each] for each in order])
        turned = IntegerOps(build, like, turned_shape).op(
            "Transpose", [value], dtype, {"perm": order}
        )
    transposed: Array = np.transpose(matrix).astype(dtype.numpy())
    weights = build.constant(np.ascontiguousarray(transposed), "weights")
    sizes[axis] = matrix.shape[0]
    shape = ir.Shape([sizes[each] for each in order])
    product = IntegerOps(build, like, shape).op("MatMul", [turned, weights], dtype)
    if axis == rank - 1:
        return product
    back = [order.index(each) for each in range(rank)]
    return IntegerOps(build, like, ir.Shape(sizes)).op(
        "Transpose", [product], dtype, {"perm": back}
    )
