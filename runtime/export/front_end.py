"""Has a framework export a model in a process of its own, where its messages and crashes stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import onnxfold
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, InvalidModelError, OnnxfoldError, UsageError
from onnxfold.runtime.export.sources import Framework, Source
from onnxfold.runtime.export.workers.protocol import (
    ANSWER,
    MODEL,
    Answer,
    Feed,
    Request,
    read_layers,
    read_samples,
    write_request,
)
from onnxfold.runtime.loading import load_model

EXTRAS: dict[Framework, str] = {"tensorflow": "tf", "torch": "torch", "sklearn": "sklearn"}
"""The extra to install for each framework."""

_WORKERS: dict[Framework, str] = {
    "tensorflow": "tensorflow",
    "torch": "pytorch",
    "sklearn": "scikit",
}
_SECONDS = 900.0
_LAST_WORDS = 300


@dataclass(frozen=True)
class Exported:
    """A model as the front end made it, and what its framework computes.

    Attributes:
        model: The ONNX model, as the exporter wrote it; None where it was only run.
        answer: What the front end said of it.
        feeds: What was fed, by the model's names.
        expected: What the framework computed of each, by the model's names.
        others: What other kernels of the framework computed; empty where it has no others.
        inside: What the framework computed inside of each, where that was asked for.
    """

    model: ir.Model | None
    answer: Answer
    feeds: tuple[Feed, ...]
    expected: tuple[Feed, ...]
    others: tuple[Feed, ...] = ()
    inside: tuple[Feed, ...] = ()


def run_front_end(
    source: Source,
    request: Request,
    feeds: Sequence[Feed] = (),
    *,
    python: str | os.PathLike[str] | None = None,
    seconds: float = _SECONDS,
) -> Exported:
    """Export ``source`` in a process of its own.

    Args:
        source: What to export.
        request: How.
        feeds: What to run in the framework, by the names that it uses; made up if there are none.
        python: The interpreter that has the framework; the one that runs this if None.
        seconds: After which the process is killed.

    Raises:
        UsageError: The framework is missing, or does not know what was asked for.
        InvalidModelError: The source is broken, or holds what ONNX has no operator for.
        ExecutionError: The process crashed or ran out of time.
    """
    with tempfile.TemporaryDirectory(prefix="onnxfold-export-") as name:
        folder = Path(name)
        write_request(folder, request, feeds)
        words = _run(source, folder, os.fspath(python or sys.executable), seconds)
        return read_exported(source, folder, words, runs_only=request.runs_only)


def read_exported(
    source: Source, folder: Path, words: str = "", *, runs_only: bool = False
) -> Exported:
    """Read what a front end left in ``folder``.

    Args:
        source: What it exported.
        folder: Where its answer is.
        words: Its last words, for one that crashed.
        runs_only: Whether it was asked for samples, and for no model.

    Raises:
        OnnxfoldError: It answered that something is wrong, or crashed.
    """
    answer = _read_answer(source, folder, words)
    model = None if runs_only else _read_model(folder / MODEL)
    given, expected, others = read_samples(folder)
    inside = tuple(read_layers(folder))
    return Exported(model, answer, tuple(given), tuple(expected), tuple(others), inside)


def _read_model(path: Path) -> ir.Model:
    """The model, with all weights in memory: the folder that it lies in goes away."""
    model = load_model(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            array: Array = np.array(value.const_value.numpy())
            value.const_value = ir.tensor(array, name=value.name)
    return model


def _run(source: Source, folder: Path, python: str, seconds: float) -> str:
    """Run the worker to its end and return its last words."""
    worker = f"onnxfold.runtime.export.workers.{_WORKERS[source.framework]}"
    command = [python, "-m", worker, str(folder)]
    # The interpreter may be another one, which does not have this package.
    place = str(Path(onnxfold.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH", ""))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Exporters walk through sets: the same order every time, so the same file every time.
        "PYTHONHASHSEED": "0",
    }
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExecutionError(f"{source.path}: not exported within {seconds:.0f} s") from error
    except OSError as error:
        raise UsageError(f"cannot run {python}: {error.strerror or error}") from error
    return " ".join(done.stderr.decode(errors="replace").split())[-_LAST_WORDS:]


def _read_answer(source: Source, folder: Path, words: str) -> Answer:
    path = folder / ANSWER
    if not path.is_file():
        raise ExecutionError(f"{source.path}: {source.framework} crashed: {words or 'no word'}")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "answer" in document:
        found: dict[str, Any] = document["answer"]
        return Answer(
            inputs=tuple(found["inputs"]),
            outputs=tuple(found["outputs"]),
            versions=found["versions"],
            layers=found.get("layers", {}),
            notes=tuple(found.get("notes", ())),
            count=found.get("count", 0),
        )
    raise _error(source, document["fault"], document["message"])


def _error(source: Source, fault: str, message: str) -> OnnxfoldError:
    if fault == "missing":
        extra = EXTRAS[source.framework]
        return UsageError(
            f"{source.path} needs {source.framework}, which is not installed ({message}): "
            f"pip install 'onnxfold[{extra}]', or name an interpreter that has it in "
            "$ONNXFOLD_PYTHON"
        )
    if fault == "usage":
        return UsageError(f"{source.path}: {message}")
    if fault in ("invalid", "unsupported"):
        return InvalidModelError(f"{source.path}: {message}")
    return ExecutionError(f"{source.path}: {source.framework}: {message}")
