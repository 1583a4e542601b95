"""How good two models are at what they are for, and what of it a budget lets go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onnxfold.runtime.verify.budget import Budget, limits_for_scores

ACCURACY = "accuracy"
_ROUNDING = 1e-12


@dataclass(frozen=True)
class TaskResult:
    """How good two models are at what they are for.

    Attributes:
        rows: Samples that were counted.
        original: The figure of the original: its share of right answers, or the user's own.
        candidate: That of the candidate.
        name: What the figure is.
        share: Of the budget's rate, how much of it may be lost.
    """

    rows: int
    original: float
    candidate: float
    name: str = ACCURACY
    share: float = 1.0

    def within(self, loss: float) -> bool:
        """Whether the candidate loses no more than the share ``loss`` of the figure."""
        # Shares of right answers are counts over counts: equal ones must not differ by rounding.
        most = loss * self.share * abs(self.original)
        return self.candidate >= self.original - most - _ROUNDING

    @property
    def can_lose(self) -> bool:
        """Whether there is anything to lose: an original that is never right judges nothing."""
        return self.name != ACCURACY or self.original > 0

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        if self.name == ACCURACY:
            return {
                "rows": self.rows,
                "original_accuracy": self.original,
                "accuracy": self.candidate,
            }
        return {
            "metric": self.name,
            "rows": self.rows,
            "original": self.original,
            "result": self.candidate,
        }

    def __str__(self) -> str:
        """``accuracy 97.50% (was 98.00%)``."""
        form = ".2%" if self.name == ACCURACY else ".4g"
        return f"{self.name} {self.candidate:{form}} (was {self.original:{form}})"


def task_budget(budget: Budget, task: TaskResult | None) -> Budget:
    """The budget for noise where ``task`` judges the answers; ``budget`` itself without one.

    Where the original gives no right answer there is none to lose, and nothing is judged by it.
    """
    if task is None or not task.can_lose or budget.max_flip_rate is None:
        return budget
    limits = limits_for_scores(budget) if budget.decisions_first else budget
    return replace(limits, max_flip_rate=None)


def within_budget(task: TaskResult, budget: Budget) -> bool:
    """Whether the task loses no more than the budget's rate allows, and a loss no more than its."""
    if budget.loss is not None and task.candidate < task.original - budget.loss - _ROUNDING:
        return False
    return budget.max_flip_rate is None or task.within(budget.max_flip_rate)
