"""Losses against TensorFlow, scikit-learn, statsmodels and torch: 200 random cases each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fixtures.vectors.loss_cases import Case, load
from fixtures.vectors.losses import PACKAGES, asked, path_of
from onnxfold.passes.loss.registry import LOSSES

Run = Callable[..., npt.NDArray[Any]]


TOLERANCE = 1e-6
SSIM_TOLERANCE = 2e-6  # TensorFlow's float32 itself is 1.2e-6 from float64, ours half of that


def disagreements(
    cases: Iterable[Case], run: Run, tolerance: float | None = None, **how: Any
) -> list[str]:
    found: list[str] = []
    for case in cases:
        result = run(case.loss, *case.inputs, tensors=case.tensors, **how)
        assert result.shape == case.expected.shape, case.loss
        scale = max(1.0, float(np.abs(case.expected).max()))
        error = float(np.abs(result - case.expected).max()) / scale
        allowed = tolerance or (SSIM_TOLERANCE if "ssim" in case.loss else TOLERANCE)
        if not error <= allowed:
            found.append(f"{case.loss}: {error:.2g}, {result} for {case.expected}")
    return found


@pytest.fixture(scope="module", params=PACKAGES)
def stored(request: pytest.FixtureRequest) -> list[Case]:
    cases = load(path_of(request.param))
    assert len(cases) == 200
    return cases


def test_stored_cases(stored: list[Case], run: Run) -> None:
    assert not disagreements(stored, run)


def test_stored_cases_optimized_with_dynamic_sizes(stored: list[Case], run: Run) -> None:
    assert not disagreements(stored[::4], run, dynamic=True, optimize=True)


def test_stored_cases_in_float64_in_onnxruntime(run: Run) -> None:
    """Kernels exist for float64, and none overflows as the definitions of operators do."""
    cases = load(path_of("torch"))[:17]
    wide = [
        replace(each, inputs=[x if x.dtype.kind == "i" else x.astype(float) for x in each.inputs])
        for each in cases
    ]
    assert not disagreements(wide, run, 1e-11)


def test_stored_cases_in_float64(run_reference: Run) -> None:
    """The formulas themselves, without float32's rounding."""
    assert not disagreements(load(path_of("torch")), run_reference, 1e-11)


def test_the_cases_name_losses_that_exist() -> None:
    named = {each.loss.partition("{")[0] for package in PACKAGES for each in load(path_of(package))}
    assert named == set(LOSSES) - {"semi-hard-triplet"}  # of none of these packages


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_live_cases(package: str, run: Run) -> None:
    pytest.importorskip(package, exc_type=ImportError)
    for seed in (1, 2):
        assert not disagreements(asked(package, seed), run)
