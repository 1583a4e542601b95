"""A picture of what a model was and what it became: bars in pairs, for latency and for size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 720
_LABEL, _FIGURES = 170, 190
_ROW, _GAP, _BAR = 26, 14, 16
_BEFORE, _AFTER = "#8c959f", "#0a7d34"


@dataclass(frozen=True)
class Pair:
    """One quantity before and after.

    Attributes:
        name: What it is, with its unit.
        before: Of the model that came in.
        after: Of the one that goes out.
        form: How a figure is written.
    """

    name: str
    before: float
    after: float
    form: str


def draw_pairs(pairs: Sequence[Pair]) -> str:
    """An SVG document; each pair has a scale of its own, the larger of its two."""
    height = len(pairs) * (2 * _ROW + _GAP) + _GAP
    rows = [line for index, pair in enumerate(pairs) for line in _pair(pair, index)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            *rows,
            "</svg>",
            "",
        ]
    )


def _pair(pair: Pair, index: int) -> Iterator[str]:
    top = _GAP + index * (2 * _ROW + _GAP)
    longest = max(pair.before, pair.after) or 1.0
    yield _text(_LABEL - 10, top + _ROW + 2, pair.name, anchor="end")
    ratio = f" ({pair.after / pair.before:.2f} of it)" if pair.before else ""
    for row, (value, colour, note) in enumerate(
        [(pair.before, _BEFORE, " original"), (pair.after, _AFTER, ratio)]
    ):
        y = top + row * _ROW
        width = round((_WIDTH - _LABEL - _FIGURES) * value / longest, 1)
        yield f'<rect x="{_LABEL}" y="{y}" width="{width}" height="{_BAR}" fill="{colour}"/>'
        yield _text(_LABEL + width + 8, y + 13, f"{value:{pair.form}}{note}")


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'
