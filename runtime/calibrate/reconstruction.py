"""What quantizing a tensor would cost, from its histogram: the squared error of a range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.calibrate.histogram import Histogram

STEPS = 255
"""Steps between the lowest and the highest of 8-bit codes."""

_FINE = 32  # bins next to zero that are never merged: most values of many tensors are there
_MERGED = 8


@dataclass(frozen=True, eq=False)
class Density:
    """How many values lie between neighbouring edges, spread evenly there.

    Attributes:
        edges: float64 [n + 1], ascending.
        counts: float64 [n].
    """

    edges: Array
    counts: Array

    @classmethod
    def of(cls, seen: Histogram) -> Density:
        """All bins of ``seen`` that the values span."""
        edges = seen.edges()
        used = np.flatnonzero(seen.counts)
        first, last = int(used[0]), int(used[-1])
        return cls(edges[first : last + 2], seen.counts[first : last + 1].astype(np.float64))

    @classmethod
    def coarse(cls, seen: Histogram) -> Density:
        """The same with bins merged away from zero; a step of a wide range still spans some."""
        fine = cls.of(seen)
        keep = np.abs(fine.edges) <= _FINE * seen.width
        keep[::_MERGED] = True
        keep[[0, -1]] = True
        starts = np.flatnonzero(keep)
        return cls(fine.edges[starts], np.add.reduceat(fine.counts, starts[:-1]))

    def squared_error(self, lows: Array, highs: Array) -> Array:
        """The sum of (x - its code's real number) ** 2 over all values x, for each range.

        Exact for values spread evenly between the edges: the error between two edges is the
        difference of its antiderivative. Ranges become scales and zero points as in
        ``affine_from_range``.

        Args:
            lows: float64 [m]; lowest real numbers.
            highs: float64 [m]; highest real numbers.

        Returns:
            float64 [m].
        """
        lows, highs = np.minimum(lows, 0.0)[:, None], np.maximum(highs, 0.0)[:, None]
        spans = highs - lows
        scales = np.where(spans > 0, spans, 1.0) / STEPS
        zeros = np.clip(np.rint(-lows / scales), 0, STEPS)
        bottoms, tops = -zeros * scales, (STEPS - zeros) * scales
        widths = np.diff(self.edges)
        areas = np.diff(_antiderivative(self.edges, scales, bottoms, tops), axis=1)
        # Where a bin was cut to a point, as good as: the error in its middle.
        points = widths < scales * 1e-6
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        nearest = np.clip(np.rint(middles / scales) * scales, bottoms, tops)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.where(points, (middles - nearest) ** 2, areas / widths)
        found: Array = errors @ self.counts
        return found


def _antiderivative(x: Array, scales: Array, bottoms: Array, tops: Array) -> Array:
    """The integral of (x - nearest code) ** 2 from any fixed point to ``x``; [m, n]."""
    inside = np.clip(x, bottoms, tops)
    steps = np.rint(inside / scales)
    rest = inside - steps * scales
    beyond = x - inside
    # Each whole step contributes scale ** 3 / 12. (numpy is slow at third powers.)
    integral: Array = steps * (scales * scales * scales / 12)
    integral += (rest * rest * rest + beyond * beyond * beyond) / 3
    return integral
