"""Pictures of what was learned: grids of images, curves and points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]
Point = tuple[float, float]

_COLOURS = ("#1f5fa8", "#c2571a", "#3a8a3a", "#8a3a8a", "#777777")
_SIZE, _MARGIN, _TEXT = 360, 48, 16
_ZOOM, _GAP = 5, 4


def draw_grid(rows: Mapping[str, Sequence[Array]], path: Path, *, zoom: int = _ZOOM) -> None:
    """Write rows of small images, each row under its caption.

    Args:
        rows: by caption, arrays in [0, 1]: [H, W] grey or [3, H, W] in colour.
        path: where the PNG goes.
        zoom: pixels a pixel.
    """
    tiles = {name: [_tile(each, zoom) for each in images] for name, images in rows.items()}
    width = max(sum(each.width + _GAP for each in row) for row in tiles.values()) + _GAP
    height = sum(max(each.height for each in row) + _TEXT + 2 * _GAP for row in tiles.values())
    canvas = Image.new("RGB", (max(width, 300), height), "white")
    pen, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(12), _GAP
    for caption, row in tiles.items():
        pen.text((_GAP, top), caption, fill="black", font=font)
        left = _GAP
        for tile in row:
            canvas.paste(tile, (left, top + _TEXT))
            left += tile.width + _GAP
        top += max(each.height for each in row) + _TEXT + 2 * _GAP
    canvas.save(path, optimize=True)


def draw_chart(
    title: str,
    path: Path,
    *,
    lines: Mapping[str, Sequence[Point]],
    dots: Mapping[str, Sequence[Point]] | None = None,
    labels: tuple[str, str] = ("", ""),
) -> None:
    """Write a chart with straight axes: lines, and dots, each with a caption of its colour."""
    series = {**lines, **(dots or {})}
    points = np.array([point for each in series.values() for point in each], float)
    low, high = points.min(axis=0), points.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)

    def place(point: Point) -> tuple[float, float]:
        x, y = (np.asarray(point) - low) / spread
        return _MARGIN + x * _SIZE, _MARGIN + (1 - y) * _SIZE

    side = _SIZE + 2 * _MARGIN
    canvas = Image.new("RGB", (side, side + _TEXT * len(series)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    pen.text((_MARGIN, 8), title, fill="black", font=font)
    corner = (_MARGIN, _MARGIN, _MARGIN + _SIZE, _MARGIN + _SIZE)
    pen.rectangle(corner, outline="#999999")
    _write_axes(pen, font, low, high, labels)
    for index, (name, each) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        placed = [place(point) for point in each]
        if name in lines:
            pen.line(placed, fill=colour, width=2)
        else:
            for x, y in placed:
                pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        pen.text((_MARGIN, side - 8 + _TEXT * index), name, fill=colour, font=font)
    canvas.save(path, optimize=True)


def _write_axes(
    pen: ImageDraw.ImageDraw, font: Any, low: Array, high: Array, labels: tuple[str, str]
) -> None:
    bottom = _MARGIN + _SIZE + 4
    pen.text((_MARGIN, bottom), f"{low[0]:.4g}", fill="black", font=font)
    pen.text((_MARGIN + _SIZE, bottom), f"{high[0]:.4g}", fill="black", font=font, anchor="ra")
    pen.text((_MARGIN + _SIZE / 2, bottom), labels[0], fill="black", font=font, anchor="ma")
    pen.text((_MARGIN - 4, bottom - 16), f"{low[1]:.4g}", fill="black", font=font, anchor="ra")
    pen.text((_MARGIN - 4, _MARGIN), f"{high[1]:.4g}", fill="black", font=font, anchor="ra")
    pen.text((_MARGIN, _MARGIN - 18), labels[1], fill="black", font=font)


def _tile(image: Array, zoom: int) -> Image.Image:
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else 255 - pixels
    tile = Image.fromarray(np.ascontiguousarray(pixels))
    return tile.resize((tile.width * zoom, tile.height * zoom), Image.Resampling.NEAREST)
