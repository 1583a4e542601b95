"""Rounding by quadratic error: against brute force, GPTQ as published, and on any threads."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.quantize.rounding import (
    Grid,
    cholesky,
    damped,
    descend,
    nearest_plane,
    quadratic_error,
)

Array = npt.NDArray[Any]


def _problem(
    seed: int, groups: int, outputs: int, inputs: int, magnitude: int = 7
) -> tuple[Array, Grid, Array]:
    """Weights, a symmetric grid a row, and moments of inputs that go together."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(groups, outputs, inputs))
    scale = np.abs(weights).max(axis=2, keepdims=True) / magnitude * np.ones(inputs)
    mixing = rng.normal(size=(groups, inputs, inputs)) + 2.0
    hessian = np.einsum("gik,gjk->gij", mixing, mixing) / inputs
    return weights, Grid(scale, np.zeros_like(scale), -magnitude, magnitude), hessian


def _error(codes: Array, weights: Array, grid: Grid, hessian: Array) -> Array:
    return quadratic_error(grid.reals(codes) - weights, hessian)


@pytest.mark.parametrize(("groups", "size"), [(1, 1), (3, 7), (2, 64), (1, 65), (2, 150)])
def test_cholesky_is_that_of_lapack(groups: int, size: int) -> None:
    _, _, hessian = _problem(0, groups, 1, size)
    firm = damped(hessian, 0.01)
    np.testing.assert_allclose(cholesky(firm), np.linalg.cholesky(firm), rtol=1e-9, atol=1e-9)


def _published_gptq(weights: Array, grid: Grid, hessian: Array) -> Array:
    """GPTQ's algorithm 1 with the order of activations, one group, one column at a time."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    upper = np.transpose(np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])))
    work: Array = np.array(weights[:, order])
    codes: Array = np.empty_like(work)
    for k in range(work.shape[1]):
        place: tuple[Any, ...] = (0, slice(None), order[k])
        codes[:, k] = grid.nearest(work[:, k], place)
        error: Array = (work[:, k] - grid.reals(codes[:, k], place)) / upper[k, k]
        work[:, k:] -= np.outer(error, upper[k, k:])
    restored: Array = np.empty_like(codes)
    restored[:, order] = codes
    return restored


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_plane_is_gptq(seed: int) -> None:
    weights, grid, hessian = _problem(seed, 1, 20, 33)
    hessian = damped(hessian, 0.05)
    found = nearest_plane(weights, grid, hessian)
    assert np.array_equal(found[0], _published_gptq(weights[0], grid, hessian[0]))


def test_groups_are_rounded_each_for_itself() -> None:
    weights, grid, hessian = _problem(1, 4, 3, 9)
    together = nearest_plane(weights, grid, damped(hessian, 0.01))
    together = descend(weights, together, grid, damped(hessian, 0.01), 9)
    for group in range(4):
        part = slice(group, group + 1)
        own = Grid(grid.scale[part], grid.zero[part], grid.low, grid.high)
        firm = damped(hessian[part], 0.01)
        alone = descend(weights[part], nearest_plane(weights[part], own, firm), own, firm, 9)
        assert np.array_equal(together[part], alone)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_against_all_codes(seed: int, inputs: int) -> None:
    weights, grid, hessian = _problem(seed, 1, 4, inputs, magnitude=2)
    every = np.array(list(itertools.product(range(-2, 3), repeat=inputs)), float)
    errors = [
        _error(np.broadcast_to(each, weights.shape), weights, grid, hessian) for each in every
    ]
    best = np.min(errors, axis=0)
    firm = damped(hessian, 1e-9)
    found = descend(weights, nearest_plane(weights, grid, firm), grid, firm, 50)
    error = _error(found, weights, grid, hessian)
    assert np.all(error >= best - 1e-9)
    if inputs == 1:
        np.testing.assert_allclose(error, best, atol=1e-9)


def test_of_few_inputs_many_rows_are_best_of_all() -> None:
    weights, grid, hessian = _problem(3, 1, 200, 4, magnitude=2)
    every = np.array(list(itertools.product(range(-2, 3), repeat=4)), float)
    differences = grid.reals(every[:, np.newaxis], (0,)) - weights[0]
    best = np.einsum("noi,ij,noj->no", differences, hessian[0], differences).min(axis=0)
    firm = damped(hessian, 1e-9)
    error = _error(
        descend(weights, nearest_plane(weights, grid, firm), grid, firm, 50), weights, grid, hessian
    )
    plain = _error(grid.nearest(weights), weights, grid, hessian)
    assert np.mean(error[0] <= best + 1e-9) > 0.4
    assert error.sum() < plain.sum() / 3


def test_descent_ends_where_no_single_code_gains() -> None:
    weights, grid, hessian = _problem(4, 2, 5, 12)
    plain = grid.nearest(weights)
    found = descend(weights, plain, grid, hessian, 100)
    least = _error(found, weights, grid, hessian)
    assert np.all(least <= _error(plain, weights, grid, hessian))
    assert not np.array_equal(found, plain)
    for k in range(12):
        for step in (-1.0, 1.0):
            other: Array = np.array(found)
            other[:, :, k] = np.clip(other[:, :, k] + step, grid.low, grid.high)
            assert np.all(_error(other, weights, grid, hessian) >= least - 1e-9)


def test_each_sweep_leaves_less_error() -> None:
    weights, grid, hessian = _problem(5, 1, 30, 40)
    errors = [
        _error(descend(weights, grid.nearest(weights), grid, hessian, n), weights, grid, hessian)
        for n in range(4)
    ]
    for more, less in itertools.pairwise(errors):
        assert np.all(less <= more + 1e-9)
    assert errors[1].sum() < errors[0].sum() / 2


def test_dead_inputs_keep_the_nearest_codes() -> None:
    weights, grid, hessian = _problem(6, 2, 4, 6)
    hessian[:, 2] = hessian[:, :, 2] = 0.0
    hessian[1] = 0.0
    firm = damped(hessian, 0.01)
    found = descend(weights, nearest_plane(weights, grid, firm), grid, firm, 9)
    plain = grid.nearest(weights)
    assert np.array_equal(found[:, :, 2], plain[:, :, 2])
    assert np.array_equal(found[1], plain[1])
    assert np.array_equal(descend(weights, plain, grid, np.zeros_like(hessian), 9), plain)


def test_codes_stay_within_limits_and_have_zero_points() -> None:
    weights, _, hessian = _problem(7, 1, 8, 10)
    scale = np.full(weights.shape, 0.2)
    grid = Grid(scale, np.full(weights.shape, 6.0), 0, 15)
    firm = damped(hessian, 0.01)
    found = descend(weights, nearest_plane(weights, grid, firm), grid, firm, 9)
    assert found.min() >= 0
    assert found.max() <= 15
    plain = grid.nearest(weights)
    assert _error(found, weights, grid, firm).sum() < _error(plain, weights, grid, firm).sum()


def _digest() -> str:
    weights, grid, hessian = _problem(8, 1, 50, 300)
    firm = damped(hessian, 0.01)
    codes = descend(weights, nearest_plane(weights, grid, firm), grid, firm, 3)
    return hashlib.sha256(codes.tobytes() + cholesky(firm).tobytes()).hexdigest()


def test_threads_change_no_bit() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    script = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('rounding_test', {__file__!r});"
        "module = importlib.util.module_from_spec(spec); sys.modules['rounding_test'] = module;"
        "spec.loader.exec_module(module); print(module._digest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.strip() == _digest()
