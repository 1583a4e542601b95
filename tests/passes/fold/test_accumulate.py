"""The algebra of the int32 accumulation, against int64 and float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.accumulate import (
    InexactError,
    accumulation_weights,
    bias_in_codes,
    channel_bias,
)
from onnxfold.passes.fold.lowering import Operand


def _type(scale: object, zero_point: object, dtype: ir.DataType, axis: int | None = None):
    return AffineType(
        np.asarray(scale, np.float32), np.asarray(zero_point, dtype.numpy()), dtype, axis
    )


X = _type(0.02, 120, ir.DataType.UINT8)


@pytest.mark.parametrize(
    ("dtype", "zero_point"),
    [(ir.DataType.INT8, 0), (ir.DataType.INT8, -40), (ir.DataType.UINT8, 128),
     (ir.DataType.UINT8, 0), (ir.DataType.UINT8, 117)],
)  # fmt: skip
def test_recoded_weights_stand_for_the_same_reals(dtype: ir.DataType, zero_point: int) -> None:
    numbers = np.random.default_rng(0)
    info = np.iinfo(dtype.numpy())
    codes = numbers.integers(info.min, info.max, (6, 5), endpoint=True).astype(dtype.numpy())
    affine = _type(0.01, zero_point, dtype)
    recoded = accumulation_weights(affine, codes, axis=1)
    assert recoded.codes is not None
    assert recoded.codes.dtype == np.int8
    np.testing.assert_array_equal(recoded.type.dequantize(recoded.codes), affine.dequantize(codes))


def test_zero_point_is_removed_where_int8_can_hold_the_difference() -> None:
    affine = _type([0.1, 0.2], [3, -7], ir.DataType.INT8, axis=0)
    codes = np.array([[1, 2], [3, 4]], np.int8)
    recoded = accumulation_weights(affine, codes, axis=0)
    assert recoded.type.symmetric
    assert recoded.codes is not None
    assert recoded.codes.tolist() == [[-2, -1], [10, 11]]


def _exact(x: Array, w: Operand, bias_codes: Array | None) -> Array:
    """The exact integer model: int64 accumulator of (q_x - z_x)(q_w - z_w), plus the bias."""
    assert w.codes is not None
    left = x.astype(np.int64) - int(X.zero_point)
    right = w.codes.astype(np.int64) - int(w.type.zero_point.reshape(-1)[0])
    return left @ right + (0 if bias_codes is None else bias_codes.astype(np.int64))


def test_accumulator_times_its_scale_is_the_real_result() -> None:
    numbers = np.random.default_rng(1)
    codes = numbers.integers(-127, 128, (64, 8)).astype(np.int8)
    affine = _type(numbers.uniform(0.004, 0.02, 8), np.zeros(8), ir.DataType.INT8, axis=1)
    bias = numbers.standard_normal(8)
    total = bias_in_codes(X, accumulation_weights(affine, codes, axis=1), bias, axis=1)
    w, bias_codes = total.w, total.bias_codes
    x = numbers.integers(0, 256, (16, 64)).astype(np.uint8)
    units = float(X.scale) * affine.scale.astype(np.float64)
    real = _exact(x, w, bias_codes) * units
    wanted = X.dequantize(x).astype(np.float64) @ affine.dequantize(codes).astype(np.float64) + bias
    # The bias is rounded to half a unit; everything else is exact up to float32 inputs.
    assert float(np.max(np.abs(real - wanted) / units)) < 0.51


def test_bound_is_reached_and_not_exceeded() -> None:
    """The largest accumulator fits exactly up to the depth that range analysis allows."""
    fits = 2**31 // (135 * 127)
    weights = Operand(_type(0.01, 0, ir.DataType.INT8), None, np.full((fits, 1), 127, np.int8))
    bias_in_codes(X, weights, None, axis=1)
    deeper = np.full((fits + 1, 1), 127, np.int8)
    with pytest.raises(InexactError, match="could overflow"):
        bias_in_codes(X, Operand(weights.type, None, deeper), None, axis=1)


def test_dead_channel_takes_a_larger_scale_for_its_bias() -> None:
    codes = np.array([[0, 5], [0, -5]], np.int8)
    affine = _type([1e-12, 0.01], [0, 0], ir.DataType.INT8, axis=1)
    bias = np.array([3.0, 1.0])
    total = bias_in_codes(X, Operand(affine, None, codes), bias, axis=1)
    w, bias_codes = total.w, total.bias_codes
    assert bias_codes is not None
    real = bias_codes * float(X.scale) * w.type.scale.astype(np.float64)
    np.testing.assert_allclose(real, bias, rtol=1e-4)
    assert float(w.type.scale[1]) == float(affine.scale[1])


def test_scales_along_another_axis_are_refused() -> None:
    affine = _type([0.1, 0.2], [0, 0], ir.DataType.INT8, axis=0)
    with pytest.raises(InexactError, match="axis 0"):
        accumulation_weights(affine, np.ones((2, 2), np.int8), axis=1)


@pytest.mark.parametrize(
    ("shape", "rank", "axis", "fits"),
    [
        ((4,), None, -1, True),
        ((1, 4), None, -1, False),
        ((1, 4), 2, -1, True),
        ((1, 1, 4), None, -1, False),
        ((1, 1, 4), 3, -1, True),
        ((1, 4, 1, 1), 4, 1, True),
        ((4, 1, 1), 4, 1, True),
        ((4,), 4, 1, False),
        ((1, 1, 4, 1), 4, 1, False),
        ((), 4, 1, True),
        ((4, 1), 2, -1, False),
        ((1, 4), None, 1, False),
    ],
)
def test_only_one_constant_a_channel_is_a_bias(
    shape: tuple[int, ...], rank: int | None, axis: int, fits: bool
) -> None:
    constant = np.ones(shape, np.float32)
    assert (channel_bias(constant, 4, rank=rank, axis=axis) is not None) == fits
