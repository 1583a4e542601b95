from __future__ import annotations

from collections.abc import Iterable

import pytest

from onnxfold.runtime.verify import region_gate
from onnxfold.runtime.verify.region_gate import region_differences, region_holds
from onnxfold.runtime.verify.regions import RegionResult


@pytest.mark.parametrize(
    ("elements", "mismatches", "largest", "quantized", "holds"),
    [
        (1000, 0, 0.0, True, True),
        (10**6, 900, 1.0, True, True),
        (10**6, 1200, 1.0, True, False),
        (30, 1, 1.0, True, True),
        (30, 4, 1.0, True, False),
        (10**6, 1, 2.0, True, False),
        (1000, 0, 9e-6, False, True),
        (1000, 1, 2e-5, False, False),
    ],
)
def test_limits_of_a_region(
    elements: int, mismatches: int, largest: float, quantized: bool, holds: bool
) -> None:
    assert region_holds(RegionResult("z", elements, mismatches, largest, quantized)) == holds


def test_worst_regions_are_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: object) -> Iterable[RegionResult]:
        yield RegionResult("fine", 1000, 0, 0.0, True)
        yield RegionResult("one", 1000, 50, 1.0, True)
        yield RegionResult("three", 1000, 1, 3.0, True)
        yield RegionResult("real", 1000, 2, 0.5, False)

    monkeypatch.setattr(region_gate, "check_regions", found)
    model = None
    reasons = region_differences(model, model, [])  # pyright: ignore[reportArgumentType]
    assert reasons == (
        "region 'three': 1 of 1000 differ, the largest by 3 steps, "
        "wanted at most 1 step at a rate of 0.001",
        "region 'one': 50 of 1000 differ, the largest by 1 steps, "
        "wanted at most 1 step at a rate of 0.001",
        "region 'real': 2 of 1000 differ, the largest by 0.5 of the maximum, wanted rounding only",
    )
