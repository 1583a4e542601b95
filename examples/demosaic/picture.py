"""One picture of several restorations: each with its decibels, and below it where it errs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fixtures.demosaicnet import psnr

Picture = NDArray[np.float32]

GAIN = 10
"""How much brighter than the error itself an error map is."""
_TEXT, _GAP = 16, 8


def draw(original: Picture, mosaic: Picture, found: Mapping[str, Picture], path: Path) -> None:
    """Write a PNG: the mosaic and all restorations above, the original and all errors below.

    Args:
        original: [3, H, W] in [0, 1].
        mosaic: what the sensor saw of it.
        found: what each network, by the name to print, made of that.
        path: where the PNG goes.
    """
    above = {"mosaic": mosaic, **{_caption(k, original, v): v for k, v in found.items()}}
    below = {"original": original}
    for name, each in found.items():
        error = np.abs(np.clip(each, 0, 1) - original) * GAIN
        below[f"{name}: error x {GAIN}"] = error.astype(np.float32)
    height, width = original.shape[1] + _TEXT + _GAP, original.shape[2] + _GAP
    canvas = Image.new("RGB", (len(above) * width + _GAP, 2 * height + _GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for row, panels in enumerate((above, below)):
        for column, (caption, panel) in enumerate(panels.items()):
            left, top = _GAP + column * width, _GAP + row * height
            pen.text((left, top), caption, fill="black", font=font)
            canvas.paste(_image(panel), (left, top + _TEXT))
    canvas.save(path, optimize=True)


def _caption(name: str, original: Picture, found: Picture) -> str:
    decibels = psnr(original, found)
    return name if math.isinf(decibels) else f"{name}: {decibels:.2f} dB"


def _image(panel: Picture) -> Image.Image:
    pixels = np.rint(np.clip(panel, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
