"""Render text lines, upright and upside down, for the PP-OCR direction classifier.

Calibration and evaluation share neither a string nor a font size. Images become model inputs as
rapidocr does it: resized to a height of 48 keeping the aspect, normalized to [-1, 1], padded with
zeros to a width of 192.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.samples import Samples, save_sets
from fixtures.text_lines import draw_line, pick_font, text_lines

HEIGHT, WIDTH = 48, 192
CALIBRATION_LINES = 256
EVALUATION_LINES = 512
CALIBRATION_SIZES = (16, 20, 26, 34)
EVALUATION_SIZES = (15, 18, 23, 30)
FONT_FAMILIES = ("DejaVuSans", "DejaVuSerif", "Liberation", "FreeSans", "FreeSerif", "NotoSans-")


def system_fonts(root: Path = Path("/usr/share/fonts")) -> list[Path]:
    """Return the Latin text fonts installed on the machine, in a fixed order, possibly none."""
    found = [path for path in root.rglob("*.ttf") if path.name.startswith(FONT_FAMILIES)]
    return sorted(found)


def preprocess(line: Image.Image) -> NDArray[np.float32]:
    """Return the classifier's input for one image of a text line: float32 [3, 48, 192]."""
    width = min(WIDTH, math.ceil(HEIGHT * line.width / line.height))
    resized = line.convert("RGB").resize((width, HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.frombuffer(resized.tobytes(), np.uint8).reshape(HEIGHT, width, 3)
    padded = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    padded[:, :, :width] = (np.moveaxis(pixels, 2, 0) / np.float32(255) - 0.5) / 0.5
    return padded


def build(fonts: Sequence[Path]) -> tuple[Samples, Samples]:
    """Return the calibration and the evaluation set. The same fonts give the same sets.

    Args:
        fonts: font files to draw with; Pillow's own scalable font when empty.
    """
    rng = np.random.default_rng(0)
    lines = text_lines(rng, CALIBRATION_LINES + EVALUATION_LINES)
    calibration = _render(lines[:CALIBRATION_LINES], fonts, CALIBRATION_SIZES, rng)
    return calibration, _render(lines[CALIBRATION_LINES:], fonts, EVALUATION_SIZES, rng)


def _render(
    lines: Sequence[str], fonts: Sequence[Path], sizes: Sequence[int], rng: np.random.Generator
) -> Samples:
    inputs: list[NDArray[np.float32]] = []
    for text in lines:
        image = draw_line(text, pick_font(fonts, sizes, rng), rng)
        inputs += [preprocess(image), preprocess(image.transpose(Image.Transpose.ROTATE_180))]
    # Class 0 is upright, class 1 turned by 180 degrees.
    labels = np.tile(np.array([0, 1], dtype=np.int64), len(lines))
    return Samples("x", np.stack(inputs), labels)


def main() -> None:
    """Write calibration.npz and evaluation.npz into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the two files go")
    folder: Path = parser.parse_args().folder
    calibration, evaluation = build(system_fonts())
    save_sets(folder, calibration, evaluation)
    print(f"{len(calibration.labels)} calibration and {len(evaluation.labels)} evaluation samples")


if __name__ == "__main__":
    main()
