"""Every declared case against central differences, and against what torch said."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from fixtures.gradients import FAMILIES
from fixtures.gradients.case import NOT_IN_OLDEST, VECTORS, Array, GradientCase, cases
from fixtures.gradients.check import check_gradient, relative_error
from onnxfold.runtime.session import max_opset_version, version

ALL = [(family, case) for family in FAMILIES for case in cases(family)]


@functools.cache
def stored(family: str) -> dict[str, Array]:
    with np.load(VECTORS / f"gradients_{family}.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("family", "case"), ALL, ids=[f"{family}-{case.name}" for family, case in ALL]
)
def test_a_case(family: str, case: GradientCase) -> None:
    if case.opset > max_opset_version():
        pytest.skip("onnxruntime is older")
    if case.name in NOT_IN_OLDEST and version().startswith("1.23."):
        pytest.skip("onnxruntime 1.23 does not run it forwards")
    vectors = stored(family)
    found = check_gradient(
        case.text, case.arrays(), case.differentiated(), opset=case.opset, **case.options
    )
    for name, gradient in found.gradients.items():
        expected = vectors[f"{case.name}/{name}"]
        error = relative_error(gradient, expected)
        assert error <= case.tolerance, f"grad_{name} is off torch by {error:.2g}"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_vector_is_left_over(family: str) -> None:
    wanted = {f"{case.name}/{name}" for case in cases(family) for name in case.differentiated()}
    assert wanted == (set(stored(family)) if wanted else set())
