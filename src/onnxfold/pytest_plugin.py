"""The pytest plugin: equivalence of models as an assertion.

Installed with onnxfold; a test asks for the fixture::

    def test_rewrite(assert_equivalent):
        assert_equivalent("model.onnx", "rewritten.onnx", data="samples.npz")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onnxfold.runtime.verify.compare import Comparison


@pytest.fixture(scope="session")
def assert_equivalent() -> Callable[..., Comparison]:
    """A function that fails the test unless a candidate model is equivalent to a reference.

    It takes what ``onnxfold.verify`` takes (reference, candidate, ``data``, ``contract``,
    ``budget``; the contract by name, too) and returns the comparison.
    """

    def check(reference: Any, candidate: Any, **options: Any) -> Comparison:
        # Imported late: pytest loads this plugin in every project that has onnxfold installed.
        from onnxfold import verify

        __tracebackhide__ = True
        comparison = verify(reference, candidate, **options)
        if not comparison.verdict.passed:
            reasons = "\n  ".join(comparison.verdict.reasons)
            pytest.fail(f"not equivalent:\n  {reasons}", pytrace=False)
        return comparison

    return check
