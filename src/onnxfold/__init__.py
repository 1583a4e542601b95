"""onnxfold: ONNX graph rewriting that can be trusted.

Every function takes a model as a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``, and never
modifies it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxfold._version import __version__

if TYPE_CHECKING:
    from onnxfold.api import (
        Budget,
        Contract,
        Outcome,
        compile,
        explain,
        export,
        finetune,
        fold,
        inject_loss,
        optimize,
        quantize_static,
        run_passes,
        tune,
        verify,
    )

__all__ = [
    "Budget",
    "Contract",
    "Outcome",
    "__version__",
    "compile",
    "explain",
    "export",
    "finetune",
    "fold",
    "inject_loss",
    "optimize",
    "quantize_static",
    "run_passes",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    # ONNX Runtime takes most of a second to import: `onnxfold --help` need not wait for it.
    if name in __all__:
        return getattr(importlib.import_module("onnxfold.api"), name)
    raise AttributeError(f"module 'onnxfold' has no attribute '{name}'")
