"""Moves a quantized model's scales by the least there is, to see what its own rounding is worth."""

from __future__ import annotations

import zlib

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.walk import nested_graphs

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def nudge_scales(model: ir.Model, seed: int) -> ir.Model | None:
    """A copy of ``model`` whose activation scales are one unit in the last place off.

    Every value that lies between two codes may now round to the other one, which is all that two
    correct evaluations of a quantized model differ by; a deep network amplifies it as it pleases.
    Equal scales move alike, so that a Q and its DQ stay a pair.

    Args:
        model: The model; it is left as it is.
        seed: Which scales go up and which go down.

    Returns:
        The copy, or None where there is no float32 activation scale to move.
    """
    copy = model.clone()
    moved = 0
    # Local functions are left alone: they hold no initializers, and one body serves many calls.
    for graph in (copy.graph, *nested_graphs(copy.graph)):
        for node in tuple(graph):
            scale = _activation_scale(node)
            if scale is None:
                continue
            value = ir.Value(name=f"nudged_scale_{moved}")
            value.const_value = ir.tensor(_nudged(scale, seed), name=value.name)
            graph.register_initializer(value)
            node.replace_input_with(1, value)
            moved += 1
    return copy if moved else None


def _activation_scale(node: ir.Node) -> Array | None:
    """The constant float32 scale of a Q or DQ of something that is computed."""
    if node.op_type not in _QUANTIZERS or constant_array(node.inputs[0]) is not None:
        return None
    scale = constant_array(node.inputs[1])
    return scale if scale is not None and scale.dtype == np.float32 else None


def _nudged(scale: Array, seed: int) -> Array:
    upwards = zlib.crc32(scale.tobytes(), seed) & 1
    return np.nextafter(scale, np.float32(np.inf if upwards else 0))
