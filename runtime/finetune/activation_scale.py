"""Scales of activations in Q/DQ graphs, each with all nodes that share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_FIXED = frozenset({"HardSigmoid", "Sigmoid", "Softmax", "Tanh"})
"""What they give lies in a range that is known: there is nothing to learn."""


@dataclass(frozen=True, eq=False)
class ActivationScale:
    """One scale, and the quantizers and dequantizers that have it.

    Tensors that are tied (what a Concat joins, what a pool hands on) have equal scales and zero
    points: whatever is equal stays equal.

    Attributes:
        nodes: Every QuantizeLinear and DequantizeLinear of activations with this scale.
        scale: float32, one number, of the shape in which it is stored.
    """

    nodes: tuple[ir.Node, ...]
    scale: Array

    @classmethod
    def find(cls, graph: ir.Graph) -> Iterator[ActivationScale]:
        """The scales of a graph, in the order of its nodes."""
        groups: dict[object, list[ir.Node]] = {}
        fixed: set[object] = set()
        for node in graph:
            key = _key(node)
            if key is None:
                continue
            groups.setdefault(key, []).append(node)
            if _is_fixed(node):
                fixed.add(key)
        for key, nodes in groups.items():
            scale = constant_array(nodes[0].inputs[1])
            if key not in fixed and scale is not None:
                yield cls(tuple(nodes), scale)


def _key(node: ir.Node) -> object:
    """What nodes of one scale have in common; None where ``node`` is about no activation."""
    if node.op_type not in _PAIR or node.domain or constant_array(node.inputs[0]) is not None:
        return None
    scale = constant_array(node.inputs[1])
    if scale is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = None if given is None else constant_array(given)
    if given is not None and zero is None:
        return None
    point = None if zero is None else (str(zero.dtype), int(zero.reshape(())))
    return scale.tobytes(), scale.ndim, point


def _is_fixed(node: ir.Node) -> bool:
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return source is not None and source.op_type in _FIXED
