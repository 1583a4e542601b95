"""Mixed precision: what every trade of speed for accuracy would give, and the best of them.

Layers go to float one after another, the one that makes most noise for the time it saves first.
The points on the way are built, judged and timed: the curve is one of measured figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxfold.runtime.compiler.choice import TRADED, Candidate, Latency, ModelT, Subject

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of the layers, at which points of the curve are measured."""


def mixtures(subject: Subject[ModelT], best: Candidate[ModelT]) -> list[Candidate[ModelT]]:
    """``best`` with more and more of its layers in float.

    Args:
        subject: How to build and judge, and what damage each layer does.
        best: The fastest within the budget, or all in integers.
    """
    ranked = _noisiest_first(subject, best)
    counts = sorted({round(share * len(ranked)) for share in _SHARES} - {0, len(ranked)})
    found = [_without(subject, best, ranked[:count]) for count in counts]
    return [each for each in found if each is not None]


def spending(subject: Subject[ModelT], best: Candidate[ModelT]) -> list[Candidate[ModelT]]:
    """``best`` with the noisiest layers in float whose time, in float, is within the allowance.

    At most one; none where no layer is that small.

    Args:
        subject: How to build and judge, and what each layer damages and takes.
        best: Where to start.
    """
    left, chosen = subject.allowance, list[str]()
    for layer in _noisiest_first(subject, best) if subject.allowance else ():
        if subject.share(layer) <= left:
            left -= subject.share(layer)
            chosen.append(layer)
    found = _without(subject, best, chosen) if chosen else None
    return [] if found is None else [found]


def _noisiest_first(subject: Subject[ModelT], best: Candidate[ModelT]) -> list[str]:
    layers = [name for name in subject.layers if name not in best.choice.skip]
    return sorted(layers, key=subject.damage, reverse=True) if len(layers) > 1 else []


def _without(
    subject: Subject[ModelT], best: Candidate[ModelT], layers: Sequence[str]
) -> Candidate[ModelT] | None:
    noisiest = f"{len(layers)} noisiest layer{'s' if len(layers) > 1 else ''}"
    name = f"{best.choice.name}, {noisiest} in float"
    return subject.candidate(best.choice.with_more_in_float(layers, name, TRADED))


def most_accurate(
    points: Sequence[Candidate[ModelT]], latency: Mapping[str, Latency], slowest: float
) -> Candidate[ModelT] | None:
    """The nearest to the original of those within the budget that are fast enough.

    Args:
        points: Candidates.
        latency: Of each, by name.
        slowest: The largest ratio to the original's latency that will do.
    """
    fast = [
        each
        for each in points
        if each.quality.passed and latency[each.choice.name].relative <= slowest
    ]
    return max(fast, key=lambda each: each.quality.score, default=None)
