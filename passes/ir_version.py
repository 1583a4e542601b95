"""Which IR version a model has to declare."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

_OLDEST = 10  # node metadata, where provenance is recorded
_NEWEST = 13  # what ONNX Runtime loads


def fitting_ir_version(current: int, opset_imports: Mapping[str, int]) -> int:
    """The IR version for a model with ``opset_imports`` that now declares ``current``.

    Enough for the opsets and for node metadata (10), never lowered, and never above what ONNX
    Runtime loads (13).
    """
    opsets = [
        onnx.helper.make_opsetid(domain, version)
        for domain, version in opset_imports.items()
        if domain in ("", "ai.onnx.ml")
    ]
    needed = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return min(max(current, needed, _OLDEST), _NEWEST)
