"""Scales of constant weights and biases, chosen so that int32 accumulation cannot overflow.

An accumulator holds sum(q_x q_w) - z_x sum(q_w) + q_b with q_b = b / (s_x s_w). Weights and bias
share int32 evenly: the products may take 2**30 and the bias 2**30. Where a channel's plain scale
max|w| / 127 would break that (a dead channel with a bias, or a very long sum), it is raised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType, symmetric_weights
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.quantize.weight_ranges import least_error_scales

WeightRanges: TypeAlias = Literal["max", "mse"]
"""How a weight scale is chosen: so that nothing is clipped, or by the least squared error."""

_BUDGET = 2.0**30
_LARGEST_ACTIVATION = 255
_MAGNITUDE = 127


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
) -> QuantizedWeights | None:
    """Quantize the constant second operand of a linear ``node`` to int8, symmetric.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        data_type: The type of its first operand.
        per_channel: One scale per output channel, where the format can express it.
        ranges: How scales are chosen.

    Returns:
        None where the second operand is not constant.
    """
    array = constant_array(node.inputs[1])
    if array is None:
        return None
    linear = LinearOp.match(node)
    if linear is None or linear.weight_index != 1:
        weight_type = _of_least_error(symmetric_weights(array, None), array, ranges, 0.0)
        return QuantizedWeights(1, _codes(weight_type, array), weight_type)
    axis = _channel_axis(linear) if per_channel else None
    bias = _integer_bias(linear)
    weight_type = _weight_type(linear, axis, data_type, bias, ranges)
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
    return np.maximum(weight_type.quantize(array), np.int8(-_MAGNITUDE))


def _weight_type(
    linear: LinearOp,
    axis: int | None,
    data_type: AffineType,
    bias: Array | None,
    ranges: WeightRanges,
) -> AffineType:
    """Symmetric int8, with the scales raised where int32 would overflow."""
    weights = linear.weights
    plain = symmetric_weights(weights, axis)
    sums = np.abs(weights.astype(np.float64)).sum(axis=linear.reduction_axes)
    needed = sums * (_LARGEST_ACTIVATION / _BUDGET)
    if axis is None:
        needed = needed.max(initial=0.0)
    if bias is not None:
        for_bias = np.abs(bias) / (float(data_type.scale) * _BUDGET)
        needed = np.maximum(needed, for_bias.max(initial=0.0) if axis is None else for_bias)
    lowest = np.asarray(needed, np.float32)
    scale: Array = np.asarray(np.maximum(plain.scale, lowest), np.float32)
    raised = AffineType(scale, plain.zero_point, plain.dtype, axis)
    return _of_least_error(raised, weights, ranges, lowest)


def _of_least_error(
    kind: AffineType, weights: Array, ranges: WeightRanges, lowest: Array | float
) -> AffineType:
    """``kind`` with the scales that ``ranges`` asks for, at least ``lowest``."""
    if ranges == "max":
        return kind
    rows = weights.reshape(1, -1)
    if kind.axis is not None:
        rows = np.moveaxis(weights, kind.axis, 0).reshape(weights.shape[kind.axis], -1)
    limits: Array = np.broadcast_to(lowest, kind.scale.shape).reshape(-1)
    scales = least_error_scales(kind.scale.reshape(-1), limits, rows, _MAGNITUDE)
    return replace(kind, scale=scales.reshape(kind.scale.shape))
