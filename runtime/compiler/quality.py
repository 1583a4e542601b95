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
from onnxfold.passes.errors import ExecutionError, UsageError
from onnxfold.passes.io_types import float_edges, with_float_io
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
    """One feed, and what the original makes of it.

    Attributes:
        feed: The feed.
        reference: Outputs of the original.
        labels: The right class of each row of the scores; empty where there are none.
        scores: The output they are about.
    """

    feed: Feed
    reference: Mapping[str, Any]
    labels: Array
    scores: str


class QualityJudge:
    """Judges candidates against the original, as users will run them.

    Where the data has labels, the task is the judge: the rate of changed answers in the budget
    becomes the share of right answers that may be lost, and noise only has to be within the wider
    limits that class scores have anyway.

    Attributes:
        samples: How many feeds are compared: all of the source, or as many as fit the cache.
    """

    def __init__(self, original: ir.Model, feeds: FeedSource, budget: Budget) -> None:
        """Run the original once on all feeds.

        Raises:
            UsageError: Labels are no class numbers of the model.
        """
        self._budget = budget
        self._float_edges = float_edges(original)
        self._cache: list[_Sample] = []
        session = Session(original, REFERENCE)
        used = 0
        for number, (feed, extra) in enumerate(feeds.with_labels()):
            outputs = session.run(feed)
            place = f"{feeds.description}, sample {number}"
            self._cache.append(_sample(feed, outputs, extra.get(LABELS), place))
            used += _bytes(feed) + _bytes(outputs)
            if used > _CACHE_BYTES:
                break

    @property
    def samples(self) -> int:
        """See the class."""
        return len(self._cache)

    def compare(self, candidate: ir.Model) -> tuple[Comparer, TaskResult | None]:
        """The metrics of ``candidate``, and its answers where the data has labels."""
        session = Session(with_float_io(candidate, self._float_edges), DEPLOYMENT)
        comparer = Comparer()
        answers: list[tuple[int, int, int]] = []
        for sample in self._cache:
            outputs = session.run(sample.feed)
            comparer.add(sample.reference, outputs)
            answers.append(_right_answers(sample, outputs))
        rows, original, right = (sum(column) for column in zip(*answers, strict=True))
        return comparer, TaskResult(rows, original, right) if rows else None

    def __call__(self, candidate: ir.Model) -> Quality:
        """Run ``candidate`` on the cached feeds and judge it; one that does not run is far off."""
        try:
            comparer, task = self.compare(candidate)
        except ExecutionError as error:
            return Quality(passed=False, score=-math.inf, text=f"does not run: {error}")
        limits = task_budget(self._budget, task)
        verdict = comparer.judge(gate_for(Contract.APPROXIMATE, limits))
        passed = verdict.passed and (task is None or within_budget(task, self._budget))
        metrics = list(comparer.metrics.values())
        decibels = [min(each.sqnr_db, _PERFECT_DB) for each in metrics]
        score = min((each for each in decibels if not math.isnan(each)), default=-_PERFECT_DB)
        text = _describe(score, metrics, task)
        text = f"{text}, too few samples" if verdict.inconclusive else text
        shortfall = 0.0 if limits.sqnr_db is None else max(0.0, limits.sqnr_db - score)
        return Quality(passed, score, text, shortfall)


def task_budget(budget: Budget, task: TaskResult | None) -> Budget:
    """The budget for noise where ``task`` judges the answers; ``budget`` itself without one.

    Where the original gives no right answer there is none to lose, and nothing is judged by it.
    """
    if task is None or task.original == 0 or budget.max_flip_rate is None:
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


def _sample(feed: Feed, reference: Mapping[str, Any], extra: Array | None, place: str) -> _Sample:
    """A sample with its labels, where an output has one row of scores for each.

    Raises:
        UsageError: The labels are no columns of the scores.
    """
    labels = np.empty(0, np.int64) if extra is None else extra.reshape(-1)
    shapes = {name: np.shape(value) for name, value in reference.items()}
    found = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == labels.size]
    if not labels.size or not found:
        return _Sample(feed, reference, np.empty(0, np.int64), "")
    classes = shapes[found[0]][1]
    for label in labels.tolist():
        if label not in range(classes):
            raise UsageError(
                f"{place}: '{LABELS}' holds {label!r}, which is no class: output '{found[0]}' has "
                f"scores for classes 0 to {classes - 1}"
            )
    return _Sample(feed, reference, labels.astype(np.int64), found[0])


def _right_answers(sample: _Sample, outputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Labelled rows, and how many of them the original and the candidate get right."""
    if not sample.labels.size:
        return 0, 0, 0
    old = np.argmax(sample.reference[sample.scores], axis=1) == sample.labels
    new = np.argmax(outputs[sample.scores], axis=1) == sample.labels
    return sample.labels.size, int(np.sum(old)), int(np.sum(new))


def _bytes(arrays: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values() if isinstance(array, np.ndarray))
