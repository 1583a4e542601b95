"""mse: the error of a range as quantizing the values has it, and its least value."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.affine import affine_from_range
from onnxfold.runtime.calibrate.histogram import Histogram
from onnxfold.runtime.calibrate.mse import Mse
from onnxfold.runtime.calibrate.reconstruction import Density

Values = npt.NDArray[Any]


def _values(kind: str, size: int = 20_000) -> Values:
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(size=size),
        "relu": np.maximum(rng.normal(size=size), 0),
        "laplace": rng.laplace(size=size),
        "skewed": rng.gamma(1.5, size=size) - 0.3,
        "negative": -rng.gamma(2.0, size=size),
        "shifted": rng.normal(size=size) * 0.1 + 3,
        "outliers": np.concatenate([rng.normal(size=size), [50, -20, 45]]),
    }
    return values[kind].astype(np.float32)


KINDS = ["normal", "relu", "laplace", "skewed", "negative", "shifted", "outliers"]


def _histogram(values: Values) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def _squared_error(values: Values, low: float, high: float) -> float:
    codes = affine_from_range(low, high, ir.DataType.UINT8)
    real = codes.dequantize(codes.quantize(values)).astype(np.float64)
    return float(np.sum((real - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_that_of_quantizing_the_values(kind: str) -> None:
    values = _values(kind, 200_000)
    low, high = float(values.min()), float(values.max())
    ranges = [(low, high), (low * 0.7, high * 0.8), (low * 0.3, high * 0.5), (low / 20, high / 20)]
    expected = [_squared_error(values, *each) for each in ranges]
    lows = np.array([low for low, _ in ranges])
    highs = np.array([high for _, high in ranges])
    for density in (Density.of(_histogram(values)), Density.coarse(_histogram(values))):
        assert density.counts.sum() == values.size
        assert density.squared_error(lows, highs) == pytest.approx(expected, rel=0.06)


def test_few_values_count_where_they_are() -> None:
    values = np.array([0.0, 1.0, 2.0], np.float32)
    density = Density.of(_histogram(values))
    found = density.squared_error(np.zeros(2), np.array([2.0, 1.0]))
    assert found[0] < 1e-4
    assert found[1] == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_range_of_a_grid_is_nearer(kind: str) -> None:
    values = _values(kind)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    factors = np.linspace(0.04, 1.0, 25)
    grid = product(low * factors if low else [0.0], high * factors if high else [0.0])
    best = min(_squared_error(values, *each) for each in grid)
    found = Mse().range(_histogram(values))
    assert found is not None
    assert _squared_error(values, *found) <= 1.02 * best
    assert _squared_error(values, *found) <= 1.02 * _squared_error(values, low, high)
