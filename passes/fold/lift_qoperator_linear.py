"""Quantized convolutions and matrix products, as the real ones they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.accumulate import InexactError, accumulation_weights, bias_in_codes
from onnxfold.passes.fold.guards import feeds_quantize
from onnxfold.passes.fold.lift_qoperator_forms import (
    Dequantized,
    LiftRule,
    NotLiftableError,
    RealForm,
    affine,
    affine_of,
    dequantized,
    input_at,
    needed,
    plain_attributes,
)
from onnxfold.passes.fold.targets.builder import CONTRIB
from onnxfold.passes.fold.types import is_quantize
from onnxfold.passes.walk import use_count


def _conv(node: ir.Node, _opset: int) -> RealForm:
    x, w = dequantized(node, 0, 1, 2), dequantized(node, 3, 4, 5, axis=0)
    bias = _bias(input_at(node, 8), x.type, w.type, 1.0)
    _check_accumulator(x, w, 0, bias)
    rounded = affine(node, 6, 7, x.type.dtype)
    matrix = _matrix(node, w)
    if matrix is not None:
        return RealForm(node, "MatMul", (x, matrix), type=rounded, addend=bias)
    inputs = (x, w) if bias is None else (x, w, bias)
    return RealForm(node, "Conv", inputs, plain_attributes(node), rounded)


def _matrix(node: ir.Node, kernel: Dequantized) -> Dequantized | None:
    """The [depth, channels] that a convolution of channels-last pixels, one by one, multiplies.

    As which the fold writes products of many rows; None for any other convolution.
    """
    codes, attributes = kernel.constants(), node.attributes
    if codes is None or attributes.get_int("channels_last", 0) == 0:
        return None
    apart = {*attributes.get_ints("strides", ())} - {1} or {*attributes.get_ints("pads", ())} - {0}
    if apart or codes.size != codes.shape[0] * codes.shape[1] or attributes.get_int("group", 1) > 1:
        return None
    by_column = kernel.type if kernel.type.per_tensor else replace(kernel.type, axis=1)
    matrix: Array = np.swapaxes(codes.reshape(codes.shape[:2]), 0, 1)
    return Dequantized(np.ascontiguousarray(matrix), by_column)


def _matmul(node: ir.Node, _opset: int) -> RealForm:
    x, w = dequantized(node, 0, 1, 2), dequantized(node, 3, 4, 5, _last_axis(node, 3))
    _check_accumulator(x, w, w.type.axis)
    return RealForm(node, "MatMul", (x, w), type=affine(node, 6, 7, x.type.dtype))


def _gemm(node: ir.Node, _opset: int) -> RealForm:
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    x, w = dequantized(node, 0, 1, 2), dequantized(node, 3, 4, 5, axis)
    alpha = node.attributes.get_float("alpha", 1.0)
    bias = _bias(input_at(node, 6), x.type, w.type, alpha)
    if alpha <= 0:
        raise NotLiftableError(f"alpha is {alpha}")
    _check_accumulator(x, w, axis, bias)
    inputs = (x, w) if bias is None else (x, w, bias)
    rounded = input_at(node, 7) is not None
    affine_out = affine(node, 7, 8, x.type.dtype) if rounded else None
    return RealForm(node, "Gemm", inputs, plain_attributes(node), affine_out)


def _matmul_to_float(node: ir.Node, _opset: int) -> RealForm:
    x, w = dequantized(node, 0, 2, 4), dequantized(node, 1, 3, 5, _last_axis(node, 1))
    _check_accumulator(x, w, w.type.axis)
    return RealForm(node, "MatMul", (x, w), addend=input_at(node, 6))


def _integer_chain(node: ir.Node, _opset: int) -> RealForm | None:
    """ConvInteger or MatMulInteger, Cast, Mul by the product of both scales."""
    followed = _scaled(node)
    if followed is None:
        return None
    covered, product = followed
    if product is None:
        raise NotLiftableError("its scale is computed at run time", "quantize it statically")
    is_conv = node.op_type == "ConvInteger"
    if is_conv and not feeds_quantize(covered[-1]):
        raise NotLiftableError("its result is not rounded, and float is the other way to get it")
    x_codes, w_codes = needed(node, 0), needed(node, 1)
    axis = 0 if is_conv else _last_axis(node, 1)
    scales = _split(_channel_scales(product, w_codes, is_conv=is_conv), x_codes)
    x = Dequantized(x_codes, _typed(node, 2, scales[0], x_codes, None))
    w = Dequantized(w_codes, _typed(node, 3, scales[1], w_codes, axis))
    _check_accumulator(x, w, axis if is_conv or not w.type.per_tensor else None)
    return RealForm(
        covered[-1],
        "Conv" if is_conv else "MatMul",
        (x, w),
        plain_attributes(node),
        covered=covered,
    )


def _scaled(node: ir.Node) -> tuple[tuple[ir.Node, ...], Array | None] | None:
    """The Cast and the Mul that turn an accumulator into reals, and the factor if constant."""
    cast = _only_reader(node)
    if cast is None or cast.op_type != "Cast":
        return None
    scaling = _only_reader(cast)
    to_float = cast.attributes.get_int("to", 0) == ir.DataType.FLOAT
    if scaling is None or scaling.op_type != "Mul" or not to_float:
        return None
    factor = scaling.inputs[1 if scaling.inputs[0] is cast.outputs[0] else 0]
    return (node, cast, scaling), constant_array(factor)


def _only_reader(node: ir.Node) -> ir.Node | None:
    output = node.outputs[0]
    if use_count(output) != 1 or output.is_graph_output():
        return None
    reader = next(iter(output.uses())).node
    return None if reader.domain or reader.graph is not node.graph else reader


def _channel_scales(factor: Array, weights: ir.Value, *, is_conv: bool) -> Array:
    """The factor as a scalar, or as one scale per output channel."""
    if factor.size == 1:
        return factor.reshape(())
    # Channels are axis 1 of a convolution's result, which has the rank of its weights.
    rank = 0 if weights.shape is None else len(weights.shape)
    behind = rank - 2 if is_conv else 0
    if factor.ndim <= behind or factor.shape[factor.ndim - 1 - behind] != factor.size:
        raise NotLiftableError("its scales follow another axis than the output channels")
    return factor.reshape(-1)


def _split(product: Array, codes: ir.Value) -> tuple[Array, Array]:
    """Scales of both operands whose float32 product is ``product`` exactly."""
    producer = codes.producer()
    if producer is not None and is_quantize(producer):
        known = constant_array(producer.inputs[1])
        if known is not None and known.size == 1 and known.dtype == np.float32:
            first = known.reshape(())
            second = np.asarray(product / first, np.float32)
            if np.array_equal(first * second, product):
                return first, second
    # The codes as they are: any other scale of the data would round.
    return np.ones((), np.float32), product


def _typed(
    node: ir.Node, zero_index: int, scale: Array, codes: ir.Value, axis: int | None
) -> AffineType:
    value = input_at(node, zero_index)
    zero = constant_array(value)
    if value is not None and zero is None:
        raise NotLiftableError("its zero point is computed at run time", "quantize it statically")
    dtype = codes.dtype if zero is None else ir.DataType.from_numpy(zero.dtype)
    if dtype is None:
        raise NotLiftableError("the type of its codes is not known", "infer shapes first")
    return affine_of(scale, zero, dtype, axis)


def _last_axis(node: ir.Node, index: int) -> int | None:
    shape = needed(node, index).shape
    return None if shape is None else len(shape) - 1


def _bias(value: ir.Value | None, x: AffineType, w: AffineType, alpha: float) -> Dequantized | None:
    """An int32 bias in units of s_x s_w alpha."""
    if value is None:
        return None
    codes = constant_array(value)
    if codes is None or codes.dtype != np.int32:
        raise NotLiftableError("its bias is computed at run time")
    units = np.asarray(x.scale * w.scale * np.float32(alpha), np.float32)
    axis = None if units.ndim == 0 else max(codes.ndim - 1, 0)
    zeros = np.zeros(units.shape, np.int32)
    return Dequantized(value, AffineType(units, zeros, ir.DataType.INT32, axis))


def _check_accumulator(
    x: Dequantized, w: Dequantized, axis: int | None, bias: Dequantized | None = None
) -> None:
    """Refuse what the fold would leave in float: lifted, it would only be slower."""
    codes = w.constants()
    if codes is None:
        if axis is not None:
            raise NotLiftableError("its weights are computed at run time")
        return
    axis = codes.ndim - 1 if axis is None else axis
    try:
        weights = accumulation_weights(w.type, codes, axis=axis)
        bias_in_codes(x.type, weights, _real_bias(bias, codes.shape[axis]), axis=axis)
    except InexactError as error:
        raise NotLiftableError(str(error), error.advice) from error


def _real_bias(bias: Dequantized | None, channels: int) -> Array | None:
    codes = None if bias is None else bias.constants()
    if bias is None or codes is None:
        return None
    if codes.size not in (1, channels):
        raise NotLiftableError("its bias is not one constant a channel")
    real = bias.type.dequantize(codes).astype(np.float64).reshape(-1)
    return np.broadcast_to(real, (channels,))


RULES: dict[str, LiftRule] = {
    "ConvInteger": _integer_chain,
    "MatMulInteger": _integer_chain,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    f"{CONTRIB}::MatMulIntegerToFloat": _matmul_to_float,
    f"{CONTRIB}::QGemm": _gemm,
    f"{CONTRIB}::QLinearConv": _conv,
}
"""Linear operators by domain and type."""
