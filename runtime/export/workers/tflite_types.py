"""TensorFlow Lite's constants and codes in types that ONNX has: float16 weights, 16-bit codes."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

_WIDE_OPSET = 21
"""The first whose QuantizeLinear knows 16-bit codes."""
_CHANGED = frozenset({"DFT", "GridSample", "GroupNormalization"})
"""What means something else in opset 21 than in 18; all others only take more types."""
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_SETTINGS = frozenset({"Clip", "Pad", "Range", "Resize", *_QUANTIZERS})
"""Whose constants are no weights: kernels and other passes read them ahead of a run."""


def store_halves(model: Any) -> int:
    """Store in float16 what float16 holds, as the file does: tf2onnx widens it.

    Args:
        model: An ONNX model of a file with float16 weights; modified.

    Returns:
        How many constants there were.
    """
    onnx: Any = importlib.import_module("onnx")
    settings = {
        name for node in model.graph.node if node.op_type in _SETTINGS for name in node.input
    }
    count = 0
    for tensor in list(model.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in settings:
            continue
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if array.ndim == 0 or not np.array_equal(half.astype(np.float32), array):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        to = onnx.TensorProto.FLOAT
        cast = onnx.helper.make_node("Cast", [tensor.name], [name], name=f"{name}_cast", to=to)
        model.graph.node.insert(0, cast)
        count += 1
    return count


def admit_wide_codes(model: Any) -> bool:
    """Have ``model`` say what 16-bit activations need: opset 21, and biases of 32 bits.

    TensorFlow Lite keeps their biases in 64 bits, which DequantizeLinear does not know. A bias
    that needs more than 32 becomes real.

    Args:
        model: An ONNX model as tf2onnx writes it; modified.

    Returns:
        Whether there are any 16-bit codes.
    """
    onnx: Any = importlib.import_module("onnx")
    constants = {each.name: each for each in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in _QUANTIZERS]
    types = {constants[node.input[2]].data_type for node in nodes if node.input[2] in constants}
    if not types & {onnx.TensorProto.INT16, onnx.TensorProto.UINT16}:
        return False
    if any(node.op_type in _CHANGED for node in model.graph.node):
        return False
    for node in nodes:
        codes = constants.get(node.input[0])
        if codes is not None and codes.data_type == onnx.TensorProto.INT64:
            _narrow(model, node, *(onnx.numpy_helper.to_array(constants[n]) for n in node.input))
    for each in model.opset_import:
        if each.domain in ("", "ai.onnx"):
            each.version = max(each.version, _WIDE_OPSET)
    return True


def _narrow(model: Any, node: Any, codes: Any, scale: Any, zero_point: Any) -> None:
    """Give a DequantizeLinear its constant in 32 bits; one array may be codes and zero point."""
    onnx: Any = importlib.import_module("onnx")
    limits, name = np.iinfo(np.int32), node.output[0]
    if codes.size and (codes.min() < limits.min or codes.max() > limits.max):
        real = (codes.astype(np.float64) - zero_point) * scale.astype(np.float64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(real.astype(np.float32), name))
        model.graph.node.remove(node)
        return
    for place, array in ((0, codes), (2, zero_point)):
        narrow = onnx.numpy_helper.from_array(array.astype(np.int32), f"{name}_int32_{place}")
        model.graph.initializer.append(narrow)
        node.input[place] = narrow.name
