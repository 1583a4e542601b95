"""Histogram: bit-identical however it is split, and what is read from it close to the exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxfold.runtime.calibrate.histogram import BINS_PER_SIDE, Histogram
from onnxfold.runtime.calibrate.percentile import Percentile

arrays = hnp.arrays(
    np.float32,
    st.integers(0, 20),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def _histogram(*shards: npt.NDArray[Any]) -> Histogram:
    histogram = Histogram()
    for shard in shards:
        histogram.update(shard)
    return histogram


@settings(deadline=None, max_examples=50)
@given(st.lists(arrays, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_shards_in_any_order_give_the_same_bits(
    shards: list[npt.NDArray[Any]], random: Any
) -> None:
    whole = _histogram(np.concatenate(shards))
    random.shuffle(shards)
    half = len(shards) // 2
    merged = _histogram(*shards[:half])
    merged.merge(_histogram(*shards[half:]))
    for other in (_histogram(*shards), merged):
        assert other.exponent == whole.exponent
        assert np.array_equal(other.counts, whole.counts)
        assert Percentile(99.9).range(other) == Percentile(99.9).range(whole)


@settings(deadline=None, max_examples=50)
@given(arrays.filter(lambda array: array.size > 0))
def test_every_value_is_counted_in_its_bin(values: npt.NDArray[Any]) -> None:
    histogram = _histogram(values)
    bins = np.trunc(values.astype(np.float64) / 2.0**histogram.exponent).astype(np.int64)
    expected = np.bincount(bins + BINS_PER_SIDE - 1, minlength=2 * BINS_PER_SIDE - 1)
    assert np.array_equal(histogram.counts, expected)


@pytest.mark.parametrize("size", [32_767, 32_768, 32_769, 100_000])
def test_large_arrays_are_counted_to_the_last_value(size: int) -> None:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    whole, in_parts = _histogram(values), _histogram(*np.array_split(values, 7))
    assert whole.counts.sum() == size
    assert np.array_equal(whole.counts, in_parts.counts)


def test_the_larger_side_uses_at_least_half_of_its_bins() -> None:
    counts = _histogram(np.linspace(0, 5.0, 100_000, dtype=np.float32)).counts
    assert np.count_nonzero(counts) >= BINS_PER_SIDE // 2


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
@pytest.mark.parametrize("name", ["normal", "relu", "skewed", "outlier"])
def test_percentiles_are_within_a_bin_of_the_exact_ones(name: str, percentile: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200_000).astype(np.float32)
    if name == "relu":
        values = np.maximum(values, 0)
    elif name == "skewed":
        values = np.exp(values)
    elif name == "outlier":
        values[7] = 100.0
    histogram = _histogram(*np.array_split(values, 13))
    found = Percentile(percentile).range(histogram)
    assert found is not None
    tail = (100.0 - percentile) / 200.0
    exact = np.quantile(values.astype(np.float64), [tail, 1.0 - tail])
    width = 2.0**histogram.exponent
    # Between two sparse samples the exact quantile may lie some bins further.
    assert np.abs(np.array(found) - exact).max() <= max(2 * width, 0.02 * np.abs(exact).max())


def test_the_whole_is_the_exact_range() -> None:
    values = np.array([-3.25, 0.5, 7.125], np.float32)
    assert Percentile(100.0).range(_histogram(values)) == (-3.25, 7.125)


def test_zeros_and_tiny_values_have_a_range() -> None:
    assert Percentile(99.0).range(_histogram(np.zeros(5, np.float32))) == (0.0, 0.0)
    tiny = np.array([1e-45, -1e-40], np.float32)
    found = Percentile(100.0).range(_histogram(tiny))
    assert found == (float(tiny.min()), float(tiny.max()))


def test_nothing_seen_is_no_range() -> None:
    assert Percentile(99.0).range(Histogram()) is None
    assert Percentile(99.0).range(_histogram(np.zeros((0, 3), np.float32))) is None


def test_half_precision_counts_like_single() -> None:
    values = np.linspace(-1, 1, 101).astype(np.float16)
    assert np.array_equal(_histogram(values).counts, _histogram(values.astype(np.float32)).counts)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match=r"NaN|infinite"):
        _histogram(np.array([0.0, value], np.float32))


@settings(deadline=None, max_examples=50)
@given(arrays.filter(lambda array: array.size > 0))
def test_every_value_lies_between_the_edges_of_its_bin(values: npt.NDArray[Any]) -> None:
    histogram = _histogram(values)
    edges = histogram.edges()
    assert edges.size == histogram.counts.size + 1
    assert np.all(np.diff(edges) >= 0)
    bins = np.trunc(values.astype(np.float64) / histogram.width).astype(np.int64)
    bins += BINS_PER_SIDE - 1
    assert np.all(edges[bins] <= values)
    assert np.all(values <= edges[bins + 1])


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_order_statistics_are_within_a_bin_and_exact_at_the_ends(size: int) -> None:
    values = np.sort(np.random.default_rng(size).normal(size=size).astype(np.float32))
    histogram = _histogram(values)
    found = [histogram.order_statistic(rank) for rank in range(1, size + 1)]
    assert (found[0], found[-1]) == (values[0], values[-1])
    assert np.abs(np.array(found) - values).max() <= 2 * histogram.width


@pytest.mark.parametrize("offset", [0.0, -3.0, 100.0])
def test_moments_are_those_of_the_values(offset: float) -> None:
    values = (np.random.default_rng(0).gamma(2.0, size=100_000) + offset).astype(np.float32)
    histogram = _histogram(values)
    mean, deviation = histogram.moments()
    assert mean == pytest.approx(values.mean(dtype=np.float64), abs=histogram.width / 50)
    assert deviation == pytest.approx(values.std(dtype=np.float64), abs=histogram.width / 50)
