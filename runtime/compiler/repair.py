"""Brings a candidate within the budget by leaving the layers that damage most in float."""

from __future__ import annotations

from dataclasses import replace

from onnxfold.runtime.compiler.choice import SENSITIVE, Candidate, Log, ModelT, Subject


def repair(
    subject: Subject[ModelT], candidate: Candidate[ModelT], log: Log
) -> Candidate[ModelT] | None:
    """``candidate`` within the budget; None where no repair meets it.

    While it is searched which layers go to float, the others keep what they learned before.

    Args:
        subject: How to build and judge, and what damage each layer does.
        candidate: What may miss the budget.
        log: Told of each attempt.
    """
    if candidate.quality.passed:
        return candidate
    choice = candidate.choice
    log.add(choice.name, candidate.quality, None, "misses the budget")
    layers = [name for name in subject.layers if name not in choice.skip]
    ranked = sorted(layers, key=subject.damage, reverse=True) if len(layers) > 1 else layers
    low, high, repaired = 0, len(ranked), None
    # Leaving more of the worst layers in float never hurts: the smallest sufficient number.
    while high - low > 1:
        middle = (low + high) // 2
        count = f"{middle} most sensitive layer{'s' if middle > 1 else ''}"
        name = f"{choice.name}, {count} in float"
        attempt = subject.candidate(choice.with_more_in_float(ranked[:middle], name, SENSITIVE))
        if attempt is None:
            high = middle
            continue
        passed = attempt.quality.passed
        log.add(attempt.choice.name, attempt.quality, None, "repair" if passed else "not enough")
        if passed:
            high, repaired = middle, attempt
        else:
            low = middle
    return repaired if repaired is None else _relearned(subject, repaired, log)


def _relearned(
    subject: Subject[ModelT], repaired: Candidate[ModelT], log: Log
) -> Candidate[ModelT]:
    """``repaired`` with compensations learned for it, where these are cheap and better."""
    if not repaired.choice.rungs or not subject.ladder.always.issuperset(repaired.choice.rungs):
        return repaired
    name = f"{repaired.choice.name}, compensated anew"
    attempt = subject.candidate(replace(repaired.choice, name=name, lessons=None))
    if attempt is None:
        return repaired
    gain = attempt.quality.score - repaired.quality.score
    better = attempt.quality.passed and gain > 0
    log.add(name, attempt.quality, None, "climbed" if better else "no gain", gain_db=gain)
    return attempt if better else repaired
