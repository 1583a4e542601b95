"""Learning codes of one layer: better than rounding to nearest, and never worse than what was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxfold.passes.quantize.rounding import Grid
from onnxfold.runtime.calibrate.adaround import RoundingOptions, RoundingTask, Rows, learn_codes

Array = npt.NDArray[Any]

GROUPS, OUTPUTS, INPUTS = 2, 16, 32
OPTIONS = RoundingOptions(steps=300, batch=64)


def _task(rng: np.random.Generator, **limits: float) -> RoundingTask:
    """Weights rounded to the nearest of 7 codes."""
    weights = rng.normal(size=(GROUPS, OUTPUTS, INPUTS))
    scale = np.abs(weights).max(axis=2, keepdims=True) / 3
    grid = Grid(scale, np.zeros_like(scale), -3, 3)
    bias = rng.normal(size=(GROUPS, OUTPUTS))
    return RoundingTask(weights, grid.nearest(weights), grid, bias, **limits)


def _rows(task: RoundingTask, rng: np.random.Generator, count: int = 512) -> Rows:
    """Inputs that go together, as those of real layers do, and what the real weights make of it."""
    mixing = np.random.default_rng(1).normal(size=(INPUTS, 3))
    inputs = np.einsum("grk,ik->gri", rng.normal(0.3, 1, (GROUPS, count, 3)), mixing)
    outputs = _outputs(task, task.weights, inputs)
    return Rows(inputs.astype(np.float32), outputs.astype(np.float32))


def _outputs(task: RoundingTask, weights: Array, inputs: Array) -> Array:
    outputs = inputs @ np.swapaxes(weights, 1, 2) + task.bias[:, np.newaxis]
    return np.clip(outputs, task.low, task.high)


def _error(task: RoundingTask, codes: Array, rows: Rows) -> Array:
    """Squared error of each output channel, [groups, outputs]."""
    found = _outputs(task, task.grid.reals(codes), rows.inputs)
    return np.square(found - rows.targets).mean(axis=1)


@pytest.mark.parametrize("limits", [{}, {"low": 0.0}, {"low": -1.0, "high": 2.0}])
def test_errors_of_weights_make_up_for_each_other(limits: dict[str, float]) -> None:
    rng = np.random.default_rng(2)
    task = _task(rng, **limits)
    codes = learn_codes(task, _rows(task, rng), _rows(task, rng), OPTIONS)
    fresh = _rows(task, rng)
    assert _error(task, codes, fresh).sum() < 0.4 * _error(task, task.codes, fresh).sum()
    exact = task.weights / task.grid.scale
    assert np.all(np.abs(codes - exact) <= 1)
    assert codes.min() >= -3
    assert codes.max() <= 3


def test_what_a_relu_hides_is_no_error() -> None:
    rng = np.random.default_rng(3)
    task = _task(rng, low=0.0)
    largest = np.where(np.arange(INPUTS) == INPUTS - 1, 3 * task.grid.scale, task.weights)
    relu = replace(task, weights=largest, codes=task.grid.nearest(largest))
    # Every other row makes all outputs very negative, and would make the largest errors.
    seen = _rows(relu, rng)
    hidden = rng.normal(size=seen.inputs.shape).astype(np.float32) * 20
    hidden[:, :, -1] = -500
    inputs = np.array(seen.inputs)
    inputs[:, ::2] = hidden[:, ::2]
    codes: list[Array] = []
    for each in (relu, replace(relu, low=-np.inf)):
        targets = _outputs(each, each.weights, inputs).astype(np.float32)
        rows = Rows(inputs, targets)
        codes.append(learn_codes(each, rows, rows, OPTIONS))
    aware, unaware = (_error(relu, each, seen).sum() for each in codes)
    assert aware < 0.5 * unaware


def test_codes_that_are_not_better_on_held_out_rows_are_not_taken() -> None:
    rng = np.random.default_rng(4)
    task = _task(rng)
    training, held_out = _rows(task, rng), _rows(task, rng)
    targets = np.array(training.targets)
    targets[0] = rng.normal(0, 10, (512, OUTPUTS))
    codes = learn_codes(task, replace(training, targets=targets), held_out, OPTIONS)
    np.testing.assert_array_equal(codes[0], task.codes[0])
    assert np.any(codes[1] != task.codes[1])
    assert np.all(_error(task, codes, held_out) <= _error(task, task.codes, held_out))


def test_codes_far_from_their_weights_can_be_kept() -> None:
    """Such as those of GPTQ, which already make up for each other."""
    rng = np.random.default_rng(5)
    task = _task(rng)
    shifted = replace(task, codes=np.clip(task.codes + 2, -3, 3))
    # These very codes are what is wanted.
    wanted = replace(task, weights=task.grid.reals(shifted.codes))
    rows = _rows(wanted, rng)
    codes = learn_codes(shifted, rows, rows, OPTIONS)
    np.testing.assert_array_equal(codes, shifted.codes)


def test_the_same_seed_gives_the_same_codes() -> None:
    task = _task(np.random.default_rng(6))
    rows = _rows(task, np.random.default_rng(7))
    first, second = (learn_codes(task, rows, rows, OPTIONS) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_dead_channels_and_no_rows_are_no_trouble() -> None:
    rng = np.random.default_rng(8)
    task = _task(rng)
    zeros = replace(task, weights=np.zeros_like(task.weights), codes=np.zeros_like(task.codes))
    rows = _rows(zeros, rng)
    np.testing.assert_array_equal(learn_codes(zeros, rows, rows, OPTIONS), zeros.codes)
    none = _rows(task, rng, count=0)
    np.testing.assert_array_equal(learn_codes(task, none, none, OPTIONS), task.codes)
