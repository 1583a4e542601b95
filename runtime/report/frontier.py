"""The picture of what accuracy costs: every candidate that was judged and timed, and the frontier.

Drawn as SVG by hand: a scatter plot is some forty lines, and a plotting library would be the
heaviest dependency of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 40, 56
_TICKS = 5
_COLOURS = {"chosen": "#0a7d34", "passed": "#1f5fbf", "missed": "#b3261e"}
_LEGEND = {"chosen": "chosen", "passed": "within the budget", "missed": "misses the budget"}


@dataclass(frozen=True)
class Point:
    """A candidate that was judged and timed.

    Attributes:
        name: What it is called.
        relative: Its latency over the original's.
        score: SQNR of its worst output in dB.
        state: ``chosen``, ``passed`` or ``missed`` (the budget).
    """

    name: str
    relative: float
    score: float
    state: str


def points(decisions: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The candidates among ``decisions`` that have both figures; the last word on each."""
    found: dict[str, Point] = {}
    for row in decisions:
        relative, score = row.get("relative"), row.get("score_db")
        if relative is None or score is None or not math.isfinite(score):
            continue
        chosen = str(row["outcome"]).startswith("chosen")
        state = "chosen" if chosen else "passed" if row.get("passed") else "missed"
        found[row["candidate"]] = Point(row["candidate"], relative, score, state)
    return list(found.values())


def frontier(found: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both latency and accuracy, the fastest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda each: (each.relative, -each.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best


def draw(found: Sequence[Point]) -> str:
    """A scatter plot as an SVG document: to the left is faster, up is nearer to the original.

    Args:
        found: At least two points.
    """
    across = _Scale.of([each.relative for each in found] + [1.0], _LEFT, _WIDTH - _RIGHT)
    up = _Scale.of([each.score for each in found], _HEIGHT - _BOTTOM, _TOP)
    line = " ".join(f"{across(each.relative)},{up(each.score)}" for each in frontier(found))
    original = across(1.0)
    body = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_axes(across, up),
        f'<line x1="{original}" x2="{original}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
        'stroke="#777777" stroke-dasharray="4 4"/>',
        _text(original - 4, _HEIGHT - _BOTTOM - 8, "original", anchor="end"),
        f'<polyline points="{line}" fill="none" stroke="#555555" stroke-width="1.5"/>',
        *(_mark(each, across, up) for each in found),
        *_legend({each.state for each in found}),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
            *body,
            "</svg>",
            "",
        ]
    )


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - margin, high + margin, start, end)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        step = (self.high - self.low) / _TICKS
        return [self.low + step * (index + 0.5) for index in range(_TICKS)]


def _axes(across: _Scale, up: _Scale) -> Iterable[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    yield f'<path d="M{_LEFT} {_TOP} V{bottom} H{right}" fill="none" stroke="#333333"/>'
    for value in across.ticks:
        yield _text(across(value), bottom + 18, f"{value:.2f}")
    for value in up.ticks:
        yield _text(_LEFT - 8, up(value) + 4, f"{value:.1f}", anchor="end")
    yield _text((_LEFT + right) / 2, _HEIGHT - 14, "latency, of the original's (less is faster)")
    yield _text(_LEFT, _TOP - 18, "SQNR, dB (more is nearer)", anchor="start")


def _mark(point: Point, across: _Scale, up: _Scale) -> str:
    title = f"{point.name}: {point.relative:.3f} of the original's latency, {point.score:.1f} dB"
    radius = 7 if point.state == "chosen" else 4.5
    return (
        f'<circle cx="{across(point.relative)}" cy="{up(point.score)}" r="{radius}" '
        f'fill="{_COLOURS[point.state]}" fill-opacity="0.85">'
        f"<title>{escape(title)}</title></circle>"
    )


def _legend(states: Iterable[str]) -> Iterable[str]:
    shown = [state for state in _LEGEND if state in set(states)]
    for index, state in enumerate(shown):
        x = _WIDTH - _RIGHT - 150 * (len(shown) - index)
        yield f'<circle cx="{x}" cy="{_TOP - 22}" r="5" fill="{_COLOURS[state]}"/>'
        yield _text(x + 10, _TOP - 18, _LEGEND[state], anchor="start")


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'
