"""Losses of real predictions: weights, targets that do not vary, ratios without noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxfold.passes.errors import UsageError

Array = npt.NDArray[Any]
Run = Callable[..., Array]
Build = Callable[..., Any]
X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_weights(run_variant: Run, name: str) -> None:
    losses = run_variant(f"{name}{{reduction=none}}", X, Y)
    weights = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = run_variant(f"{name}{{weighted}}", X, Y, weights)
    np.testing.assert_allclose(found, np.average(losses, weights=weights), rtol=1e-6)
    found = run_variant(f"{name}{{weighted reduction=sum}}", X, Y, weights)
    np.testing.assert_allclose(found, (losses * weights).sum(), rtol=1e-6)
    assert run_variant(f"{name}{{weighted}}", X, Y, np.zeros_like(X)) == 0


def test_a_single_number(run_variant: Run) -> None:
    assert run_variant("mse", np.array([3], np.float32), np.array([1], np.float32)) == 4


def test_each_output_has_its_own_determination(run_variant: Run) -> None:
    total = ((Y - Y.mean(0)) ** 2).sum(0)
    expected = 1 - ((Y - X) ** 2).sum(0) / total
    found = run_variant("r-squared{reduction=none}", X, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(run_variant("r-squared", X, Y), expected.mean(), rtol=1e-5)


def test_a_large_mean_does_not_drown_the_variance(run: Run) -> None:
    targets = np.array([4096, 4097, 4098, 4099], np.float32)
    predictions = targets + np.array([0.5, 0, 0, 0], np.float32)
    np.testing.assert_allclose(run("r-squared", predictions, targets), 0.95, rtol=1e-6)


def test_targets_that_do_not_vary(run_variant: Run) -> None:
    ones = np.ones(3, np.float32)
    assert run_variant("r-squared", ones, ones) == 1
    assert run_variant("r-squared", ones * 2, ones) == 0


def test_ratios_without_noise_or_signal(run_variant: Run) -> None:
    zeros = np.zeros_like(X)
    ratios = run_variant("sqnr{over=samples reduction=none}", X, np.concatenate([X[:4], Y[4:]]))
    assert ratios[:4].tolist() == [np.inf] * 4
    assert np.isfinite(ratios[4])
    assert run_variant("sqnr", X, zeros) == -np.inf
    assert run_variant("sqnr", zeros, zeros) == np.inf
    assert run_variant("sqnr", zeros, X) == 0


def test_shapes_that_do_not_fit(build: Build) -> None:
    with pytest.raises(UsageError, match="predictions must have 1 or 2 dimensions, not 3"):
        build("r-squared", [np.zeros((2, 3, 4), np.float32)])
    with pytest.raises(UsageError, match="must have an axis of samples and at least one more"):
        build("sqnr{over=samples}", [np.zeros(3, np.float32)])
