"""Labelled samples of one classifier, in memory and as the .npz file that onnxfold reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Samples:
    """Model inputs and their true classes.

    Attributes:
        input_name: the name of the model's input.
        inputs: the samples along the first axis, in the model's dtype.
        labels: int64 [N], the index of each sample's class in the model's output.
    """

    input_name: str
    inputs: NDArray[Any]
    labels: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write an .npz with one array under the input's name, and the array `labels`."""
        arrays: dict[str, Any] = {self.input_name: self.inputs, "labels": self.labels}
        np.savez(path, **arrays)


def save_sets(folder: Path, calibration: Samples, evaluation: Samples) -> None:
    """Write calibration.npz and evaluation.npz into a folder, made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    calibration.save(folder / "calibration.npz")
    evaluation.save(folder / "evaluation.npz")
