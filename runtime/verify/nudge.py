"""Moves a quantized model's scales by the least there is, to see what its own rounding is worth."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.walk import nested_graphs

_SCALES = {
    "DequantizeLinear": (1,),
    "MatMulIntegerToFloat": (2,),
    "QGemm": (1, 7),
    "QLinearAdd": (1, 4, 6),
    "QLinearAveragePool": (1, 3),
    "QLinearConv": (1, 6),
    "QLinearGlobalAveragePool": (1, 3),
    "QLinearLeakyRelu": (1, 3),
    "QLinearMatMul": (1, 6),
    "QLinearMul": (1, 4, 6),
    "QLinearSigmoid": (1, 3),
    "QLinearSoftmax": (1, 3),
    "QuantizeLinear": (1,),
}
"""Which inputs are the scales of activations."""


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
            for index in _scale_inputs(node):
                scale = constant_array(node.inputs[index])
                if scale is None or scale.dtype != np.float32:
                    continue
                value = ir.Value(name=f"nudged_scale_{moved}")
                value.const_value = ir.tensor(_nudged(scale, seed), name=value.name)
                graph.register_initializer(value)
                node.replace_input_with(index, value)
                moved += 1
    return copy if moved else None


def _scale_inputs(node: ir.Node) -> tuple[int, ...]:
    """The inputs of ``node`` that are scales of something that is computed."""
    if not node.inputs or constant_array(node.inputs[0]) is not None:
        return ()
    found = _SCALES.get(node.op_type, ())
    return tuple(index for index in found if index < len(node.inputs))


def _nudged(scale: Array, seed: int) -> Array:
    # A checksum of both would give two patterns in all: its parity is linear in the seed.
    digest = hashlib.blake2b(scale.tobytes(), key=seed.to_bytes(8, "little"), digest_size=1)
    upwards = digest.digest()[0] & 1
    return np.nextafter(scale, np.float32(np.inf if upwards else 0))
