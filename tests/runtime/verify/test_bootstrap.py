from __future__ import annotations

import math

import numpy as np
import pytest

from onnxfold.runtime.verify.bootstrap import Indices, mean_interval, statistic_interval


def test_skewed_samples_give_the_interval_that_scipy_gives() -> None:
    # scipy.stats.bootstrap(method="BCa", n_resamples=200_000) gives 0.7456 to 1.4142.
    rng = np.random.default_rng(0)
    rng.normal(size=30)
    low, high = mean_interval(rng.exponential(size=25))
    assert low == pytest.approx(0.7456, abs=0.01)
    assert high == pytest.approx(1.4142, abs=0.03)


def test_the_interval_turns_round_with_its_values() -> None:
    values = np.random.default_rng(1).exponential(size=40)
    low, high = mean_interval(values)
    turned = mean_interval(-values)
    assert turned == pytest.approx((-high, -low), abs=0.01)


def test_most_intervals_hold_the_mean() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        low, high = mean_interval(rng.exponential(size=40) - 1, resamples=1000)
        held += low <= 0 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_equal_values_leave_no_doubt() -> None:
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_what_is_not_finite_bounds_nothing() -> None:
    assert mean_interval(np.array([0.0, math.nan])) == (-math.inf, math.inf)
    assert statistic_interval(lambda _: math.inf, 5, resamples=10) == (-math.inf, math.inf)


def test_any_statistic_has_an_interval() -> None:
    values = np.random.default_rng(3).normal(10, 1, 50)

    def median(chosen: Indices) -> float:
        return float(np.median(values[chosen]))

    low, high = statistic_interval(median, 50, resamples=500)
    assert 9.4 < low < 10 < high < 10.6
    assert statistic_interval(median, 50, resamples=500) == (low, high)
