"""TensorFlow's front end: what TensorFlow and its kin save, by tf2onnx."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request, serve

_MODULES = {
    "frozen-graph": "frozen_graph",
    "keras": "keras",
    "keras-h5": "keras",
    "savedmodel": "savedmodel",
    "tflite": "tflite",
    "tfjs-graph": "tfjs",
    "tfjs-layers": "tfjs",
}


def export(request: Request, folder: Path) -> Answer:
    """Export by the module that knows this kind.

    Raises:
        FrontEndError: None does.
    """
    if request.kind not in _MODULES:
        raise FrontEndError(f"models of kind {request.kind} cannot be exported yet", "usage")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    name = f"onnxfold.runtime.export.workers.{_MODULES[request.kind]}"
    export_kind: Callable[[Request, Path], Answer] = importlib.import_module(name).export
    return export_kind(request, folder)


if __name__ == "__main__":
    serve(export)
