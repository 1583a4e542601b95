"""The affine type of a quantized tensor: real = scale * (q - zero_point)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array

INTEGER_LIMITS: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}
"""Smallest and largest code of each quantized type."""


@dataclass(frozen=True, eq=False)
class AffineType:
    """How the codes of a tensor stand for real numbers: real = scale * (q - zero_point).

    Attributes:
        scale: float32; a scalar per tensor, 1-D of shape [C] per channel, or per block of the
            tensor's rank, with one element for each block along ``axis``. Positive.
        zero_point: Integer codes of ``dtype``, of the same shape as ``scale``.
        dtype: The type of the codes.
        axis: The axis of channels or blocks (non-negative), None per tensor.
        block: Elements along ``axis`` that share a scale; 0 where there are no blocks.
    """

    scale: Array
    zero_point: Array
    dtype: ir.DataType
    axis: int | None = None
    block: int = 0

    @property
    def per_tensor(self) -> bool:
        """Whether one scale and zero point serve the whole tensor."""
        return self.axis is None

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return INTEGER_LIMITS[self.dtype]

    @property
    def reach(self) -> int:
        """The largest distance of a code from a zero point."""
        low, high = self.limits
        zeros = [int(each) for each in self.zero_point.reshape(-1)]
        return max(high - min(zeros), max(zeros) - low)

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 0."""
        return not np.any(self.zero_point)

    def same_as(self, other: AffineType) -> bool:
        """Whether equal codes stand for equal reals in both."""
        return (
            self.dtype == other.dtype
            and (self.axis, self.block) == (other.axis, other.block)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def real_limits(self) -> tuple[float, float]:
        """The smallest and largest real number that a code stands for."""
        low, high = self.limits
        zero = self.zero_point.astype(np.float64)
        scale = self.scale.astype(np.float64)
        return float(np.min(scale * (low - zero))), float(np.max(scale * (high - zero)))

    def quantize(self, real: Array) -> Array:
        """Codes of ``real``, as ONNX QuantizeLinear: round half to even, then saturate."""
        scale, zero_point = self._broadcast(real.shape)
        low, high = self.limits
        with np.errstate(over="ignore"):  # what overflows saturates
            steps = np.rint(real.astype(np.float32) / scale)
        codes = steps.astype(np.float64) + zero_point
        return np.clip(codes, low, high).astype(self.dtype.numpy())

    def dequantize(self, codes: Array) -> Array:
        """Reals (float32) that ``codes`` stand for, as ONNX DequantizeLinear."""
        scale, zero_point = self._broadcast(codes.shape)
        return (codes.astype(np.int64) - zero_point).astype(np.float32) * scale

    def exactly(self, codes: Array) -> Array:
        """The same in float64, for codes of more than 24 bits."""
        scale, zero_point = self._broadcast(codes.shape)
        return (codes.astype(np.int64) - zero_point) * scale.astype(np.float64)

    def _broadcast(self, of: tuple[int, ...]) -> tuple[Array, Array]:
        """Scale (float32) and zero point (int64), shaped to broadcast over a tensor."""
        zero_point = self.zero_point.astype(np.int64)
        if self.axis is None:
            return self.scale.reshape(()), zero_point.reshape(())
        if self.block:
            # The last block may be shorter than the others.
            positions = np.arange(of[self.axis]) // self.block
            scale: Array = np.take(self.scale, positions, axis=self.axis)
            return scale, np.take(zero_point, positions, axis=self.axis)
        shape = [1] * len(of)
        shape[self.axis] = -1
        return self.scale.reshape(shape), zero_point.reshape(shape)


def affine_from_range(low: float, high: float, dtype: ir.DataType) -> AffineType:
    """The per-tensor type whose codes cover [low, high], with zero represented exactly.

    Asymmetric: the range is widened to hold 0 and the zero point is rounded to a code, as in
    Jacob et al., "Quantization and Training of Neural Networks" (2018), section 3.

    Args:
        low: Smallest real number.
        high: Largest real number.
        dtype: Type of the codes.
    """
    code_low, code_high = INTEGER_LIMITS[dtype]
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (code_high - code_low))
    if not scale > np.finfo(np.float32).tiny:
        scale = np.float32(1.0)
    zero_point = np.clip(np.rint(code_low - low / float(scale)), code_low, code_high)
    return AffineType(np.asarray(scale, np.float32), np.array(zero_point, dtype.numpy()), dtype)


def symmetric_from_range(low: float, high: float, dtype: ir.DataType) -> AffineType:
    """The per-tensor type with its zero point in the middle whose codes cover [low, high].

    The middle is 0 for signed types, 128 for uint8 and 32768 for uint16.
    """
    largest = INTEGER_LIMITS[dtype][1]
    middle = 0 if INTEGER_LIMITS[dtype][0] < 0 else largest // 2 + 1
    scale = np.float32(max(abs(low), abs(high)) / (largest - middle))
    if not scale > np.finfo(np.float32).tiny:
        scale = np.float32(1.0)
    zero_point: Array = np.array(middle, dtype.numpy())
    return AffineType(np.asarray(scale, np.float32), zero_point, dtype)


def symmetric_weights(
    weights: Array, axis: int | None, dtype: ir.DataType = ir.DataType.INT8, magnitude: int = 127
) -> AffineType:
    """The symmetric type of constant weights: scale = max|w| / magnitude, zero point 0.

    Args:
        weights: float array of rank >= 1.
        axis: Output-channel axis for one scale a channel; None for one scale in all.
        dtype: Signed type of the codes.
        magnitude: Largest code used; below 127 it leaves head room (``reduce-range``).
    """
    axis = None if axis is None else axis % weights.ndim
    others = tuple(i for i in range(weights.ndim) if i != axis) if axis is not None else None
    largest = np.max(np.abs(weights.astype(np.float64)), axis=others, initial=0.0)
    scale: Array = np.asarray(largest / magnitude, dtype=np.float32)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1.0))
    return AffineType(scale, np.zeros(scale.shape, dtype.numpy()), dtype, axis)
