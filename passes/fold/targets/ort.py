"""Target ``ort``: integer ops of ai.onnx and com.microsoft that are fast in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.accumulate import has_coarse_bias
from onnxfold.passes.fold.costs import (
    FASTER_IN_FLOAT,
    FLOAT_ONLY,
    NOT_IN_OLDEST,
    SLOW_UNROUNDED,
)
from onnxfold.passes.fold.lowering import (
    AveragePool,
    Clamp,
    Concat,
    Extremum,
    Function,
    Interpolation,
    Linear,
    Lookup,
    Lowering,
    Move,
    Operand,
    Product,
    Reduction,
    Refusal,
    Requantize,
    RunningSum,
    Scatter,
    Select,
    Softmax,
    Sum,
)
from onnxfold.passes.fold.rules.refusals import not_rounded
from onnxfold.passes.fold.targets import averages
from onnxfold.passes.fold.targets.builder import CONTRIB, Builder
from onnxfold.passes.fold.targets.channels_last import depth_to_space, is_channels_last
from onnxfold.passes.fold.targets.lookup import write_lookup
from onnxfold.passes.fold.targets.movement import write_clamp, write_move, write_scatter
from onnxfold.passes.fold.targets.ort_elementwise import (
    decline_elementwise,
    write_function,
    write_select,
    write_sum,
)
from onnxfold.passes.fold.targets.ort_means import average_pool, is_mean_of_maps, mean_of_maps
from onnxfold.passes.fold.targets.ort_softmax import write_softmax
from onnxfold.passes.fold.targets.ort_unrounded import is_fast_unrounded, unrounded_convolution
from onnxfold.passes.fold.targets.padding import merge_padding
from onnxfold.passes.fold.targets.pointwise import is_pointwise, pointwise
from onnxfold.passes.fold.targets.products import data, has_batched_channels, product
from onnxfold.passes.fold.targets.target import Target, shift_through_real
from onnxfold.passes.fold.types import is_quantize

_FLOAT = ir.DataType.FLOAT


def write(lowering: Lowering, build: Builder) -> Sequence[ir.Value]:
    """Write ``lowering`` down; see ``target.Write``."""
    match lowering:
        case Linear():
            return [_linear(lowering, build)]
        case Requantize():
            return [_requantize(lowering, build)]
        case Function():
            return [write_function(lowering, build)]
        case Sum():
            return [write_sum(lowering, build)]
        case Select():
            codes = [_in_type(each, lowering.type, build) for each in lowering.operands]
            return [write_select(lowering, codes, build)]
        case Product():
            return [_product_of_two(lowering, build)]
        case Concat():
            return [_concat(lowering, build)]
        case Scatter():
            codes = [_in_type(each, lowering.type, build) for each in lowering.operands]
            return [write_scatter(lowering, codes, build)]
        case Reduction():
            return [mean_of_maps(lowering, build)]
        case AveragePool():
            return [average_pool(lowering, build) or _through_real(lowering, build)]
        case Interpolation():
            return [averages.interpolation(lowering, build)]
        case Softmax():
            return [write_softmax(lowering, build)]
        case Clamp():
            return [write_clamp(lowering, build)]
        case Lookup():
            return [write_lookup(lowering, build)]
        case Move():
            return _move(lowering, build)
        case _:
            raise TypeError(f"no lowering of {type(lowering).__name__}")


def decline(lowering: Lowering) -> Refusal | None:
    """What ONNX Runtime has no integer kernel for, or a slow one."""
    match lowering:
        case Linear(type=None, operator=ir.Node(op_type="Conv")) if is_fast_unrounded(lowering):
            return None
        case Linear(type=None, operator=ir.Node(op_type="Conv")):
            refusal = not_rounded(lowering.output)
            return Refusal(f"{refusal.reason}, and {SLOW_UNROUNDED}", refusal.advice)
        case Linear() if has_batched_channels(lowering):
            return Refusal("batched weights need one scale per tensor")
        case Interpolation() if _is_cubic(lowering):
            return None
        case Interpolation() | Move(node=ir.Node(op_type="CenterCropPad" | "Trilu")):
            return Refusal(FASTER_IN_FLOAT)
        case Function() | Sum() | Extremum():
            return decline_elementwise(lowering)
        case RunningSum():
            return Refusal(FASTER_IN_FLOAT)
        case Reduction():
            return None if is_mean_of_maps(lowering) else Refusal(FASTER_IN_FLOAT)
        case _:
            return None


TARGET = Target("ort", True, write, decline, shift_through_real, dequantizes_weights=True)


def _linear(linear: Linear, build: Builder) -> ir.Value:
    if linear.operator.op_type == "Conv" and linear.type is None:
        return unrounded_convolution(linear, build)
    if linear.operator.op_type == "Conv":
        return _convolution(linear, build)
    if linear.type is None:
        return _product_to_real(linear, build)
    if linear.bias_codes is None:
        return product(linear, build)
    return _product_with_bias(linear, build)


def _convolution(linear: Linear, build: Builder) -> ir.Value:
    assert linear.type is not None
    name = linear.output.name or "conv"
    codes, attributes = merge_padding(linear, build.operand(linear.x, name))
    inputs = [
        codes,
        *build.parameters(linear.x.type),
        build.operand(linear.w, f"{name}_weights"),
        *build.parameters(linear.w.type),
        *build.parameters(linear.type),
    ]
    if linear.bias_codes is not None:
        inputs.append(build.constant(linear.bias_codes, f"{name}_bias"))
    return build.insert(
        "QLinearConv", inputs, linear.output, linear.type.dtype, attributes=attributes
    )


def _product_to_real(linear: Linear, build: Builder) -> ir.Value:
    """The product as a real number, with the bias as it was written: nothing is rounded."""
    inputs: list[ir.Value | None] = [
        data(linear, build),
        build.operand(linear.w, f"{linear.output.name}_weights"),
        build.scale(linear.x.type),
        build.scale(linear.w.type),
        build.zero_point(linear.x.type),
        build.zero_point(linear.w.type),
    ]
    if linear.bias is not None:
        bias = linear.bias.astype(np.float32)
        inputs.append(build.constant(bias, f"{linear.output.name}_bias"))
    return build.insert("MatMulIntegerToFloat", inputs, linear.output, _FLOAT, domain=CONTRIB)


def _product_with_bias(linear: Linear, build: Builder) -> ir.Value:
    """A convolution, or QGemm, which takes matrices: others are reshaped if sizes are known."""
    assert linear.type is not None
    if has_coarse_bias(linear):
        return build.quantize(_product_to_real(linear, build), linear.type, linear.output)
    if is_pointwise(linear):
        return pointwise(linear, build)
    data, weights = build.operand(linear.x, f"{linear.output.name}_left"), linear.w.codes
    sizes = None if data.shape is None else _batch_sizes(data.shape)
    is_matrix = linear.operator.op_type == "Gemm" or (sizes is not None and len(sizes) == 1)
    if is_matrix and weights is not None and weights.ndim == 2:
        return _qgemm(linear, data, build, linear.output.shape)
    if sizes is None or weights is None or weights.ndim != 2:
        real = _product_to_real(linear, build)
        return build.quantize(real, linear.type, linear.output)
    depth, channels = weights.shape
    flat = _reshape(data, [-1, depth], linear.output, build)
    product = _qgemm(linear, flat, build, [None, channels])
    return _reshape(product, [*sizes, channels], linear.output, build)


def _qgemm(
    linear: Linear,
    data: ir.Value,
    build: Builder,
    shape: ir.Shape | Sequence[int | str | None] | None,
) -> ir.Value:
    assert linear.type is not None
    assert linear.bias_codes is not None
    inputs = [
        data,
        *build.parameters(linear.x.type),
        build.operand(linear.w, f"{linear.output.name}_weights"),
        *build.parameters(linear.w.type),
        build.constant(linear.bias_codes, f"{linear.output.name}_bias"),
        *build.parameters(linear.type),
    ]
    return build.insert(
        "QGemm",
        inputs,
        linear.output,
        linear.type.dtype,
        domain=CONTRIB,
        attributes={"transA": 1} if linear.transposed else None,
        shape=shape,
    )


def _batch_sizes(shape: ir.Shape) -> list[int] | None:
    """All sizes but the last for a Reshape, with at most one left open; else None."""
    sizes = [size if isinstance(size, int) else -1 for size in shape[:-1]]
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None


def _reshape(codes: ir.Value, sizes: list[int], like: ir.Value, build: Builder) -> ir.Value:
    shape = build.constant(np.array(sizes, np.int64), "shape")
    dtype = codes.dtype or ir.DataType.UINT8
    sizes_known = [None if size < 0 else size for size in sizes]
    return build.insert("Reshape", [codes, shape], like, dtype, shape=sizes_known)


def _requantize(lowering: Requantize, build: Builder) -> ir.Value:
    output = lowering.node.outputs[0]
    codes = build.codes_of(lowering.reads[0])
    producer = codes.producer()
    # ONNX Runtime merges Q-DQ-Q-DQ into one pair, with other numbers.
    merges = producer is not None and is_quantize(producer)
    dequantize = build.dequantize_unfused if merges else build.dequantize
    return build.quantize(dequantize(codes, lowering.operand.type, output), lowering.type, output)


def _product_of_two(product: Product, build: Builder) -> ir.Value:
    output = product.node.outputs[0]
    inputs: list[ir.Value | None] = []
    for operand in product.operands:
        inputs.append(build.operand(operand, f"{output.name}_operand"))
        inputs += build.parameters(operand.type)
    inputs += build.parameters(product.type)
    return build.insert("QLinearMul", inputs, output, product.type.dtype, domain=CONTRIB)


def _concat(concat: Concat, build: Builder) -> ir.Value:
    output = concat.node.outputs[0]
    codes = [build.operand(each, f"{output.name}_part") for each in concat.operands]
    attributes = concat.node.attributes
    if all(each.type is concat.type for each in concat.operands):
        return build.insert("Concat", codes, output, concat.type.dtype, attributes=attributes)
    inputs: list[ir.Value | None] = [*build.parameters(concat.type)]
    for operand, value in zip(concat.operands, codes, strict=True):
        inputs += [value, *build.parameters(operand.type)]
    return build.insert(
        "QLinearConcat", inputs, output, concat.type.dtype, attributes=attributes, domain=CONTRIB
    )


def _is_cubic(lowering: Interpolation) -> bool:
    """Whether ONNX Runtime's float kernel is the slow one, five times as slow as two products."""
    return lowering.node.attributes.get_string("mode", "") == "cubic"


def _in_type(operand: Operand, affine: AffineType, build: Builder) -> ir.Value:
    """The codes of an operand, requantized where they are of another type."""
    codes = build.operand(operand, "operand")
    if operand.type is affine or operand.value is None:
        return codes
    real = build.dequantize_unfused(codes, operand.type, operand.value)
    return build.quantize(real, affine, operand.value)


def _through_real(lowering: AveragePool, build: Builder) -> ir.Value:
    node, output = lowering.node, lowering.node.outputs[0]
    codes, affine = build.operand(lowering.operand, output.name or "operand"), lowering.operand.type
    real = build.dequantize_unfused(codes, affine, output)
    result = build.insert(node.op_type, [real], output, _FLOAT, attributes=node.attributes)
    build.rewriter.remark(node, FASTER_IN_FLOAT)
    return build.quantize(result, lowering.type, output)


def _move(move: Move, build: Builder) -> Sequence[ir.Value]:
    """The op on codes, but in float where its integer kernel is slow or missing."""
    node = move.node
    if node.op_type == "DepthToSpace":
        turned = depth_to_space(node, build.codes_of(move.reads[0]), build)
        return write_move(move, build) if turned is None else [turned]
    if node.op_type != "MaxPool" and node.op_type not in FLOAT_ONLY:
        return write_move(move, build)
    known = build.types.get(move.reads[0])
    assert known is not None
    data, dtype = build.codes_of(move.reads[0]), known.type.dtype
    if node.op_type in FLOAT_ONLY:
        return [_through_float(node, data, dtype, NOT_IN_OLDEST, build)]
    # With indices the float kernel is as slow: 1360 us against 1120 for 3x3 of 1x64x56x56.
    if is_channels_last(data) or len(node.outputs) > 1:
        return write_move(move, build)
    return [_through_float(node, data, dtype, FASTER_IN_FLOAT, build)]


def _through_float(
    node: ir.Node, codes: ir.Value, dtype: ir.DataType, reason: str, build: Builder
) -> ir.Value:
    """The op on the codes as real numbers, which all are exact."""
    output = node.outputs[0]
    to_real, to_codes = {"to": int(_FLOAT)}, {"to": int(dtype)}
    real = build.insert("Cast", [codes], output, _FLOAT, attributes=to_real, shape=codes.shape)
    result = build.insert(node.op_type, [real], output, _FLOAT, attributes=node.attributes)
    build.rewriter.remark(node, reason)
    return build.insert("Cast", [result], output, dtype, attributes=to_codes)
