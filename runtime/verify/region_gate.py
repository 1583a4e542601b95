"""What an INTEGER pass owes region by region, each fed with the original's tensors."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.specs import Feed, input_specs
from onnxfold.runtime.verify.bounds import rate_lower_bound
from onnxfold.runtime.verify.complete import complete_feed, labelled
from onnxfold.runtime.verify.gates import PASSED, Verdict
from onnxfold.runtime.verify.regions import RegionBudget, RegionResult, check_regions

_MOST_STEPS = 1
_MISMATCH_RATE = 1e-3
_STEP_ROUNDING = 2.0**-6  # of real numbers that stand for 16-bit codes, as float32
_CONFIDENCE = 0.999  # hundreds of regions are judged at once
_MOST_REASONS = 4


@dataclass(frozen=True)
class RegionEvidence:
    """What the comparison region by region saw.

    Attributes:
        regions: Regions the pass changed.
        checked: Those of them that were compared; fewer where the time for it ran out.
        samples: Feeds that every checked region saw.
        elements: Numbers compared.
        mismatches: Those that differ, ties left out.
        ties: Codes that differ where the exact number lies half-way between both.
        largest_steps: The largest difference between codes.
        worst: The tensor with the highest rate of mismatches; empty where there are none.
        worst_rate: Its rate.
        reasons: What is beyond the limits, worst first; empty where the contract is kept.
        seconds: What it took.
    """

    regions: int
    checked: int
    samples: int
    elements: int
    mismatches: int
    ties: int
    largest_steps: float
    worst: str
    worst_rate: float
    reasons: tuple[str, ...]
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether all regions were compared and not one value differs but for ties.

        The ends may be further apart then: a tie that goes the other way is a code of difference,
        which layers behind it that round may make as large as they like.
        """
        return 0 < self.regions == self.checked and not self.mismatches and not self.reasons

    def excuse(self, verdict: Verdict) -> Verdict:
        """What is left of ``verdict``, by which a network's outputs are too far apart.

        Nothing where all regions are exact; an open question where those that there was time for
        are; else the same, with the regions that are beyond the limits first.
        """
        if verdict.passed or self.is_exact:
            return PASSED
        if not self.checked or self.mismatches or self.reasons:
            return Verdict(False, (*self.reasons, *verdict.reasons))
        seen = (
            f"no difference but ties in the {self.checked} of {self.regions} operators that there "
            "was time to compare one by one, though the outputs are further apart than the "
            "contract allows; compare again on a faster or idle machine, or on smaller inputs"
        )
        return Verdict(False, (seen, *verdict.reasons), inconclusive=True)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "regions": self.regions,
            "checked": self.checked,
            "samples": self.samples,
            "elements": self.elements,
            "mismatches": self.mismatches,
            "rate": self.mismatches / self.elements if self.elements else 0.0,
            "ties": self.ties,
            "largest_steps": self.largest_steps,
            "worst": self.worst,
            "worst_rate": self.worst_rate,
            "reasons": list(self.reasons),
            "seconds": self.seconds,
        }


def check_integer_contract(
    before: ir.Model,
    after: ir.Model,
    feeds: FeedSource | Iterable[Feed],
    budget: RegionBudget | None = None,
) -> RegionEvidence:
    """Whether ``after`` is the integer form of ``before``, region by region.

    Raises:
        ExecutionError: A model or a region of it does not run.
    """
    started = time.perf_counter()
    specs = input_specs(before)
    whole = (complete_feed(feed, labels, specs) for feed, labels in labelled(feeds))
    survey = check_regions(before, after, whole, budget=budget)
    results = survey.results
    wrong = [each for each in results if not region_holds(each)]
    wrong.sort(key=lambda each: (-each.largest, -each.rate, each.name))
    worst = max(results, key=lambda each: each.rate, default=None)
    return RegionEvidence(
        regions=survey.regions,
        checked=len(results),
        samples=survey.samples,
        elements=sum(each.elements for each in results),
        mismatches=sum(each.mismatches for each in results),
        ties=sum(each.ties for each in results),
        largest_steps=max((each.largest for each in results if each.quantized), default=0.0),
        worst=worst.name if worst and worst.mismatches else "",
        worst_rate=worst.rate if worst else 0.0,
        reasons=tuple(_reason(each) for each in wrong[:_MOST_REASONS]),
        seconds=time.perf_counter() - started,
    )


def region_holds(region: RegionResult) -> bool:
    """Whether codes differ by one step at most, at a rate not shown to be above 1e-3.

    Real numbers may differ by rounding only.
    """
    if not region.quantized:
        return region.mismatches == 0
    rate = rate_lower_bound(region.mismatches, region.elements, _CONFIDENCE)
    return region.largest <= _MOST_STEPS + _STEP_ROUNDING and rate <= _MISMATCH_RATE


def _reason(region: RegionResult) -> str:
    tensor = f"tensor '{region.name}'"
    if region.op_type:
        tensor += f" (now computed by {region.op_type})"
    seen = f"{region.mismatches} of {region.elements} differ, the largest by {region.largest:.3g}"
    if not region.quantized:
        return f"{tensor}: {seen} of the maximum, wanted rounding only"
    wanted = f"at most {_MOST_STEPS} step at a rate of {_MISMATCH_RATE:g}"
    return f"{tensor}: {seen} steps, wanted {wanted}"
