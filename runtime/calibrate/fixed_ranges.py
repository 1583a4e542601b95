"""Ranges that follow from the operator: what no data can leave need not be observed."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.runtime.calibrate.method import Range

FIXED_RANGES: dict[str, Range] = {
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}
"""Operators of ai.onnx whose outputs are bounded, as TensorFlow Lite's quantization spec has it."""


def fixed_ranges(model: ir.Model) -> dict[str, Range]:
    """The ranges of the tensors of the main graph that such operators put out, by name."""
    return {
        node.outputs[0].name or "": FIXED_RANGES[node.op_type]
        for node in model.graph
        if not node.domain and node.op_type in FIXED_RANGES
    }
