"""How near a candidate stays to the original, on cached reference outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.runtime.compiler.choice import Quality
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.budget import Budget, limits_for_scores
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.gates import gate_for
from onnxfold.runtime.verify.metrics import OutputMetrics

_CACHE_BYTES = 512 * 2**20
_PERFECT_DB = 200.0
LABELS = "labels"
"""Name of the array beside the inputs that holds the right class of each sample."""


@dataclass(frozen=True)
class TaskResult:
    """How many labelled samples are answered rightly.

    Attributes:
        rows: Labelled samples.
        original: Right answers of the original.
        candidate: Right answers of the candidate.
    """

    rows: int
    original: int
    candidate: int

    def within(self, loss: float) -> bool:
        """Whether the candidate keeps all but the share ``loss`` of the right answers."""
        return self.candidate >= (1 - loss) * self.original

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "rows": self.rows,
            "original_accuracy": self.original / self.rows,
            "accuracy": self.candidate / self.rows,
        }


@dataclass(frozen=True)
class _Sample:
    feed: Feed
    reference: Mapping[str, Any]
    labels: Array | None


class QualityJudge:
    """Judges candidates against the original, as users will run them.

    Where the data has labels, the task is the judge: the rate of changed answers in the budget
    becomes the share of right answers that may be lost, and noise only has to be within the wider
    limits that class scores have anyway.

    Attributes:
        samples: How many feeds are compared: all of the source, or as many as fit the cache.
    """

    def __init__(self, original: ir.Model, feeds: FeedSource, budget: Budget) -> None:
        """Run the original once on all feeds."""
        self._budget = budget
        self._cache: list[_Sample] = []
        session = Session(original, REFERENCE)
        used = 0
        for feed, extra in feeds.with_labels():
            outputs = session.run(feed)
            self._cache.append(_Sample(feed, outputs, extra.get(LABELS)))
            used += _bytes(feed) + _bytes(outputs)
            if used > _CACHE_BYTES:
                break

    @property
    def samples(self) -> int:
        """See the class."""
        return len(self._cache)

    def compare(self, candidate: ir.Model) -> tuple[Comparer, TaskResult | None]:
        """The metrics of ``candidate``, and its answers where the data has labels."""
        session = Session(candidate, DEPLOYMENT)
        comparer = Comparer()
        answers: list[tuple[int, int, int]] = []
        for sample in self._cache:
            outputs = session.run(sample.feed)
            comparer.add(sample.reference, outputs)
            answers.append(_right_answers(sample, outputs))
        rows, original, right = (sum(column) for column in zip(*answers, strict=True))
        return comparer, TaskResult(rows, original, right) if rows else None

    def __call__(self, candidate: ir.Model) -> Quality:
        """Run ``candidate`` on the cached feeds and judge it."""
        comparer, task = self.compare(candidate)
        verdict = comparer.judge(gate_for(Contract.APPROXIMATE, task_budget(self._budget, task)))
        passed = verdict.passed and (task is None or within_budget(task, self._budget))
        metrics = list(comparer.metrics.values())
        decibels = [min(each.sqnr_db, _PERFECT_DB) for each in metrics]
        score = min((each for each in decibels if not math.isnan(each)), default=-_PERFECT_DB)
        text = _describe(score, metrics, task)
        return Quality(passed, score, f"{text}, too few samples" if verdict.inconclusive else text)


def task_budget(budget: Budget, task: TaskResult | None) -> Budget:
    """The budget for noise where ``task`` judges the answers; ``budget`` itself without one."""
    if task is None or budget.max_flip_rate is None:
        return budget
    limits = limits_for_scores(budget) if budget.decisions_first else budget
    return replace(limits, max_flip_rate=None)


def within_budget(task: TaskResult, budget: Budget) -> bool:
    """Whether the task loses no more than the budget's rate allows."""
    return budget.max_flip_rate is None or task.within(budget.max_flip_rate)


def _describe(score: float, metrics: list[OutputMetrics], task: TaskResult | None) -> str:
    text = f"SQNR {score:.1f} dB"
    rows, flips = sum(each.rows for each in metrics), sum(each.flips for each in metrics)
    if rows:
        text += f", top-1 agreement {1 - flips / rows:.2%}"
    if task is not None:
        text += f", accuracy {task.candidate / task.rows:.2%} (was {task.original / task.rows:.2%})"
    return text


def _right_answers(sample: _Sample, outputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Labelled rows, and how many of them the original and the candidate get right."""
    labels = sample.labels
    if labels is None:
        return 0, 0, 0
    for name, reference in sample.reference.items():
        scores = np.asarray(reference)
        if scores.ndim != 2 or scores.shape[0] != labels.size:
            continue
        wanted = labels.reshape(-1)
        old = np.argmax(scores, axis=1) == wanted
        new = np.argmax(outputs[name], axis=1) == wanted
        return labels.size, int(np.sum(old)), int(np.sum(new))
    return 0, 0, 0


def _bytes(arrays: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values() if isinstance(array, np.ndarray))
