"""The accuracy ladder: compensations for rounding, each kept only where it is measured to help.

None of them costs anything at run time. Cheap rungs are tried always, dear ones only while the
budget is missed by little; which is which, the preset says.
"""

from __future__ import annotations

import time

from onnxfold.runtime.compiler.choice import Candidate, Ladder, Log, ModelT, Subject

_GAIN_DB = 0.1
"""Less is noise of the samples."""


def climb(subject: Subject[ModelT], candidate: Candidate[ModelT], log: Log) -> Candidate[ModelT]:
    """``candidate`` with every rung that brings it nearer to the original.

    Args:
        subject: How to build and judge; its ladder says what is tried, and when.
        candidate: Where to start.
        log: Told of each rung, with its gain and its cost.
    """
    best = candidate
    for rung in subject.ladder.rungs:
        if rung not in subject.ladder.always and not _is_worth_it(best, subject.ladder):
            continue
        started = time.perf_counter()
        choice = best.choice.compensated(rung)
        model = None if subject.is_idle(choice) else subject.build(choice)
        if model is None:
            continue
        attempt = Candidate(choice, model, subject.judge(model))
        gain = attempt.quality.score - best.quality.score
        better = (attempt.quality.passed, gain > _GAIN_DB) > (best.quality.passed, False)
        log.add(
            attempt.choice.name,
            attempt.quality,
            None,
            "climbed" if better else "no gain",
            gain_db=gain,
            seconds=time.perf_counter() - started,
        )
        best = attempt if better else best
    return best


def _is_worth_it(candidate: Candidate[ModelT], ladder: Ladder) -> bool:
    """Whether the budget is missed, and within reach of compensation."""
    return not candidate.quality.passed and candidate.quality.shortfall_db <= ladder.reach_db
