"""Real data of a size that trains in seconds: handwritten digits, and patients with diabetes.

Both come from the package scikit-learn: the digits are the test set of "Optical Recognition of
Handwritten Digits" (UCI), the patients those of Efron et al., "Least Angle Regression" (2004).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixtures.fetch import fetch

Array = NDArray[Any]
SIDE = 8
CLASSES = 10
_DARKEST = 16


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, in two parts by different samples.

    Attributes:
        images: float32 [N, 64] in [0, 1], to learn from.
        labels: int64 [N], the digit of each.
        held_out: float32 [M, 64], to judge by.
        held_out_labels: int64 [M].
    """

    images: Array
    labels: Array
    held_out: Array
    held_out_labels: Array

    def batch(self, size: int, random: np.random.Generator) -> tuple[Array, Array]:
        """Return as many random images to learn from, and their labels."""
        chosen = random.choice(len(self.images), size, replace=False)
        return self.images[chosen], self.labels[chosen]


def digits(held_out: int = 360, seed: int = 0) -> Digits:
    """Return the 1,797 digits, ``held_out`` of them apart."""
    table = _table(fetch("digits"), delimiter=",")
    table = table[np.random.default_rng(seed).permutation(len(table))]
    images = (table[:, :-1] / _DARKEST).astype(np.float32)
    labels = table[:, -1].astype(np.int64)
    first = len(table) - held_out
    return Digits(images[:first], labels[:first], images[first:], labels[first:])


def diabetes() -> tuple[Array, Array]:
    """Return ten measurements of 442 patients, float64 [442, 10], and how ill they were later."""
    return _table(fetch("diabetes-data")), _table(fetch("diabetes-target"))


def _table(path: Path, delimiter: str | None = None) -> Array:
    with gzip.open(path, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=delimiter)
