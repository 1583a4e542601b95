"""What the gate of an export lets pass: rounding of what is a quantity, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxfold.runtime.export.proof import FrameworkGate
from onnxfold.runtime.verify.comparer import Comparer


def _passes(wanted: Any, got: Any) -> bool:
    comparer = Comparer()
    comparer.add({"y": wanted}, {"y": got})
    return comparer.judge(FrameworkGate()).passed


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_codes_may_be_a_step_apart(dtype: str) -> None:
    codes = np.arange(8).astype(dtype)
    assert _passes(codes, codes + 1)
    assert not _passes(codes, codes + 2)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "bool", "object"])
def test_what_counts_or_decides_is_the_same(dtype: str) -> None:
    values = np.array([0, 1, 1, 0]).astype(dtype)
    others = np.array([0, 1, 0, 0]).astype(dtype)
    if dtype == "object":
        values, others = values.astype(str).astype(object), others.astype(str).astype(object)
    assert _passes(values, values)
    assert not _passes(values, others)


def test_one_decision_in_a_thousand_may_be_another() -> None:
    values: Any = np.zeros(2000, bool)
    others = values.copy()
    others[:2] = True
    assert _passes(values, others)
    others[2] = True
    assert not _passes(values, others)
