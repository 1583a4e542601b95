"""What an APPROXIMATE change may cost, and how users write it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean

_SCORE_MARGIN_DB = 20.0
_SCORE_COSINE = 0.98
_LIMITS = {
    "flips": "max_flip_rate",
    "sqnr": "sqnr_db",
    "cosine": "cosine",
    "max-difference": "max_abs_diff",
    "faster": "faster",
    "loss": "loss",
}


@dataclass(frozen=True)
class Budget:
    """How much an APPROXIMATE pass may change; None switches a limit off.

    Attributes:
        sqnr_db: Smallest signal to quantization noise ratio.
        cosine: Smallest cosine similarity.
        max_flip_rate: The upper confidence bound of the rate at which the best class changes
            must not exceed this.
        confidence: Of the bound on flips.
        max_abs_diff: Largest absolute difference.
        decisions_first: Outputs that look like class scores are there to be decided on: where the
            samples prove the flip rate, ``sqnr_db`` may be missed by 20 dB. Where they are too few
            to prove it, the limits on noise decide alone.
        loss: By how much a loss may become worse, in its own units.
    """

    sqnr_db: float | None = 30.0
    cosine: float | None = 0.999
    max_flip_rate: float | None = 0.01
    confidence: float = 0.95
    max_abs_diff: float | None = None
    decisions_first: bool = True
    faster: float | None = None
    loss: float | None = None

    @classmethod
    def of(cls, limits: Budget | str | float | None) -> Budget:
        """A budget from whatever users give: the default limits for None, else see ``from_text``.

        Raises:
            UsageError: As by ``from_text``.
        """
        if limits is None:
            return cls()
        return limits if isinstance(limits, Budget) else cls.from_text(str(limits))

    @classmethod
    def from_text(cls, text: str) -> Budget:
        """Parse ``0.01`` (a flip rate) or limits by name: ``flips=0.01,sqnr=30,cosine=0.999``.

        Where limits on noise are named, they are meant as they stand, for class scores too, and
        limits that are not named are off. ``faster=1.5`` alone switches none off.

        Raises:
            UsageError: A limit is unknown, not a number, or out of range.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.rpartition("=")
            field = _LIMITS.get(name.strip() or "flips")
            if field is None:
                hint = did_you_mean(name, _LIMITS) or f"; there are {', '.join(_LIMITS)}"
                raise UsageError(f"budget: no limit '{name}'{hint}")
            limits[field] = _limit(part, value)
        if not 0 <= limits.get("max_flip_rate", 0) <= 1 or limits.get("cosine", 0) > 1:
            raise UsageError(f"budget {text}: rates and cosines lie between 0 and 1")
        if limits.get("faster", 1.0) <= 0:
            raise UsageError(f"budget {text}: faster is a ratio above 0")
        if set(limits) <= {"max_flip_rate", "faster"}:
            return replace(cls(), **limits)
        return replace(cls(None, None, None, decisions_first=False), **limits)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return asdict(self)


def limits_for_scores(budget: Budget) -> Budget:
    """The limits on noise that class scores keep once their decisions are proven."""
    return replace(
        budget,
        sqnr_db=None if budget.sqnr_db is None else budget.sqnr_db - _SCORE_MARGIN_DB,
        cosine=None if budget.cosine is None else min(budget.cosine, _SCORE_COSINE),
    )


def _limit(part: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"budget: '{part}' is not a number or a limit by name") from None
