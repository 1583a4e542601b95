"""Scales and zero points of rows of weights, such as the blocks of a column or a lookup table.

For rows so many that nothing may be done row by row. With codes k fixed, the squared error
sum (w - s (k - z))^2 is least at s = A / B with A = sum w (k - z) and B = sum (k - z)^2, where it
is sum w^2 - A^2 / B; the codes are those of a range that is clipped a little more each time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS, AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.quantize.schemes import WeightRanges

_CLIPPING = np.linspace(1.0, 0.5, 21, dtype=np.float32)
_TINY = np.finfo(np.float32).tiny
_AT_ONCE = 1 << 17  # weights that are searched at once: what a core's cache holds


def type_of_blocks(
    weights: Array, axis: int, block: int, dtype: ir.DataType, ranges: WeightRanges = "max"
) -> AffineType:
    """The type of weights that share scales in blocks along one axis.

    Args:
        weights: float.
        axis: Along which blocks lie.
        block: Weights in a block; the last one may be shorter.
        dtype: Signed types are symmetric, unsigned ones have zero points.
        ranges: How scales are chosen.
    """
    axis %= weights.ndim
    moved = np.moveaxis(weights, axis, -1)
    missing = -moved.shape[-1] % block
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, missing)])
    scales, zeros = row_scales(padded.reshape(-1, block), dtype, ranges)
    shape = (*padded.shape[:-1], padded.shape[-1] // block)
    scale = np.ascontiguousarray(np.moveaxis(scales.reshape(shape), -1, axis))
    zero_point = np.ascontiguousarray(np.moveaxis(zeros.reshape(shape), -1, axis))
    return AffineType(scale, zero_point, dtype, axis, block)


def type_of_channels(
    weights: Array, axis: int | None, dtype: ir.DataType, ranges: WeightRanges = "max"
) -> AffineType:
    """The type of weights with one scale for each index along an axis, or one in all."""
    if axis is None:
        scales, zeros = row_scales(weights.reshape(1, -1), dtype, ranges)
        return AffineType(scales.reshape(()), zeros.reshape(()), dtype)
    axis %= weights.ndim
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    return AffineType(*row_scales(rows, dtype, ranges), dtype, axis)


def row_scales(
    rows: Array, dtype: ir.DataType, ranges: WeightRanges = "max"
) -> tuple[Array, Array]:
    """A scale and a zero point for each row.

    Args:
        rows: [rows, weights of a row], float.
        dtype: Signed types are symmetric, with zero point 0; of int8 -128 is not used.
        ranges: ``max`` clips nothing; ``mse`` has the least squared error that the search finds.

    Returns:
        float32 [rows] and codes of ``dtype`` [rows].
    """
    count = max(_AT_ONCE // max(rows.shape[1], 1), 1)
    found = [
        _search(rows[start : start + count].astype(np.float32), dtype, ranges)
        for start in range(0, max(len(rows), 1), count)
    ]
    scales = np.concatenate([scale for scale, _ in found])
    return scales, np.concatenate([zero for _, zero in found]).astype(dtype.numpy())


def _search(rows: Array, dtype: ir.DataType, ranges: WeightRanges) -> tuple[Array, Array]:
    lows = np.minimum(rows.min(axis=1, initial=0.0), 0.0)
    highs = np.maximum(rows.max(axis=1, initial=0.0), 0.0)
    best, zeros = _fit(lows, highs, dtype)
    if ranges == "max":
        return best, zeros
    least = np.full(len(rows), np.inf, np.float32)
    best_zeros = zeros
    steps = np.empty_like(rows)
    for ratio in _CLIPPING:
        scales, zeros = _fit(lows * ratio, highs * ratio, dtype)
        products, squares = _sums(rows, scales, zeros, _limits(dtype), steps)
        some = (squares > 0) & (products > 0)
        divisors = np.where(some, squares, np.float32(1.0))
        # Without the constant sum w^2.
        errors = np.where(some, -products * (products / divisors), np.float32(0.0))
        fitted = np.where(some, products / divisors, scales)
        wins = errors < least
        least = np.where(wins, errors, least)
        best = np.where(wins, np.maximum(fitted, _TINY), best)
        best_zeros = np.where(wins, zeros, best_zeros)
    return best, best_zeros


def _sums(
    rows: Array, scales: Array, zeros: Array, limits: tuple[int, int], steps: Array
) -> tuple[Array, Array]:
    """A and B of each row, with the codes of ``scales`` and ``zeros``; ``steps`` is overwritten."""
    np.divide(rows, scales[:, np.newaxis], out=steps)
    np.rint(steps, out=steps)
    column = zeros[:, np.newaxis]
    shifted = limits[0] == 0
    if shifted:
        steps += column
    np.clip(steps, *limits, out=steps)
    if shifted:
        steps -= column
    products: Array = np.einsum("ij,ij->i", rows, steps)
    squares: Array = np.einsum("ij,ij->i", steps, steps)
    return products, squares


def _fit(lows: Array, highs: Array, dtype: ir.DataType) -> tuple[Array, Array]:
    """Scales and zero points (as float32) for which codes reach from ``lows`` to ``highs``."""
    low, high = _limits(dtype)
    if low < 0:
        scales = np.maximum(lows / np.float32(low), highs / np.float32(high))
        scales = np.where(scales > _TINY, scales, np.float32(1.0)).astype(np.float32)
        return scales, np.zeros_like(scales)
    scales = (highs - lows) / np.float32(high - low)
    scales = np.where(scales > _TINY, scales, np.float32(1.0)).astype(np.float32)
    return scales, np.clip(np.rint(low - lows / scales), low, high).astype(np.float32)


def _limits(dtype: ir.DataType) -> tuple[int, int]:
    low, high = INTEGER_LIMITS[dtype]
    # Only where codes are few is the one that has no opposite worth using.
    return (low if high < np.iinfo(np.int8).max or low == 0 else -high), high
