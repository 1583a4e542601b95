"""What an INTEGER pass owes region by region, each fed with the original's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.runtime.verify.bounds import rate_lower_bound
from onnxfold.runtime.verify.regions import RegionResult, check_regions

_MOST_STEPS = 1
_MISMATCH_RATE = 1e-3
_CONFIDENCE = 0.999  # hundreds of regions are judged at once
_MOST_REASONS = 4


def region_differences(
    before: ir.Model, after: ir.Model, feeds: Iterable[Mapping[str, Array]]
) -> tuple[str, ...]:
    """Why ``after`` is not the integer form of ``before``; the worst regions first.

    Raises:
        ExecutionError: A model or a region of it does not run.
    """
    wrong = [each for each in check_regions(before, after, feeds) if not region_holds(each)]
    wrong.sort(key=lambda each: (-each.largest, -each.rate, each.name))
    return tuple(_reason(each) for each in wrong[:_MOST_REASONS])


def region_holds(region: RegionResult) -> bool:
    """Whether codes differ by one step at most, at a rate not shown to be above 1e-3.

    Rounding ties are rare, not impossible: one in a small tensor proves no rate. Real numbers may
    differ by rounding only.
    """
    if not region.quantized:
        return region.mismatches == 0
    rate = rate_lower_bound(region.mismatches, region.elements, _CONFIDENCE)
    return region.largest <= _MOST_STEPS and rate <= _MISMATCH_RATE


def _reason(region: RegionResult) -> str:
    seen = f"{region.mismatches} of {region.elements} differ, the largest by {region.largest:.3g}"
    if not region.quantized:
        return f"region '{region.name}': {seen} of the maximum, wanted rounding only"
    wanted = f"at most {_MOST_STEPS} step at a rate of {_MISMATCH_RATE:g}"
    return f"region '{region.name}': {seen} steps, wanted {wanted}"
