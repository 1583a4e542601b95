from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.compiler.verified import run_verified
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify import region_gate
from onnxfold.runtime.verify.region_gate import check_integer_contract, region_holds
from onnxfold.runtime.verify.regions import RegionResult, RegionSurvey


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
    region = RegionResult("z", "Add", elements, mismatches, largest, quantized)
    assert region_holds(region) == holds


def test_worst_regions_are_named_first(
    monkeypatch: pytest.MonkeyPatch, parse: Callable[..., ir.Model]
) -> None:
    results = (
        RegionResult("fine", "Add", 1000, 0, 1.0, True, ties=7),
        RegionResult("one", "QLinearConv", 1000, 50, 1.0, True, ties=3),
        RegionResult("three", "", 1000, 1, 3.0, True),
        RegionResult("real", "Mul", 1000, 2, 0.5, False),
    )

    def found(*_: object, **__: object) -> RegionSurvey:
        return RegionSurvey(results, regions=6, samples=2)

    monkeypatch.setattr(region_gate, "check_regions", found)
    model = parse("agraph (float[1] x) => (float[1] y) { y = Relu (x) }")
    evidence = check_integer_contract(model, model, [])
    assert evidence.reasons == (
        "tensor 'three': 1 of 1000 differ, the largest by 3 steps, "
        "wanted at most 1 step at a rate of 0.001",
        "tensor 'one' (now computed by QLinearConv): 50 of 1000 differ, the largest by 1 steps, "
        "wanted at most 1 step at a rate of 0.001",
        "tensor 'real' (now computed by Mul): 2 of 1000 differ, the largest by 0.5 of the maximum, "
        "wanted rounding only",
    )
    row = evidence.to_json()
    seen = {"regions": 6, "checked": 4, "samples": 2, "elements": 4000, "mismatches": 53}
    assert seen.items() <= row.items()
    assert (row["ties"], row["worst"], row["largest_steps"]) == (10, "one", 3.0)
    assert row["rate"] == 53 / 4000


def test_fold_reports_regions_and_ties(fixtures_dir: Path) -> None:
    """Two scales of qdq_net, 0.035 and 0.05, make sums that lie half-way between two codes."""
    model = ir.load(fixtures_dir / "qdq_net.onnx")
    feeds = open_feeds(None, input_specs(model))
    run = run_verified(model, parse_passes("fold-qdq"), feeds, Silent())
    regions = run.rows[0].evidence["regions"]
    assert regions["checked"] == regions["regions"] == 8
    assert regions["ties"] > 0
    assert regions["rate"] <= 1e-3
    assert not regions["reasons"]
