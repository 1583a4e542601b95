"""Keras models, of Keras 3 (.keras) and of Keras 2 (.h5)."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request
from onnxfold.runtime.export.workers.tf_functions import export_function, in_list
from onnxfold.runtime.export.workers.tf_layers import keras_layers_of

_LOADERS = {"keras": ("keras",), "keras-h5": ("tf_keras", "keras")}
"""What reads each kind, the better first: Keras 3 misreads some files of Keras 2."""
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
            reasons.append(_reason(str(error) or type(error).__name__))
    if not reasons:
        raise ImportError("No module named 'keras'")
    raise FrontEndError(f"Keras cannot load it: {min(reasons, key=len)}")


def _reason(words: str) -> str:
    """What Keras said, which may fill pages, in a line."""
    missing = _UNKNOWN_CLASS.search(words)
    if missing is None:
        return " ".join(words.split())[:300]
    return (
        f"its layer '{missing[1]}' is defined elsewhere; export the live model from the program "
        "that defines it, or build it of Keras' own layers"
    )
