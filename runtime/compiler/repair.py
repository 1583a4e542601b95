"""Brings a candidate within the budget: the layers that damage most get 16 bits, or go to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from onnxfold.runtime.compiler.choice import SENSITIVE, Candidate, Choice, Log, ModelT, Subject


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
    repaired = _widened(subject, choice, ranked, log) if subject.widens else None
    if repaired is None:

        def in_float(layers: Sequence[str], name: str) -> Choice:
            return choice.with_more_in_float(layers, f"{name} in float", SENSITIVE)

        repaired = _with_fewest(subject, choice, ranked, in_float, log)
    return repaired if repaired is None else _relearned(subject, repaired, log)


def _widened(
    subject: Subject[ModelT], choice: Choice, ranked: Sequence[str], log: Log
) -> Candidate[ModelT] | None:
    """``choice`` with 16 bits for as few activations as meet the budget; None where all do not."""

    def in_16_bits(layers: Sequence[str], name: str) -> Choice:
        return choice.with_more_in_16_bits(layers, f"{name} in 16 bits")

    whole = subject.candidate(in_16_bits(ranked, f"{choice.name}, all {len(ranked)} layers"))
    if whole is None:
        return None
    passed = whole.quality.passed
    log.add(whole.choice.name, whole.quality, None, "repair" if passed else "not enough")
    if not passed:
        return None
    return _with_fewest(subject, choice, ranked, in_16_bits, log) or whole


def _with_fewest(
    subject: Subject[ModelT],
    choice: Choice,
    ranked: Sequence[str],
    change: Callable[[Sequence[str], str], Choice],
    log: Log,
) -> Candidate[ModelT] | None:
    """The smallest number of the worst layers that have to ``change``, fewer than all of them.

    Where half of them do not suffice, the next try is all but one: most often none does then.
    """
    low, high, repaired = 0, len(ranked), None
    # Changing more of the worst layers never hurts: the smallest sufficient number.
    while high - low > 1:
        middle = high - 1 if low and high == len(ranked) else (low + high) // 2
        count = f"{middle} most sensitive layer{'s' if middle > 1 else ''}"
        attempt = subject.candidate(change(ranked[:middle], f"{choice.name}, {count}"))
        if attempt is None:
            high = middle
            continue
        passed = attempt.quality.passed
        log.add(attempt.choice.name, attempt.quality, None, "repair" if passed else "not enough")
        if passed:
            high, repaired = middle, attempt
        else:
            low = middle
    return repaired


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
