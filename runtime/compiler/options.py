"""What the user asks of a compilation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxfold.runtime.calibrate.methods import method_text, parse_method
from onnxfold.runtime.compiler.choice import Choice, Ladder
from onnxfold.runtime.verify.budget import Budget

Target = Literal["ort", "standard", "integer", "qdq"]
Preset = Literal["fast", "balanced", "best"]

SEARCH = "search"
"""Instead of the name of a calibration method: several are tried, the nearest is kept."""

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_CHEAP = ("weight-ranges", "equalize", "correct-bias")
_RUNGS = ("weight-ranges", "equalize", "correct-bias")
_SEARCHED = {
    "fast": ("min-max",),
    "balanced": ("min-max", "percentile"),
    "best": ("min-max", "percentile", "mse", "entropy"),
}
_ALWAYS = {"fast": (), "balanced": _CHEAP, "best": _RUNGS}


@dataclass(frozen=True)
class CompileOptions:
    """What the user asked for.

    Attributes:
        target: What the integer graph is made of.
        budget: What may be lost.
        preset: How much is tried for accuracy: ``fast`` what the budget needs; ``balanced`` what
            costs seconds; ``best`` all there is.
        calibration: How ranges are found: a method, with its options in braces, or ``search``.
        calibration_cache: A file that keeps ranges from one compilation to the next.
        keep_slower: Quantize all that can be, however slow.
        costs: A file of costs that kernels are chosen by; empty for the table that is built in.
        reduce_range: Give weights 7 bits where x86 machines without VNNI would saturate.
    """

    target: Target = "ort"
    budget: Budget = field(default_factory=Budget)
    preset: Preset = "balanced"
    calibration: str = SEARCH
    keep_slower: bool = False
    costs: str = ""
    reduce_range: bool = False
    calibration_cache: Path | None = None

    @property
    def ladder(self) -> Ladder:
        """The compensations to try, and which of them even where the budget is met."""
        return Ladder(_RUNGS, frozenset(_ALWAYS[self.preset]))

    @property
    def starting_choices(self) -> list[Choice]:
        """Where the search begins, the widest first.

        Raises:
            UsageError: There is no such calibration method.
        """
        searched = self.calibration == SEARCH
        named = _SEARCHED[self.preset] if searched else (self.calibration,)
        methods = [method_text(parse_method(each)) for each in named]
        return [
            Choice(f"{width} ({method})", op_types, calibration=method)
            for width, op_types in (("all operators", ()), ("linear operators", LINEAR))
            for method in methods
        ]
