"""Mixed precision: what every trade of speed for accuracy would give, and the best of them.

Layers go to float one after another, the one that makes most noise for the time it saves first.
The points on the way are built, judged and timed in one interleaved measurement, so that the curve
is one of measured figures, none of a model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxfold.runtime.compiler.choice import (
    SENSITIVE,
    Candidate,
    Latency,
    Log,
    ModelT,
    Subject,
)

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of the layers, at which points of the curve are measured."""


def mixtures(
    subject: Subject[ModelT], best: Candidate[ModelT], log: Log
) -> tuple[list[Candidate[ModelT]], Mapping[str, Latency]]:
    """``best`` and the same with more and more of its layers in float, with their latencies.

    Args:
        subject: How to build, judge and time, and what damage each layer does.
        best: The fastest within the budget, or all in integers.
        log: Told of each point.

    Returns:
        The points, ``best`` first, and one measurement of all of them.
    """
    layers = [name for name in subject.layers if name not in best.choice.skip]
    ranked = sorted(layers, key=subject.damage, reverse=True)
    points = [best]
    for count in sorted({round(share * len(ranked)) for share in _SHARES} - {0, len(ranked)}):
        layer = f"{count} noisiest layer{'s' if count > 1 else ''}"
        name = f"{best.choice.name}, {layer} in float"
        found = subject.candidate(best.choice.without(ranked[:count], name, SENSITIVE))
        if found is not None:
            points.append(found)
    latency = subject.time(points)
    for each in points[1:]:
        log.add(each.choice.name, each.quality, latency[each.choice.name], "mixed precision")
    return points, latency


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
