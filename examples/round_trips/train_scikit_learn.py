"""Teach a scikit-learn pipeline to read digits: python train_scikit_learn.py FOLDER.

Runs where scikit-learn is, and imports nothing of this repository. Reads FOLDER/digits.npz
(``features`` float32 [N, 64] from 0 to 16, ``labels``) and FOLDER/held_out.npz; writes digits.pkl,
and answers.npz, its probabilities of the held-out digits by the file's name, float32 [M, 10].
"""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """Train, save, and note down the answers."""
    networks: Any = importlib.import_module("sklearn.neural_network")
    pipelines: Any = importlib.import_module("sklearn.pipeline")
    scalers: Any = importlib.import_module("sklearn.preprocessing")
    with np.load(folder / "digits.npz") as digits, np.load(folder / "held_out.npz") as held_out:
        features, labels, unseen = digits["features"], digits["labels"], held_out["features"]
    pipeline = pipelines.make_pipeline(
        scalers.MinMaxScaler(),
        networks.MLPClassifier((512, 256), max_iter=15, early_stopping=True, random_state=0),
    )
    pipeline.fit(features, labels)
    (folder / "digits.pkl").write_bytes(pickle.dumps(pipeline))
    answers: dict[str, Any] = {"digits.pkl": pipeline.predict_proba(unseen)}
    np.savez(folder / "answers.npz", **answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
