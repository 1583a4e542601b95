"""How near a candidate stays to the original, on cached reference outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.runtime.compiler.search import Quality
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.gates import Budget, gate_for

_CACHE_BYTES = 512 * 2**20
_PERFECT_DB = 200.0
LABELS = "labels"
"""Name of the array beside the inputs that holds the right class of each sample."""


@dataclass(frozen=True)
class _Sample:
    feed: Feed
    reference: Mapping[str, Any]
    labels: Array | None


class QualityJudge:
    """Judges candidates against the original, as users will run them.

    Attributes:
        samples: How many feeds are compared: all of the source, or as many as fit the cache.
    """

    def __init__(self, original: ir.Model, feeds: FeedSource, budget: Budget) -> None:
        """Run the original once on all feeds."""
        self._gate = gate_for(Contract.APPROXIMATE, budget)
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

    def __call__(self, candidate: ir.Model) -> Quality:
        """Run ``candidate`` on the cached feeds and judge it."""
        session = Session(candidate, DEPLOYMENT)
        comparer = Comparer()
        right = wrong = 0
        for sample in self._cache:
            outputs = session.run(sample.feed)
            comparer.add(sample.reference, outputs)
            gained, lost = _answers(sample, outputs)
            right, wrong = right + gained, wrong + lost
        verdict = comparer.judge(self._gate)
        metrics = comparer.metrics.values()
        decibels = [min(each.sqnr_db, _PERFECT_DB) for each in metrics]
        finite = [value for value in decibels if not math.isnan(value)]
        score = min(finite, default=-_PERFECT_DB)
        rows, flips = sum(m.rows for m in metrics), sum(m.flips for m in metrics)
        text = f"SQNR {score:.1f} dB"
        text += f", top-1 agreement {1 - flips / rows:.2%}" if rows else ""
        text += f", right answers {right - wrong:+d}" if right or wrong else ""
        return Quality(verdict.passed, score, text)


def _answers(sample: _Sample, outputs: Mapping[str, Any]) -> tuple[int, int]:
    """How many labelled rows the candidate alone, and the original alone, gets right."""
    labels = sample.labels
    if labels is None:
        return 0, 0
    for name, reference in sample.reference.items():
        scores = np.asarray(reference)
        if scores.ndim != 2 or scores.shape[0] != labels.size:
            continue
        old = np.argmax(scores, axis=1) == labels.reshape(-1)
        new = np.argmax(outputs[name], axis=1) == labels.reshape(-1)
        return int(np.sum(new & ~old)), int(np.sum(old & ~new))
    return 0, 0


def _bytes(arrays: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values() if isinstance(array, np.ndarray))
