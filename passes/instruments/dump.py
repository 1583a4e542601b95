"""Writes models to disk while a pipeline runs: after each change, and before a failure."""

from __future__ import annotations

import platform
import shlex
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.diff import diff_text, model_text
from onnxfold.passes.errors import InvalidModelError, UsageError, VerificationError
from onnxfold.passes.pipeline import BaseInstrument
from onnxfold.passes.serialization import write_model
from onnxfold.passes.spec import print_pass, save_values

_LIBRARIES = ("onnxfold", "onnx", "onnx-ir", "numpy")


class DumpIfChanged(BaseInstrument):
    """Writes ``NN-pass.onnx`` and ``NN-pass.diff`` after every pass that changed the model.

    Attributes:
        folder: Where the files go; NN counts all passes, from 01.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._model: ir.Model | None = None
        self._text = ""

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Remember the model's text."""
        self._count += 1
        if model is not self._model:
            self._model, self._text = model, model_text(model)

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """Write the model and the diff, if there is one.

        Raises:
            UsageError: The folder cannot be written.
        """
        self._model = model
        if not result.modified:
            return
        before, self._text = self._text, model_text(model)
        stem = f"{self._count:02d}-{pass_.name}"
        diff = diff_text(before, self._text, pass_.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_model(model, self.folder, f"{stem}.onnx")
            (self.folder / f"{stem}.diff").write_text(diff, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {self.folder}: {error.strerror}") from error


class CrashReproducer(BaseInstrument):
    """When a pass fails, writes what is needed to see it fail again.

    ``before.onnx`` is the model just before the failing pass; ``reproduce.txt`` holds the command
    and the error. An invalid input model is not the failure of a pass: nothing is written.

    Attributes:
        folder: Where the files go; created on failure only.
        written: Whether something was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = False
        self._before: ir.Model | None = None

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Keep a copy of the model; tensors are shared with it."""
        self._before = model.clone()

    def pass_failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        """Write the folder; that it cannot be written does not hide ``error``."""
        if self._before is None or isinstance(error, InvalidModelError):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_model(self._before, self.folder, "before.onnx")
            printable, _ = save_values(pass_, self.folder, pass_.name)
            text = _instructions(printable, error)
            (self.folder / "reproduce.txt").write_text(text, encoding="utf-8")
        except OSError:
            return
        self.written = True


def _instructions(pass_: Pass, error: Exception) -> str:
    passes = shlex.quote(print_pass(pass_))
    versions = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    lines = [
        f"onnxfold opt before.onnx -o after.onnx --passes {passes}",
        "",
        f"{type(error).__name__}: {error}",
        *([error.detail] if isinstance(error, VerificationError) else []),
        "",
        f"{versions}, Python {platform.python_version()}",
    ]
    return "\n".join(lines) + "\n"
