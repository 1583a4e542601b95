"""Keras models, of Keras 3 (.keras) and of Keras 2 (.h5)."""

from __future__ import annotations

import importlib
import json
import re
import sys
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request
from onnxfold.runtime.export.workers.tf_functions import export_function, in_list
from onnxfold.runtime.export.workers.tf_layers import keras_layers_of

_LOADERS = {"keras": ("keras",), "keras-h5": ("tf_keras", "keras")}
"""What reads each kind, the better first: Keras 3 misreads some files of Keras 2."""
_NEWER_PYTHON, _LAST_OF_OLDER_PYTHON = (3, 11), (3, 12, 999)
"""From which Python on there are versions of Keras newer than these."""
_UNKNOWN_CLASS = re.compile(
    r"(?:Could not locate class|Unknown layer:?|locate function) '?\"?(?:\w+>)?(\w+)"
)


def export(request: Request, folder: Path) -> Answer:
    """Load the model as for inference, convert it, and run it."""
    return export_keras(_load(request), request, folder)


def export_keras(model: Any, request: Request, folder: Path) -> Answer:
    """Convert a Keras model that is in memory, and run it."""
    tf: Any = importlib.import_module("tensorflow")
    signature = [
        tf.TensorSpec(each.shape, each.dtype, name=str(each.name).partition(":")[0])
        for each in model.inputs
    ]

    names = [str(name) for name in getattr(model, "output_names", ())]

    def call(*arrays: Any) -> Any:
        found = model(arrays[0] if len(arrays) == 1 else list(arrays), training=False)
        tensors = in_list(found)
        several = len(tensors) == len(names) > 1
        return dict(zip(names, tensors, strict=True)) if several else found

    layers = partial(keras_layers_of, model)
    return export_function(call, signature, request, folder, layers)


def _load(request: Request) -> Any:
    reasons: list[str] = []
    for package in _LOADERS[request.kind]:
        try:
            module: Any = importlib.import_module(package)
        except ImportError:
            continue
        try:
            return module.models.load_model(request.path, compile=False)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - what it raises depends on what is broken
            refuse_newer(request.path, str(getattr(module, "__version__", "0")))
            reasons.append(_reason(str(error) or type(error).__name__))
    if not reasons:
        raise ImportError("No module named 'keras'")
    raise FrontEndError(f"Keras cannot load it: {min(reasons, key=len)}")


def refuse_newer(path: str, installed: str) -> None:
    """Say so where a .keras file that could not be loaded is of a newer Keras than the installed.

    Raises:
        FrontEndError: It is.
    """
    wrote = _written_by(path)
    if _numbers(wrote) <= _numbers(installed):
        return
    fix = f"pip install 'keras>={wrote}'"
    if sys.version_info < _NEWER_PYTHON and _numbers(wrote) > _LAST_OF_OLDER_PYTHON:
        fix = (
            f"there is none so new for Python {sys.version_info[0]}.{sys.version_info[1]}: name an "
            "interpreter of Python 3.11 or newer with --python, or save it with Keras 3.12"
        )
    raise FrontEndError(
        f"it was written by Keras {wrote}, and Keras {installed}, which is installed, cannot load "
        f"it: {fix}",
        "usage",
    )


def _written_by(path: str) -> str:
    """The version of Keras that a .keras file names; empty for other files."""
    unreadable = suppress(OSError, KeyError, ValueError, zipfile.BadZipFile)
    with unreadable, zipfile.ZipFile(path) as archive:
        return str(json.loads(archive.read("metadata.json"))["keras_version"])
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _reason(words: str) -> str:
    """What Keras said, which may fill pages, in a line."""
    missing = _UNKNOWN_CLASS.search(words)
    if missing is None:
        return " ".join(words.split())[:300]
    return (
        f"its layer '{missing[1]}' is defined elsewhere; export the live model from the program "
        "that defines it, or build it of Keras' own layers"
    )
