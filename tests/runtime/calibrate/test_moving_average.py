"""moving-average: the weights, their order, and a memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfold.runtime.calibrate.moving_average import MovingAverage, RecentExtremes


def _sample(low: float, high: float) -> np.ndarray:
    return np.array([low, high], np.float32)


def _average(method: MovingAverage, lows: np.ndarray) -> tuple[float, float] | None:
    observer = method.new_observer()
    for number, low in enumerate(lows):
        observer.update(_sample(low, low + 1), number)
    return method.range(observer)


@pytest.mark.parametrize("constant", [0.01, 0.1, 0.5, 0.99])
def test_it_is_the_recursion_with_its_start_taken_out(constant: float) -> None:
    lows = np.random.default_rng(0).integers(-50, 50, 3000).astype(np.float64)
    state = weight = 0.0
    for low in lows:
        state = (1 - constant) * state + constant * low
        weight = (1 - constant) * weight + constant
    found = _average(MovingAverage(constant), lows)
    assert found == pytest.approx((state / weight, state / weight + 1), rel=1e-12)


def test_of_few_samples_it_is_nearly_the_mean() -> None:
    assert _average(MovingAverage(1e-6), np.arange(5.0)) == pytest.approx((2.0, 3.0), rel=1e-4)


def test_the_order_matters_by_number_and_not_by_arrival() -> None:
    method = MovingAverage(0.5)
    forward, backward, renumbered = (method.new_observer() for _ in range(3))
    for number in range(4):
        forward.update(_sample(-number, 1), number)
        backward.update(_sample(number - 3, 1), 3 - number)
        renumbered.update(_sample(-number, 1), 3 - number)
    assert method.range(forward) == method.range(backward)
    assert method.range(forward) != method.range(renumbered)


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    observer = MovingAverage(0.2).new_observer()
    other = MovingAverage(0.2).new_observer()
    for number in range(5000):
        (observer if number % 2 else other).update(_sample(-1, 1), number)
    observer.merge(other)
    assert len(observer.samples) <= observer.horizon < 300


def test_equal_samples_give_their_very_extremes() -> None:
    method = MovingAverage(0.3)
    observer = method.new_observer()
    for number in range(100):
        observer.update(_sample(-0.1, 0.7), number)
    assert method.range(observer) == (np.float32(-0.1), np.float32(0.7))


def test_an_observer_tells_the_age_of_each_sample() -> None:
    observer = RecentExtremes(3)
    for number in (5, 1, 4):
        observer.update(_sample(number, number), number)
    assert observer.recent() == [(1, 4.0, 4.0), (0, 5.0, 5.0)]
