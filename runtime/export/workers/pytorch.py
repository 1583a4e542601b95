"""PyTorch's front end: what ``torch.export.save`` and ``torch.jit.save`` wrote."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request, serve

_MODULES = {"torch-export": "torch_programs", "torchscript": "torch_scripts"}


def export(request: Request, folder: Path) -> Answer:
    """Export by the module that knows this kind.

    Raises:
        FrontEndError: None does.
    """
    if request.kind not in _MODULES:
        raise FrontEndError(f"PyTorch does not read models of kind {request.kind}", "usage")
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(request.seed)
    name = f"onnxfold.runtime.export.workers.{_MODULES[request.kind]}"
    export_kind: Callable[[Request, Path], Answer] = importlib.import_module(name).export
    with torch.no_grad():
        return export_kind(request, folder)


if __name__ == "__main__":
    serve(export)
