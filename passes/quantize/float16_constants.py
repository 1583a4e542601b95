"""Constants in float16: the nearest values, and what is lost."""

from __future__ import annotations

import numpy as np

from onnxfold.passes.constants import Array

LARGEST = 65504.0
"""The largest finite float16."""


def to_float16(array: Array) -> tuple[Array, str]:
    """The nearest float16 values; what is too large for them becomes the largest.

    Args:
        array: float32. Infinities and NaN stay.

    Returns:
        The values, and what became of others in words; empty where nothing did.
    """
    finite = np.isfinite(array)
    large = finite & (np.abs(array) > LARGEST)
    with np.errstate(over="ignore", under="ignore"):
        half: Array = np.where(large, np.copysign(LARGEST, array), array).astype(np.float16)
    lost = int(np.count_nonzero((half == 0) & (array != 0)))
    parts: list[str] = []
    if large.any():
        most = float(np.abs(array[large]).max())
        parts.append(f"{int(large.sum())} of {array.size} values clipped (up to {most:.3g})")
    if lost:
        parts.append(f"{lost} of {array.size} values too small, now 0")
    return half, ", ".join(parts)
