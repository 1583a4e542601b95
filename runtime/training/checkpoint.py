"""Writes the state of a training to a file, whole or not at all, and reads it back."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError

_FORMAT = 1
_STATE = "state/"


@dataclass(frozen=True)
class Checkpoint:
    """All that a training graph needs to go on.

    Attributes:
        step: How many steps were done.
        graph: The sha256 of the training graph.
        states: The state, by the name of the input that reads it.
    """

    step: int
    graph: str
    states: Mapping[str, Array]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint``; who reads ``path`` meanwhile sees the old file or the new one.

    Raises:
        UsageError: There is no such folder, or it cannot be written to.
    """
    arrays: dict[str, Array] = {
        "format": np.array(_FORMAT),
        "step": np.array(checkpoint.step),
        "graph": np.array(checkpoint.graph),
        **{_STATE + name: array for name, array in checkpoint.states.items()},
    }
    try:
        # Beside the target: only within one file system is a file replaced at once.
        handle, whole = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, path)
        except BaseException:
            Path(whole).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what ``write_checkpoint`` wrote.

    Raises:
        UsageError: The file is missing, broken, or no checkpoint.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        # numpy leaves a broken file open where it opened it itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays: dict[str, Array] = dict(found)
        if int(arrays["format"]) != _FORMAT:
            raise UsageError(f"{path}: a checkpoint of another version of onnxfold")
        states = {
            name.removeprefix(_STATE): array
            for name, array in arrays.items()
            if name.startswith(_STATE)
        }
        return Checkpoint(int(arrays["step"]), str(arrays["graph"]), states)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: not a checkpoint that Trainer.save wrote, or damaged") from error
