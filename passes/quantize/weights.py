"""Scales of constant weights and biases, chosen so that int32 accumulation cannot overflow.

An accumulator holds sum(q_x q_w) - z_x sum(q_w) + q_b with q_b = b / (s_x s_w). Weights and bias
share int32 evenly: the products may take 2**30 and the bias 2**30. Where a channel's plain scale
max|w| / 127 would break that (a dead channel with a bias, or a very long sum), it is raised.
Products of 16-bit activations are not accumulated in int32: for them only the bias counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS, AffineType, symmetric_weights
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.quantize.row_scales import type_of_blocks, type_of_channels
from onnxfold.passes.quantize.schemes import WeightRanges
from onnxfold.passes.quantize.weight_ranges import least_error_scales

_BUDGET = 2.0**30
_LARGEST_ACTIVATION = 255


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """The weights of one linear operator as codes, and its bias where that becomes codes too.

    Attributes:
        index: Which input of the node the weights are.
        weights: Codes, of the weights' shape.
        weight_type: What the codes stand for.
        bias: int32 codes [out_channels]; None where there is no bias or it stays in float.
        bias_type: What they stand for: scale s_x * s_w, zero point 0.
    """

    index: int
    weights: Array
    weight_type: AffineType
    bias: Array | None = None
    bias_type: AffineType | None = None


def quantize_weights(
    node: ir.Node,
    data_type: AffineType,
    *,
    per_channel: bool,
    ranges: WeightRanges = "max",
    dtype: ir.DataType = ir.DataType.INT8,
    block: int = 0,
    importance: Array | None = None,
) -> QuantizedWeights | None:
    """Quantize the constant second operand of a linear ``node``.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        data_type: The type of its first operand.
        per_channel: One scale per output channel, where the format can express it.
        ranges: How scales are chosen.
        dtype: Signed types are symmetric, unsigned ones have zero points.
        block: Weights along the input channels that share a scale; 0 for all of them. With
            blocks a bias stays in float, as there is no one scale for its codes.
        importance: For ``hessian``, how much the squared error of each weight counts, of the
            weights' shape; None where it is not known.

    Returns:
        None where the second operand is not constant.
    """
    array = constant_array(node.inputs[1])
    if array is None:
        return None
    linear = LinearOp.match(node)
    if linear is None or linear.weight_index != 1:
        weight_type = _plain_type(array, None, dtype, ranges, 0.0, importance)
        return QuantizedWeights(1, _codes(weight_type, array), weight_type)
    if block:
        weight_type = type_of_blocks(array, linear.input_axis, block, dtype, ranges)
        return QuantizedWeights(1, _codes(weight_type, array), weight_type)
    axis = _channel_axis(linear) if per_channel else None
    bias = _integer_bias(linear)
    lowest = _lowest_scales(linear, axis, data_type, bias)
    weight_type = _plain_type(array, axis, dtype, ranges, lowest, importance)
    codes = _codes(weight_type, array)
    if bias is None:
        return QuantizedWeights(1, codes, weight_type)
    # The very product, in float32, that a runtime computes and compares with.
    scale = np.asarray(data_type.scale * weight_type.scale, dtype=np.float32)
    zero_point = np.zeros(scale.shape, np.int32)
    bias_type = AffineType(scale, zero_point, ir.DataType.INT32, None if axis is None else 0)
    bias_codes = np.rint(bias / scale.astype(np.float64)).astype(np.int32)
    return QuantizedWeights(1, codes, weight_type, bias_codes, bias_type)


def _channel_axis(linear: LinearOp) -> int | None:
    """The axis with one scale per output channel; None where no single axis counts them."""
    if linear.node.op_type == "ConvTranspose" and linear.groups > 1:
        return None
    return linear.output_axis


def _integer_bias(linear: LinearOp) -> Array | None:
    """The bias to quantize, float64 [out_channels]; None where there is none or it must not be."""
    if linear.bias is None or linear.alpha != 1.0 or linear.beta != 1.0:
        return None
    return linear.channel_bias


def _codes(weight_type: AffineType, array: Array) -> Array:
    """Codes as symmetric as the type: a weight that is clipped does not become -128."""
    codes = weight_type.quantize(array)
    low, high = weight_type.limits
    if low == 0 or weight_type.block:
        return codes
    return np.maximum(codes.astype(np.int32), -high).astype(codes.dtype)


def _lowest_scales(
    linear: LinearOp, axis: int | None, data_type: AffineType, bias: Array | None
) -> Array:
    """The scales below which int32 would overflow, float32 [channels] or a scalar."""
    needed: Array = np.zeros(linear.weight_shape[linear.output_axis])
    if data_type.dtype in (ir.DataType.INT8, ir.DataType.UINT8):
        sums = np.abs(linear.weights.astype(np.float64)).sum(axis=linear.reduction_axes)
        needed = sums * (_LARGEST_ACTIVATION / _BUDGET)
    if axis is None:
        needed = needed.max(initial=0.0)
    if bias is not None:
        for_bias = np.abs(bias) / (float(data_type.scale) * _BUDGET)
        needed = np.maximum(needed, for_bias.max(initial=0.0) if axis is None else for_bias)
    return np.asarray(needed, np.float32)


def _plain_type(
    weights: Array,
    axis: int | None,
    dtype: ir.DataType,
    ranges: WeightRanges,
    lowest: Array | float,
    importance: Array | None,
) -> AffineType:
    """The type without blocks, with scales of at least ``lowest``."""
    low, magnitude = INTEGER_LIMITS[dtype]
    if low == 0:
        plain = type_of_channels(weights, axis, dtype, ranges)
    else:
        plain = symmetric_weights(weights, axis, dtype, magnitude)
    scale: Array = np.asarray(np.maximum(plain.scale, lowest), np.float32)
    raised = replace(plain, scale=scale)
    if ranges == "max" or low == 0:
        return raised
    rows = _channels(weights, axis)
    limits: Array = np.broadcast_to(lowest, scale.shape).reshape(-1)
    counts = None
    if ranges == "hessian" and importance is not None:
        counts = _channels(importance, axis)
    scales = least_error_scales(scale.reshape(-1), limits, rows, magnitude, counts)
    return replace(raised, scale=scales.reshape(scale.shape))


def _channels(array: Array, axis: int | None) -> Array:
    """The elements that share a scale, row by row."""
    if axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
