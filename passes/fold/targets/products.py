"""Conv, Gemm and MatMul on codes in ops of ai.onnx."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.accumulate import bias_is_exact, has_coarse_bias
from onnxfold.passes.fold.lowering import Linear
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.fixed_point import Term, rescale
from onnxfold.passes.fold.targets.wide_codes import Part, combined, parts_of
from onnxfold.passes.fold.types import is_wide

_INT32 = ir.DataType.INT32
_UINT8_SHIFT = 128
"""int8 weights + 128 are uint8: ONNX Runtime's ConvInteger is slow on int8, and pairs of products
of uint8 never leave what x86 kernels add them in."""


def with_quantized_kernels(linear: Linear, build: Builder) -> ir.Value:
    """QLinearConv, or QLinearMatMul where there is no bias; else as ``with_integer_kernels``."""
    wide = is_wide(linear.x.type) or is_wide(linear.w.type)
    if linear.type is None or wide or is_wide(linear.type) or has_coarse_bias(linear):
        return with_integer_kernels(linear, build)
    if linear.operator.op_type == "Conv":
        return convolution(linear, build)
    if linear.bias_codes is None and not has_batched_channels(linear):
        return product(linear, build)
    return with_integer_kernels(linear, build)


def has_batched_channels(linear: Linear) -> bool:
    """Whether the weights are several matrices with one scale a column: QLinearMatMul is not."""
    return linear.w.type.axis is not None and linear.w.type.axis > 1


def with_integer_kernels(linear: Linear, build: Builder) -> ir.Value:
    """ConvInteger or MatMulInteger, the bias with their sums or with the rescaling to codes.

    Without type the result is the accumulator where that has a type, else dequantized.
    """
    total = accumulated(linear, build)
    dtype = total.dtype or _INT32
    exact_bias = linear.bias is None or bias_is_exact(linear)
    if linear.bias_codes is not None and exact_bias:
        shape = channel_shape(linear, linear.bias_codes)
        bias = linear.bias_codes.reshape(shape).astype(dtype.numpy())
        codes = build.constant(bias, f"{linear.output.name}_bias")
        total = build.insert("Add", [total, codes], linear.output, dtype)
    if build.types.get(linear.output) is not None and linear.type is None:
        return total
    if linear.type is None:
        return _dequantized(linear, total, build, with_bias=not exact_bias)
    unit = linear.x.type.scale.astype(np.float64) * linear.w.type.scale.astype(np.float64)
    factor: Array = np.asarray(unit / float(linear.type.scale))
    if factor.ndim:
        factor = factor.reshape(channel_shape(linear, factor))
    constant: Array | None = None
    if linear.bias is not None and not exact_bias:
        in_codes: Array = linear.bias / float(linear.type.scale)
        constant = in_codes.reshape(channel_shape(linear, in_codes))
    term = Term(total, factor, 0, linear.bound)
    return rescale([term], linear.type, linear.output, build, constant=constant)


def convolution(linear: Linear, build: Builder) -> ir.Value:
    """QLinearConv."""
    assert linear.type is not None
    name = linear.output.name or "conv"
    inputs = [
        build.operand(linear.x, name),
        *build.parameters(linear.x.type),
        build.operand(linear.w, f"{name}_weights"),
        *build.parameters(linear.w.type),
        *build.parameters(linear.type),
    ]
    if linear.bias_codes is not None:
        inputs.append(build.constant(linear.bias_codes, f"{name}_bias"))
    attributes = linear.operator.attributes
    return build.insert(
        "QLinearConv", inputs, linear.output, linear.type.dtype, attributes=attributes
    )


def product(linear: Linear, build: Builder) -> ir.Value:
    """QLinearMatMul."""
    assert linear.type is not None
    inputs = [
        data(linear, build),
        *build.parameters(linear.x.type),
        build.operand(linear.w, f"{linear.output.name}_weights"),
        *build.parameters(linear.w.type),
        *build.parameters(linear.type),
    ]
    return build.insert("QLinearMatMul", inputs, linear.output, linear.type.dtype)


def data(linear: Linear, build: Builder) -> ir.Value:
    """The codes of the data, turned where Gemm has transA."""
    codes = build.operand(linear.x, f"{linear.output.name}_left")
    if not linear.transposed:
        return codes
    turned = None if codes.shape is None else ir.Shape(list(codes.shape)[::-1])
    return build.insert(
        "Transpose",
        [codes],
        linear.output,
        linear.x.type.dtype,
        attributes={"perm": [1, 0]},
        shape=turned,
    )


def accumulated(linear: Linear, build: Builder) -> ir.Value:
    """The sums of (q_x - z_x)(q_w - z_w): int32, int64 where 16-bit codes need it."""
    conv = linear.operator.op_type == "Conv"
    attributes = linear.operator.attributes if conv else None
    sums: list[tuple[int, ir.Value]] = []
    weights = _weights(linear, build, as_uint8=conv or is_wide(linear.x.type))
    for x in parts_of(data(linear, build), linear.x.type, linear.output, build):
        for w in weights:
            inputs = [x.codes, w.codes, x.zero_point, w.zero_point]
            kernel = "ConvInteger" if conv else "MatMulInteger"
            found = build.insert(kernel, inputs, linear.output, _INT32, attributes=attributes)
            sums.append((x.unit * w.unit, found))
    return combined(sums, linear.bound, linear.output, build)


def _weights(linear: Linear, build: Builder, *, as_uint8: bool) -> list[Part]:
    name, w = f"{linear.output.name}_weights", linear.w
    if is_wide(w.type):
        return parts_of(build.operand(w, name), w.type, linear.output, build)
    zero_points = np.unique(w.type.zero_point)
    zero_point = zero_points.reshape(()) if zero_points.size == 1 else w.type.zero_point
    if w.codes is None or not as_uint8:
        zero = zero_point.astype(w.type.dtype.numpy())
        return [Part(build.operand(w, name), build.constant(zero, "zero_point"))]
    # For convolutions, accumulation_weights leaves the same zero point in all channels.
    shifted = (w.codes.astype(np.int64) + _UINT8_SHIFT).astype(np.uint8)
    zero = (np.asarray(zero_point, np.int64) + _UINT8_SHIFT).astype(np.uint8)
    return [Part(build.constant(shifted, name), build.constant(zero, "zero_point"))]


def channel_shape(linear: Linear, per_channel: Array) -> list[int]:
    """The shape in which one number a channel is broadcast over the output."""
    if linear.operator.op_type != "Conv":
        return [per_channel.size]
    assert linear.w.codes is not None
    return [-1] + [1] * (linear.w.codes.ndim - 2)


def _dequantized(linear: Linear, total: ir.Value, build: Builder, *, with_bias: bool) -> ir.Value:
    """The accumulator as real numbers, to which a bias that has no codes is added."""
    scale: Array = np.asarray(linear.x.type.scale * linear.w.type.scale, np.float32)
    conv = linear.operator.op_type == "Conv"
    rank = 0 if linear.output.shape is None else len(linear.output.shape)
    axis = None if scale.ndim == 0 else (1 if conv else rank - 1)
    affine = AffineType(scale, np.zeros(scale.shape, np.int32), _INT32, axis)
    if total.dtype == _INT32:
        real = build.dequantize(total, affine, linear.output)
    else:  # DequantizeLinear takes no int64
        spread = scale.reshape(channel_shape(linear, scale)) if scale.ndim else scale
        affine = AffineType(spread, np.zeros(spread.shape, np.int64), ir.DataType.INT64)
        real = build.dequantize_unfused(total, affine, linear.output)
    if not with_bias:
        return real
    assert linear.bias is not None
    bias = linear.bias.astype(np.float32).reshape(channel_shape(linear, linear.bias))
    addend = build.constant(bias, f"{linear.output.name}_bias")
    return build.insert("Add", [real, addend], linear.output, ir.DataType.FLOAT)
