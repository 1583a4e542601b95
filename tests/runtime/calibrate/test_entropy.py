"""entropy: the divergence as the reference formula has it, and its least value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxfold.runtime.calibrate.entropy import (
    EMPTY,
    LEVELS,
    STRIDE,
    Entropy,
    divergences,
    even_counts,
)
from onnxfold.runtime.calibrate.histogram import BINS_PER_SIDE, Histogram

Values = npt.NDArray[Any]


def _reference(counts: Values, start: int, end: int) -> float:
    """KL(P || Q), step by step as in the slides."""
    inside = counts[start:end].astype(np.float64)
    reference: Values = np.array(inside)
    reference[0] += counts[:start].sum()
    reference[-1] += counts[end:].sum()
    candidate = np.zeros_like(inside)
    for level in range(LEVELS):
        low = level * inside.size // LEVELS
        high = (level + 1) * inside.size // LEVELS
        filled: Values = reference[low:high] > 0
        if filled.any():
            mass = max(inside[low:high].sum(), EMPTY)
            candidate[low:high][filled] = mass / filled.sum()
    seen = reference > 0
    p: Values = reference[seen] / reference.sum()
    q: Values = candidate[seen] / inside.sum()
    return float(np.sum(p * np.log(p / q)))


def _histogram(kind: str) -> Histogram:
    rng = np.random.default_rng(0)
    values = rng.normal(size=50_000)
    if kind == "relu":
        values = np.maximum(values, 0)
    elif kind == "heavy":
        values = rng.standard_t(2, size=50_000)
    elif kind == "sparse":
        values = np.rint(values * 20)
    elif kind == "far":
        values = values * 0.1 + 5
    histogram = Histogram()
    histogram.update(values.astype(np.float32))
    return histogram


KINDS = ["normal", "relu", "heavy", "sparse", "far"]


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_are_those_of_the_reference(kind: str) -> None:
    counts = even_counts(_histogram(kind))
    used = np.flatnonzero(counts)
    rng = np.random.default_rng(1)
    starts = rng.integers(max(used[0] - 5, 0), used[0] + used.size // 3, 12)
    ends = np.maximum(rng.integers(used[-1] - used.size // 3, used[-1] + 2, 12), starts + LEVELS)
    found = divergences(counts, starts, np.minimum(ends, counts.size))
    expected = [
        _reference(counts, start, min(end, counts.size))
        for start, end in zip(starts, ends, strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert np.all(found >= -1e-9)


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy"])
def test_the_range_has_the_least_divergence(kind: str) -> None:
    histogram = _histogram(kind)
    counts = even_counts(histogram)
    used = np.flatnonzero(counts)
    first, end = int(used[0]), int(used[-1]) + 1
    best = (np.inf, 0)
    for reach in range(max(BINS_PER_SIDE - first, end - BINS_PER_SIDE), 0, -8 * STRIDE):
        start, stop = max(BINS_PER_SIDE - reach, first), min(BINS_PER_SIDE + reach, end)
        if stop - start >= LEVELS:
            best = min(best, (_reference(counts, start, stop), reach))
    low, high = Entropy().search(histogram)
    assert low == -high
    reach = round(high / histogram.width)
    found = _reference(counts, max(BINS_PER_SIDE - reach, first), min(BINS_PER_SIDE + reach, end))
    assert found <= best[0] + 1e-12


def test_heavy_tails_are_cut_off() -> None:
    """What calibrators with as many bins as levels cannot do: all their candidates are one."""
    histogram = _histogram("heavy")
    found = Entropy().range(histogram)
    assert found is not None
    assert found[1] < histogram.extremes.high / 2


def test_the_zeros_of_a_relu_say_nothing() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=50_000)).astype(np.float32) + 0.01
    without, with_zeros = Histogram(), Histogram()
    without.update(values)
    with_zeros.update(np.concatenate([values, np.zeros(200_000, np.float32)]))
    alone, beside = Entropy().range(without), Entropy().range(with_zeros)
    assert alone is not None
    assert beside is not None
    assert beside[1] == alone[1]
