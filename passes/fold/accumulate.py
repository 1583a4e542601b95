"""The algebra of an int32 accumulation: weights without zero points, bias codes, overflow.

y = s_x s_w (sum q_x q_w - z_x sum q_w - z_w sum q_x + K z_x z_w) + b. With z_w = 0 everything
but the first sum is constant per output channel, and b is added as round(b / (s_x s_w)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Linear, Operand
from onnxfold.passes.fold.types import is_wide

_INT8 = (-128, 127)
_ACCUMULATOR_LIMIT = 2**31 - 1
_WIDE_LIMIT = 2**52  # of the sum of both halves, which float64 holds exactly
_LARGEST_BYTE = 255
_FLOAT32_ROUNDING = 2.0**-22  # of a product of two scales, and of its product with a code
_MOST_CODES_MOVED = 1e-3
_SPARE_BITS = 2**24  # codes of a bias alone in its channel: as exact as float32


class InexactError(Exception):
    """The accumulation cannot be done exactly in int32; ``advice`` says what would help."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True, eq=False)
class Accumulator:
    """An accumulation that cannot overflow: int32, of halves of 16-bit codes int32 each.

    Attributes:
        w: The second operand, with raised scales where they had to be.
        bias_codes: [channels] in units of s_x s_w, or None; int64 beside 16-bit codes.
        bound: Its largest magnitude.
    """

    w: Operand
    bias_codes: Array | None
    bound: int


def accumulation_weights(affine: AffineType, codes: Array, *, axis: int) -> Operand:
    """Constant weights as int8 codes, with zero point 0 wherever int8 can hold q - z.

    Args:
        affine: Their type.
        codes: Their codes.
        axis: The axis of the output channels, which per-channel scales must follow.

    Raises:
        InexactError: The scales follow another axis, or the zero points cannot be expressed.
    """
    if affine.axis is not None and affine.axis != axis:
        raise InexactError(
            f"its weights have one scale per index of axis {affine.axis}",
            f"quantize the weights along the output channels, axis {axis}",
        )
    if affine.axis is not None and affine.scale.size != codes.shape[axis]:
        raise InexactError(f"its weights have {affine.scale.size} scales for another axis size")
    if affine.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        raise InexactError(f"its weights are {affine.dtype.name}", "quantize them to 8 bits")
    zero_point = affine.zero_point.astype(np.int64)
    if affine.axis is not None:
        zero_point = zero_point.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
    centred = codes.astype(np.int64) - zero_point
    if bool(np.all((centred >= _INT8[0]) & (centred <= _INT8[1]))):
        zeros = np.zeros(affine.scale.shape, np.int8)
        symmetric = AffineType(affine.scale, zeros, ir.DataType.INT8, affine.axis)
        return Operand(symmetric, None, centred.astype(np.int8))
    shift = 128 if affine.dtype == ir.DataType.UINT8 else 0
    zero_points = affine.zero_point.astype(np.int64) - shift
    if np.unique(zero_points).size != 1 and not _takes_zero_points(codes, axis):
        raise InexactError(
            "its weights have different zero points per channel", "quantize them symmetrically"
        )
    recoded = AffineType(affine.scale, zero_points.astype(np.int8), ir.DataType.INT8, affine.axis)
    return Operand(recoded, None, (codes.astype(np.int64) - shift).astype(np.int8))


def _takes_zero_points(codes: Array, axis: int) -> bool:
    """Whether integer kernels take a zero point a channel: for one matrix, by columns."""
    return codes.ndim == 2 and axis == 1


def negated_weights(w: Operand) -> Operand:
    """Constant weights of the opposite sign.

    Raises:
        InexactError: int8 holds no opposite of one of them.
    """
    assert w.codes is not None
    if not w.type.symmetric or bool(np.any(w.codes == _INT8[0])):
        raise InexactError("its weights have no opposites in int8", "quantize them to -127 .. 127")
    return Operand(w.type, None, np.negative(w.codes))


def channel_bias(
    constant: Array | None, channels: int | None, *, rank: int | None, axis: int
) -> Array | None:
    """A constant addend as one real (float64) a channel; None where it is not one.

    Args:
        constant: The addend.
        channels: Number of output channels.
        rank: Rank of what it is added to; None where unknown.
        axis: Its channel axis: 1, or -1 for the last.
    """
    if constant is None or channels is None or constant.dtype.kind != "f":
        return None
    if constant.ndim > (1 if rank is None else rank):
        return None
    if constant.size == 1:
        return np.full(channels, float(constant.reshape(-1)[0]))
    if axis == 1 and rank is None:
        return None
    from_back = 1 if axis == -1 or rank is None else rank - 1
    if constant.size != channels or constant.ndim < from_back:
        return None
    if constant.shape[constant.ndim - from_back] != channels:
        return None
    return constant.reshape(-1).astype(np.float64)


def bias_in_codes(x: AffineType, w: Operand, bias: Array | None, *, axis: int) -> Accumulator:
    """The bias in units of s_x s_w, after proving that no accumulator overflows int32.

    A channel whose weights are all zero takes any scale: there it is raised until the bias fits.

    Args:
        x: Type of the data.
        w: The second operand.
        bias: Real bias [channels] (float64), or None.
        axis: Axis of the output channels in constant weights.

    Raises:
        InexactError: The accumulator, or the bias alone, could leave int32.
    """
    if w.codes is None:
        return Accumulator(w, None, _sums_limit(x) * _sums_limit(w.type) // _ACCUMULATOR_LIMIT)
    magnitude = _largest_sums(x, w.type, w.codes, axis)
    largest = _bound(magnitude, _sums_limit(x))
    if bias is None:
        return Accumulator(w, None, largest)
    scale = np.broadcast_to(w.type.scale.astype(np.float64), bias.shape)
    units = _units(x, w, bias)
    dead = (magnitude == 0) & (np.abs(bias / units) > _SPARE_BITS)
    if bool(np.any(dead)):
        raised = np.abs(bias) / (float(x.scale) * _SPARE_BITS)
        w = _with_scales(w, np.where(dead, raised, scale), axis)
        units = _units(x, w, bias)
    codes = np.rint(bias / units)
    wide = is_wide(x)
    bound = _bound(magnitude + np.abs(codes), _WIDE_LIMIT if wide else _ACCUMULATOR_LIMIT)
    return Accumulator(w, codes.astype(np.int64 if wide else np.int32), bound)


def _sums_limit(affine: AffineType) -> int:
    """How large sums may become so that int32 holds those of codes, or of either half of them."""
    return _ACCUMULATOR_LIMIT * max(affine.reach, _LARGEST_BYTE) // _LARGEST_BYTE


def _units(x: AffineType, w: Operand, bias: Array) -> Array:
    """s_x s_w of each channel (float64), rounded to the float32 it is written as.

    Another fold reads the same codes then, of however many bits.
    """
    units = np.broadcast_to(np.asarray(x.scale * w.type.scale, np.float64), bias.shape)
    return np.maximum(units, np.finfo(np.float32).tiny)


def _largest_sums(x: AffineType, affine: AffineType, codes: Array, axis: int) -> Array:
    """Per channel, the largest |sum (q_x - z_x)(q_w - z_w)| that any input can give."""
    others = tuple(i for i in range(codes.ndim) if i != axis)
    zeros = affine.zero_point.astype(np.int64)
    if zeros.ndim:
        zeros = zeros.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
    centred = np.abs(codes.astype(np.int64) - zeros)
    return np.sum(centred, axis=others) * x.reach


def _bound(magnitude: Array, limit: int) -> int:
    """The largest of ``magnitude``, which ``limit`` must hold."""
    if bool(np.any(magnitude > limit)):
        raise InexactError(
            f"an int32 accumulator could overflow (up to {float(np.max(magnitude)):.3g})",
            "raise the scale of the weights in that channel",
        )
    return int(np.max(magnitude, initial=0))


def _with_scales(w: Operand, scale: Array, axis: int) -> Operand:
    zeros = np.broadcast_to(w.type.zero_point, scale.shape).astype(np.int8)
    affine = AffineType(scale.astype(np.float32), zeros, w.type.dtype, axis)
    return Operand(affine, None, w.codes)


def bias_is_exact(linear: Linear) -> bool:
    """Whether the int32 codes of the bias stand for its numbers, to float32 rounding."""
    assert linear.bias_codes is not None
    assert linear.bias is not None
    unit: Array = np.asarray(linear.x.type.scale * linear.w.type.scale, np.float64)
    return np.allclose(linear.bias_codes * unit, linear.bias, rtol=_FLOAT32_ROUNDING, atol=0.0)


def residual_bias(linear: Linear) -> Array | None:
    """The bias (float64, [channels]) where the int32 accumulator does not hold it; else None."""
    return None if linear.bias is None or bias_is_exact(linear) else linear.bias


def has_coarse_bias(linear: Linear) -> bool:
    """Whether rounding the bias to int32 changes more codes than the INTEGER contract allows.

    A bias that is off by a fraction of a code moves as large a share of the results to the next.
    """
    if linear.bias is None or linear.bias_codes is None or linear.type is None:
        return False
    unit: Array = np.asarray(linear.x.type.scale * linear.w.type.scale, np.float64)
    off = np.abs(linear.bias - linear.bias_codes * unit) / float(linear.type.scale)
    return float(np.mean(off)) > _MOST_CODES_MOVED


def accumulator_type(linear: Linear) -> AffineType | None:
    """The type of the int32 accumulator of an unrounded product; None where its rank is unknown.

    With a scale a channel, both the axis and how it is broadcast depend on the rank.

    None as well where int32 does not hold it. Where the bias falls between its codes, it is not in
    them: see ``residual_bias``.
    """
    if linear.bound > _ACCUMULATOR_LIMIT:
        return None
    scale: Array = np.asarray(linear.x.type.scale * linear.w.type.scale, np.float32)
    zeros = np.zeros(scale.shape, np.int32)
    if scale.ndim == 0:
        return AffineType(scale, zeros, ir.DataType.INT32)
    if linear.output.shape is None:
        return None
    if linear.operator.op_type == "Conv":
        return AffineType(scale, zeros, ir.DataType.INT32, 1)
    return AffineType(scale, zeros, ir.DataType.INT32, len(linear.output.shape) - 1)
