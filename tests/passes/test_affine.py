from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.affine import (
    INTEGER_LIMITS,
    AffineType,
    affine_from_range,
    symmetric_weights,
)

NUMBERS = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=100, deadline=None)
@given(NUMBERS, NUMBERS, st.sampled_from([ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16]))
def test_a_range_is_covered_and_zero_is_exact(a: float, b: float, dtype: ir.DataType) -> None:
    low, high = min(a, b), max(a, b)
    affine = affine_from_range(low, high, dtype)
    code_low, code_high = INTEGER_LIMITS[dtype]
    assert code_low <= int(affine.zero_point) <= code_high
    assert affine.dequantize(affine.quantize(np.zeros(1, np.float32))) == 0
    real_low, real_high = affine.real_limits()
    # Rounding the zero point shifts the covered range by up to half a step.
    assert real_low <= low + 0.501 * float(affine.scale)
    assert real_high >= high - 0.501 * float(affine.scale)


def test_codes_round_half_to_even_and_saturate() -> None:
    affine = AffineType(np.ones((), np.float32), np.zeros((), np.int8), ir.DataType.INT8)
    codes = affine.quantize(np.array([0.5, 1.5, -0.5, 300, -300], np.float32))
    assert codes.tolist() == [0, 2, 0, 127, -128]
    assert codes.dtype == np.int8


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_symmetric_weights(axis: int | None) -> None:
    weights = np.array([[1, -4, 2], [0, 8, -1]], np.float32)
    affine = symmetric_weights(weights, axis)
    expected = {0: [4, 8], 1: [1, 8, 2], -1: [1, 8, 2], None: 8}[axis]
    np.testing.assert_allclose(affine.scale * 127, expected, rtol=1e-6)
    assert affine.symmetric
    assert affine.axis == (1 if axis == -1 else axis)
    error = np.abs(affine.dequantize(affine.quantize(weights)) - weights)
    assert np.max(error) <= np.max(affine.scale) / 2 * 1.0001


def test_channels_without_weights_get_a_usable_scale() -> None:
    affine = symmetric_weights(np.zeros((2, 3), np.float32), 0)
    np.testing.assert_array_equal(affine.scale, [1, 1])


def test_equality_is_by_meaning() -> None:
    one = affine_from_range(-1, 1, ir.DataType.UINT8)
    assert one.same_as(affine_from_range(-1, 1, ir.DataType.UINT8))
    assert not one.same_as(affine_from_range(-1, 2, ir.DataType.UINT8))
    assert not one.same_as(affine_from_range(-1, 1, ir.DataType.INT8))
    assert one.per_tensor
    assert not one.symmetric
