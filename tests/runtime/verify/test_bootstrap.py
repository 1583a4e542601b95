from __future__ import annotations

import math

import numpy as np
import pytest

from onnxfold.passes.constants import Array
from onnxfold.runtime.verify.bootstrap import Indices, mean_interval, statistic_interval
from onnxfold.runtime.verify.bounds import student_quantile


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
    assert statistic_interval(lambda _: math.inf, 5) == (-math.inf, math.inf)


def test_a_mean_has_the_interval_of_students_t() -> None:
    values = np.random.default_rng(3).normal(10, 1, 12)

    def mean(chosen: Indices) -> float:
        return float(values[chosen].mean())

    deviation = float(values.std(ddof=1)) / math.sqrt(12)
    low, high = statistic_interval(mean, 12)
    # 2.200985 is the quantile in every table.
    assert low == pytest.approx(mean(np.arange(12)) - 2.200985 * deviation, rel=1e-6)
    assert high == pytest.approx(mean(np.arange(12)) + 2.200985 * deviation, rel=1e-6)


@pytest.mark.parametrize(("degrees", "wanted"), [(1, 12.706205), (4, 2.776445), (49, 2.009575)])
def test_quantiles_of_students_t(degrees: int, wanted: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(wanted, rel=1e-6)


def test_most_intervals_of_a_ratio_hold_it() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        x, y = rng.exponential(1, 120), rng.exponential(2, 120)

        def ratio(chosen: Indices, x: Array = x, y: Array = y) -> float:
            return float(y[chosen].sum() / x[chosen].sum())

        low, high = statistic_interval(ratio, 120)
        held += low <= 2 <= high
    assert 0.9 <= held / 200 <= 0.99
