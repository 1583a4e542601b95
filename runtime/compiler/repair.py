"""Brings a candidate within the budget by leaving the layers that damage most in float."""

from __future__ import annotations

from onnxfold.runtime.compiler.choice import SENSITIVE, Candidate, Log, ModelT, Subject


def repair(
    subject: Subject[ModelT], candidate: Candidate[ModelT], log: Log
) -> Candidate[ModelT] | None:
    """``candidate`` within the budget; None where no repair meets it.

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
        worst = choice.without(ranked[:middle], f"{choice.name}, {count} in float", SENSITIVE)
        attempt = subject.candidate(worst)
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
