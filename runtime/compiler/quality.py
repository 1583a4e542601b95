"""How near a candidate stays to the original, on cached reference outputs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, OnnxfoldError, UsageError
from onnxfold.passes.io_types import float_edges, with_float_io
from onnxfold.runtime.compiler.choice import Quality
from onnxfold.runtime.compiler.detections import (
    LEAST_SCORES,
    SCORES,
    SCORES_SHARE,
    detection_outputs,
    scores_kept,
)
from onnxfold.runtime.compiler.embeddings import (
    LEAST_ROWS,
    RANKING,
    RANKING_SHARE,
    embedding_output,
    embeddings,
    ranking_kept,
)
from onnxfold.runtime.compiler.sequences import (
    DECISIONS,
    LEAST_STEPS,
    decisions_kept,
    sequence_outputs,
    steps_of,
)
from onnxfold.runtime.compiler.states import (
    IN_RUN,
    LEAST_RUN,
    follow,
    hold_on,
    in_run,
    states_of,
)
from onnxfold.runtime.compiler.task import TaskResult, task_budget, within_budget
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.gates import Verdict, gate_for
from onnxfold.runtime.verify.metrics import OutputMetrics

_CACHE_BYTES = 512 * 2**20
_AS_DEPLOYED = replace(DEPLOYMENT, spinning=False)
_PERFECT_DB = 200.0
_CLOSE_DB = 2.0
LABELS = "labels"
"""Name of the array beside the inputs that holds the right class of each sample."""


Metric = Callable[[Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]], float]
"""What the user measures by: from pairs of outputs and arrays of samples to a figure; more is
better."""


@dataclass(frozen=True)
class _Sample:
    """One feed, and what the original makes of it.

    Attributes:
        feed: The feed.
        reference: Outputs of the original.
        labels: The right class of each row of the scores; empty where there are none.
        scores: The output they are about.
        arrays: All there is of the sample, for the user's own metric.
        steps: The outputs of the original in a run with its states fed back; none without states.
    """

    feed: Feed
    reference: Mapping[str, Any]
    labels: Array
    scores: str
    arrays: Mapping[str, Any]
    steps: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def judged(self) -> Mapping[str, Any]:
        """What the original puts out where it is deployed."""
        return self.steps or self.reference


class QualityJudge:
    """Judges candidates against the original, as users will run them.

    Where the data has labels, the task is the judge: the rate of changed answers in the budget
    becomes the share of right answers that may be lost, and noise only has to be within the wider
    limits that class scores have anyway. So it is with a metric of the user's own; and where a
    transformer puts out embeddings, with the ranking of their similarities, and where all outputs
    are class probabilities step by step, with the share of steps that decide as before, where
    neither is given and the budget sets no limits of its own.

    A model with states is also run over the samples in order, its states fed back. Its other
    outputs are judged there too, and how far the states drift is said.

    Attributes:
        samples: How many feeds are compared: all of the source, or as many as fit the cache.
    """

    def __init__(
        self,
        original: ir.Model,
        feeds: FeedSource,
        budget: Budget,
        metric: Metric | None = None,
        metric_name: str = "metric",
        config: SessionConfig = _AS_DEPLOYED,
    ) -> None:
        """Run the original once on all feeds.

        Args:
            original: What candidates are compared with.
            feeds: What is compared; arrays beside the inputs are labels, or for the metric.
            budget: What may be lost.
            metric: The user's own measure; None judges by labels, where there are any.
            metric_name: What reports call it.
            config: How candidates run.

        Raises:
            UsageError: Labels are no class numbers of the model, or the metric fails.
        """
        self._budget = budget
        self._config = config
        self._float_edges = float_edges(original)
        self._cache: list[_Sample] = []
        session = Session(original, REFERENCE)
        used = 0
        for number, (feed, extra) in enumerate(feeds.with_labels()):
            outputs = session.run(feed)
            place = f"{feeds.description}, sample {number}"
            labels = extra.get(LABELS) if metric is None else None
            sample = _sample(feed, outputs, labels, place)
            self._cache.append(replace(sample, arrays={**feed, **extra}))
            used += _bytes(feed) + _bytes(outputs)
            if used > _CACHE_BYTES:
                break
        self._states = self._states_that_hold(original, session)
        self._detections = self._detection_outputs(original) if metric is None else ()
        self._embedding = self._embedding_output(original) if metric is None else ""
        self._sequences = self._sequence_outputs(original) if metric is None else ()
        self._metric = metric
        self._metric_name = metric_name
        self._reached = 0.0
        if metric is not None:
            self._reached = _figure(metric, ((s.judged, s.arrays) for s in self._cache))

    @property
    def samples(self) -> int:
        """See the class."""
        return len(self._cache)

    @property
    def states(self) -> frozenset[str]:
        """The outputs that are fed back, and judged by what that leads to; none in a short run."""
        return frozenset(self._states.values() if self.samples >= LEAST_RUN else ())

    def verdict(self, comparer: Comparer, task: TaskResult | None) -> Verdict:
        """What the budget says of the metrics of a candidate."""
        limits = task_budget(self._budget, task)
        excused = self._fed_back if self.states else frozenset[str]()
        return comparer.judge(gate_for(Contract.APPROXIMATE, limits, states=excused))

    def drift(self, comparer: Comparer) -> str:
        """How far the states of a candidate come from the original's in a run; for people."""
        found = [comparer.metrics.get(f"{name}{IN_RUN}") for name in self._states.values()]
        worst = min((each.sqnr_db for each in found if each is not None), default=None)
        if worst is None:
            return ""
        return f"states drift to {worst:.1f} dB in a run of {self.samples} steps"

    @property
    def _fed_back(self) -> frozenset[str]:
        """All names of states in metrics."""
        names = self._states.values()
        return frozenset({*names, *in_run(dict.fromkeys(names))})

    def compare(self, candidate: ir.Model) -> tuple[Comparer, TaskResult | None]:
        """The metrics of ``candidate``, and its answers where the data has labels."""
        session = Session(with_float_io(candidate, self._float_edges), self._config)
        comparer = Comparer()
        runs = self._runs(session, comparer)
        if self._metric is not None:
            figure = _figure(self._metric, ((out, each.arrays) for each, out in runs))
            # The noise is that of all samples, also where the metric needs fewer.
            deque(runs, maxlen=0)
            return comparer, TaskResult(self.samples, self._reached, figure, self._metric_name)
        if self._embedding:
            vectors = [embeddings(outputs[self._embedding]) for _, outputs in runs]
            kept = ranking_kept(self._embeddings(), vectors)
            return comparer, TaskResult(self.samples, 1.0, kept, RANKING, RANKING_SHARE)
        if self._sequences:
            found: list[Array] = [out[name] for _, out in runs for name in self._sequences]
            known = self._references(self._sequences)
            kept = decisions_kept(known, found)
            return comparer, TaskResult(steps_of(known), 1.0, kept, DECISIONS)
        if self._detections:
            found = [out[name] for _, out in runs for name in self._detections]
            known = self._references(self._detections)
            kept = scores_kept(known, found)
            return comparer, TaskResult(sum(map(np.size, known)), 1.0, kept, SCORES, SCORES_SHARE)
        answers = [_right_answers(each, outputs) for each, outputs in runs]
        rows, original, right = (sum(column) for column in zip(*answers, strict=True))
        return comparer, TaskResult(rows, original / rows, right / rows) if rows else None

    def _states_that_hold(self, original: ir.Model, session: Session) -> dict[str, str]:
        """The states of the original, which is run with them; none where the data has others."""
        states = states_of(original)
        samples = self._cache
        if not states or not all(hold_on(states, each.feed, each.reference) for each in samples):
            return {}
        runs = follow(session.run, [each.feed for each in samples], states)
        self._cache = [replace(s, steps=each) for s, each in zip(samples, runs, strict=True)]
        return states

    def _detection_outputs(self, original: ir.Model) -> tuple[str, ...]:
        """The outputs whose scores are to judge; none where something else does."""
        if not self._states or self._is_decided_otherwise():
            return ()
        names = detection_outputs(original, self._states.values())
        return names if sum(map(np.size, self._references(names))) >= LEAST_SCORES else ()

    def _is_decided_otherwise(self) -> bool:
        """Whether the budget, or labels, say what counts."""
        is_rate = self._budget.decisions_first and self._budget.max_flip_rate is not None
        return not is_rate or any(each.labels.size for each in self._cache)

    def _sequence_outputs(self, original: ir.Model) -> tuple[str, ...]:
        """The outputs whose decisions are to judge; none where something else does."""
        names = () if self._is_decided_otherwise() else sequence_outputs(original)
        return names if names and steps_of(self._references(names)) >= LEAST_STEPS else ()

    def _references(self, names: Sequence[str]) -> list[Array]:
        return [each.judged[name] for each in self._cache for name in names]

    def _embedding_output(self, original: ir.Model) -> str:
        """The output whose ranking is to judge; empty where something else does."""
        if self._is_decided_otherwise():
            return ""
        self._embedding = embedding_output(original)
        enough = self._embedding and sum(map(len, self._embeddings())) >= LEAST_ROWS
        return self._embedding if enough else ""

    def _embeddings(self) -> list[Array]:
        return [embeddings(each.judged[self._embedding]) for each in self._cache]

    def _runs(
        self, session: Session, comparer: Comparer
    ) -> Iterator[tuple[_Sample, Mapping[str, Any]]]:
        """Each sample with what a candidate makes of it, which ``comparer`` sees.

        Of a model with states that is what it puts out in a run; the comparer sees both.
        """
        feeds = [each.feed for each in self._cache]
        nothing: Mapping[str, Any] = {}
        steps = follow(session.run, feeds, self._states) if self._states else repeat(nothing)
        for sample, step in zip(self._cache, steps, strict=False):
            outputs = session.run(sample.feed)
            comparer.add({**sample.reference, **in_run(sample.steps)}, {**outputs, **in_run(step)})
            yield sample, step or outputs

    def __call__(self, candidate: ir.Model) -> Quality:
        """Run ``candidate`` on the cached feeds and judge it; one that does not run is far off."""
        try:
            comparer, task = self.compare(candidate)
        except ExecutionError as error:
            return Quality(passed=False, score=-math.inf, text=f"does not run: {error}")
        limits = task_budget(self._budget, task)
        verdict = self.verdict(comparer, task)
        if verdict.passed and _is_close(comparer, limits) and self._config.optimize:
            # The proof asks both ways of running it: they differ by a fraction of the noise.
            verdict &= self.verdict(self._unoptimized(candidate), task)
        passed = verdict.passed and (task is None or within_budget(task, self._budget))
        drift = self.drift(comparer)
        metrics = [each for name, each in comparer.metrics.items() if name not in self._fed_back]
        decibels = [min(each.sqnr_db, _PERFECT_DB) for each in metrics]
        score = min((each for each in decibels if not math.isnan(each)), default=-_PERFECT_DB)
        text = _describe(score, metrics, task)
        text = f"{text}, {drift}" if drift else text
        text = f"{text}, too few samples" if verdict.inconclusive else text
        # Decisions have no distance: what misses them is as far off as its noise.
        is_undecided = bool(self._sequences) and not passed
        wanted = self._budget.sqnr_db if is_undecided else limits.sqnr_db
        shortfall = 0.0 if wanted is None else max(0.0, wanted - score)
        return Quality(passed, score, text, shortfall)

    def _unoptimized(self, candidate: ir.Model) -> Comparer:
        """The metrics of ``candidate`` where ONNX Runtime does not optimize it."""
        session = Session(with_float_io(candidate, self._float_edges), REFERENCE)
        comparer = Comparer()
        deque(self._runs(session, comparer), maxlen=0)
        return comparer


def _is_close(comparer: Comparer, limits: Budget) -> bool:
    """Whether a limit on noise is met by so little that it may be missed by other arithmetic."""
    lowest = min((each.sqnr_db for each in comparer.metrics.values()), default=math.inf)
    return limits.sqnr_db is not None and lowest < limits.sqnr_db + _CLOSE_DB


def _describe(score: float, metrics: list[OutputMetrics], task: TaskResult | None) -> str:
    text = f"SQNR {score:.1f} dB"
    rows, flips = sum(each.rows for each in metrics), sum(each.flips for each in metrics)
    if rows:
        text += f", top-1 agreement {1 - flips / rows:.2%}"
    if task is not None:
        text += f", {task}"
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
        return _Sample(feed, reference, np.empty(0, np.int64), "", {})
    classes = shapes[found[0]][1]
    for label in labels.tolist():
        if label not in range(classes):
            raise UsageError(
                f"{place}: '{LABELS}' holds {label!r}, which is no class: output '{found[0]}' has "
                f"scores for classes 0 to {classes - 1}"
            )
    return _Sample(feed, reference, labels.astype(np.int64), found[0], {})


def _right_answers(sample: _Sample, outputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Labelled rows, and how many of them the original and the candidate get right."""
    if not sample.labels.size:
        return 0, 0, 0
    old = np.argmax(sample.judged[sample.scores], axis=1) == sample.labels
    new = np.argmax(outputs[sample.scores], axis=1) == sample.labels
    return sample.labels.size, int(np.sum(old)), int(np.sum(new))


def _figure(
    metric: Metric, samples: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> float:
    """What ``metric`` says of samples.

    Raises:
        UsageError: It fails, or says no finite number.
    """
    try:
        figure = float(metric(samples))
    except OnnxfoldError:
        raise
    except Exception as error:
        raise UsageError(f"the metric failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(figure):
        raise UsageError(f"the metric is {figure}: it has to be a finite number, more is better")
    return figure


def _bytes(arrays: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values() if isinstance(array, np.ndarray))
