"""Weight scales of least squared error: exact for short channels, never worse than max|w| / 127."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.affine import affine_from_range
from onnxfold.passes.quantize.weight_ranges import least_error_scales
from onnxfold.passes.quantize.weights import QuantizedWeights, WeightRanges, quantize_weights

Array = npt.NDArray[Any]
DATA = affine_from_range(-1.0, 3.0, ir.DataType.UINT8)


def _error(rows: Array, scales: Array, magnitude: int) -> Array:
    wide = scales.astype(np.float64)[:, None]
    codes = np.clip(np.rint(rows / wide), -magnitude, magnitude)
    error: Array = np.square(rows - codes * wide).sum(axis=1)
    return error


def _full(rows: Array, magnitude: int) -> Array:
    scales: Array = (np.abs(rows).max(axis=1) / magnitude).astype(np.float32)
    return scales


def _best(rows: Array, magnitude: int = 127, lowest: Array | None = None) -> Array:
    full = _full(rows, magnitude)
    return least_error_scales(full, np.zeros_like(full) if lowest is None else lowest, rows, 127)


def test_what_is_kept_is_asked_for_by_all_that_matters() -> None:
    rows = np.random.default_rng(5).normal(size=(4, 9))
    full, lowest = _full(rows, 127), np.zeros(4, np.float32)
    weights = np.arange(1.0, 37.0).reshape(4, 9) ** 4
    plain = least_error_scales(full, lowest, rows, 127)
    others = (
        least_error_scales(full, lowest, rows, 7),
        least_error_scales(full, 2 * full, rows, 127),
        least_error_scales(full, lowest, rows, 127, weights),
    )
    assert not any(np.array_equal(plain, each) for each in others)
    plain += 1
    assert not np.array_equal(plain, least_error_scales(full, lowest, rows, 127))


@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_no_scale_of_a_fine_grid_is_better(size: int) -> None:
    rows = np.random.default_rng(size).normal(size=(8, size))
    full, best = _full(rows, 127), _best(rows)
    found = _error(rows, best, 127)
    for ratio in np.linspace(0.3, 1.4, 20_001):
        assert np.all(found <= _error(rows, full * ratio, 127) * (1 + 1e-3) + 1e-12)


def test_an_outlier_is_clipped_where_that_pays() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 20_000))
    rows[1, 0] = 60.0
    full, best = _full(rows, 127), _best(rows)
    assert best[0] == pytest.approx(full[0], rel=0.2)
    # The optimum of (60 - 127 s)^2 + 20,000 s^2 / 12, written down by hand.
    assert best[1] == pytest.approx(127 * 60 / (127**2 + 20_000 / 12), rel=0.02)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 200),
    st.floats(-20, 20),
    st.sampled_from(["normal", "heavy", "sparse", "grid"]),
)
def test_never_worse_than_the_full_range(seed: int, size: int, log: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, size)) if kind != "heavy" else rng.standard_t(1.5, size=(3, size))
    if kind == "sparse":
        rows *= rng.random(rows.shape) < 0.2
    if kind == "grid":
        rows = np.rint(rows * 20)
    rows = (rows * 10.0**log).astype(np.float32)
    full = np.maximum(_full(rows, 127), np.finfo(np.float32).tiny)
    lowest: Array = (full * rng.choice([0.0, 0.9, 1.0], 3)).astype(np.float32)
    best = least_error_scales(full, lowest, rows, 127)
    assert best.dtype == np.float32
    assert np.all(best >= lowest)
    old, new = _error(rows, full, 127), _error(rows, best, 127)
    # Both are measured in float32 by the search: a tie may come out either way.
    assert np.all(new <= old * (1 + 1e-4) + np.square(rows.astype(np.float64)).sum(axis=1) * 1e-12)


def _weighted(rows: Array, scales: Array, magnitude: int, importance: Array) -> Array:
    wide = scales.astype(np.float64)[:, None]
    codes = np.clip(np.rint(rows / wide), -magnitude, magnitude)
    error: Array = (importance * np.square(rows - codes * wide)).sum(axis=1)
    return error


@pytest.mark.parametrize("magnitude", [7, 127])
@pytest.mark.parametrize("size", [1, 3, 30])
def test_by_importance_no_scale_of_a_fine_grid_is_better(size: int, magnitude: int) -> None:
    rng = np.random.default_rng(size)
    rows, importance = rng.normal(size=(8, size)), np.exp(rng.normal(size=(8, size)) * 2)
    full = _full(rows, magnitude)
    best = least_error_scales(full, np.zeros_like(full), rows, magnitude, importance)
    found = _weighted(rows, best, magnitude, importance)
    for ratio in np.linspace(0.5, 1.4, 5_001):
        other = _weighted(rows, full * ratio, magnitude, importance)
        assert np.all(found <= other * (1 + 1e-3) + 1e-12)


def test_importance_only_counts_in_proportion() -> None:
    rng = np.random.default_rng(2)
    rows, importance = rng.normal(size=(5, 40)), rng.uniform(size=(5, 40))
    full = _full(rows, 7)
    none = np.zeros_like(full)
    plain = least_error_scales(full, none, rows, 7)
    assert np.array_equal(least_error_scales(full, none, rows, 7, np.full((5, 40), 3e30)), plain)
    assert np.array_equal(least_error_scales(full, none, rows, 7, np.zeros((5, 40))), full)
    weighted = least_error_scales(full, none, rows, 7, importance)
    assert not np.array_equal(weighted, plain)
    assert np.array_equal(least_error_scales(full, none, rows, 7, importance * 2.0**-90), weighted)


def test_weights_on_a_grid_are_met_exactly() -> None:
    rows = np.random.default_rng(1).integers(-127, 128, size=(4, 30)) * 0.25
    rows[:, 0] = 127 * 0.25
    assert np.array_equal(_best(rows), np.full(4, 0.25, np.float32))


def _quantize(weights: Array, ranges: WeightRanges, **kwargs: Any) -> QuantizedWeights:
    inputs = [ir.val("x", ir.DataType.FLOAT)]
    inputs += [
        ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in (("w", weights), ("b", np.zeros(weights.shape[0], np.float32)))
    ]
    node = ir.node("Conv", inputs)
    ir.Graph(inputs[:1], node.outputs, nodes=[node], initializers=inputs[1:])
    quantized = quantize_weights(node, DATA, ranges=ranges, **kwargs)
    assert quantized is not None
    return quantized


@pytest.mark.parametrize("per_channel", [True, False])
def test_codes_stay_symmetric_and_the_bias_follows_the_scale(per_channel: bool) -> None:
    weights = np.random.default_rng(2).normal(size=(6, 1, 3, 3)).astype(np.float32)
    weights[:, 0, 0, 0] = -9.0
    error: dict[str, float] = {}
    for ranges in ("max", "mse"):
        quantized = _quantize(weights, ranges, per_channel=per_channel)
        assert quantized.weights.min() >= -127
        kind, bias = quantized.weight_type, quantized.bias_type
        assert bias is not None
        product: Array = np.asarray(DATA.scale * kind.scale, np.float32)
        assert np.array_equal(bias.scale, product)
        error[ranges] = float(np.square(kind.dequantize(quantized.weights) - weights).sum())
    assert error["mse"] < error["max"] * (0.8 if per_channel else 0.99)


def test_depthwise_kernels_gain_three_decibels() -> None:
    weights = np.random.default_rng(3).normal(size=(256, 1, 3, 3)).astype(np.float32)
    noise = [
        float(np.square(kind.dequantize(each.weights) - weights).sum())
        for each in (_quantize(weights, ranges, per_channel=True) for ranges in ("max", "mse"))
        for kind in (each.weight_type,)
    ]
    assert 10 * np.log10(noise[0] / noise[1]) > 3.0


def test_int32_still_holds_a_long_sum() -> None:
    quantized = _quantize(np.ones((1, 70_000, 1, 1), np.float32), "mse", per_channel=True)
    assert 0 < quantized.weights.astype(np.int64).sum() * 255 <= 2**30 + 70_000 * 255
