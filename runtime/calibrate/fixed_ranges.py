"""Ranges that follow from the operator: what no data can leave need not be observed."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.walk import nested_graphs
from onnxfold.runtime.calibrate.method import Range

FIXED_RANGES: dict[str, Range] = {
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}
"""Operators of ai.onnx whose outputs are bounded, as TensorFlow Lite's quantization spec has it."""


def fixed_ranges(model: ir.Model) -> dict[str, Range]:
    """The ranges of the tensors that such operators put out, by name.

    Bodies side by side can share a name: it is listed where all tensors under it have one range.
    """
    found: dict[str, set[Range | None]] = {}
    for graph in (model.graph, *nested_graphs(model.graph)):
        for node in graph:
            bounds = None if node.domain else FIXED_RANGES.get(node.op_type)
            for output in node.outputs:
                found.setdefault(output.name or "", set()).add(bounds)
    fixed: dict[str, Range] = {}
    for name, ranges in found.items():
        only = next(iter(ranges)) if len(ranges) == 1 else None
        if only is not None:
            fixed[name] = only
    return fixed
