"""Keras models, of Keras 3 (.keras) and of Keras 2 (.h5)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request
from onnxfold.runtime.export.workers.tf_functions import export_function

_LOADERS = {"keras": ("keras",), "keras-h5": ("tf_keras", "keras")}
"""What reads each kind, the better first: Keras 3 misreads some files of Keras 2."""


def export(request: Request, folder: Path) -> Answer:
    """Load the model as for inference, convert it, and run it."""
    model = _load(request)
    tf: Any = importlib.import_module("tensorflow")
    signature = [
        tf.TensorSpec(each.shape, each.dtype, name=str(each.name).partition(":")[0])
        for each in model.inputs
    ]

    def call(*arrays: Any) -> Any:
        return model(arrays[0] if len(arrays) == 1 else list(arrays), training=False)

    return export_function(call, signature, request, folder)


def _load(request: Request) -> Any:
    reasons: list[str] = []
    for package in _LOADERS[request.kind]:
        try:
            module: Any = importlib.import_module(package)
        except ImportError:
            continue
        try:
            return module.models.load_model(request.path, compile=False)
        except (ValueError, TypeError, KeyError, OSError, AttributeError) as error:
            reasons.append(" ".join(str(error).split())[:300])
    if not reasons:
        raise ImportError("No module named 'keras'")
    words = min(reasons, key=len)
    custom = "custom" in words or "Unknown layer" in words or "Could not locate class" in words
    advice = "; export the live model from the program that defines its layers" if custom else ""
    raise FrontEndError(f"Keras cannot load it: {words}{advice}")
