"""Where the codes that a DequantizeLinear reads come from: what integers stand for is real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

QUANTIZERS = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
DEQUANTIZERS = frozenset({"DequantizeLinear"})

INTEGER_OPS = frozenset(
    {
        "ConvInteger",
        "ConvTransposeInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MulInteger",
        "NhwcMaxPool",
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMatMul",
        "QLinearMul",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QOrderedMatMul",
    }
)
"""Operators that compute on codes: what they compute has no gradient that could be used."""

_FIRST = (0,)
_MOVED_INPUTS: Mapping[str, tuple[int, ...] | None] = {
    "Concat": None,
    "DepthToSpace": _FIRST,
    "Expand": _FIRST,
    "Flatten": _FIRST,
    "Gather": _FIRST,
    "Identity": _FIRST,
    "MaxPool": _FIRST,
    "Pad": _FIRST,
    "Reshape": _FIRST,
    "Resize": _FIRST,
    "Slice": _FIRST,
    "SpaceToDepth": _FIRST,
    "Split": _FIRST,
    "Squeeze": _FIRST,
    "Tile": _FIRST,
    "Transpose": _FIRST,
    "Unsqueeze": _FIRST,
    "Where": (1, 2),
}
"""Operators that hand on codes unchanged, and which inputs they take them from; None is all."""


@dataclass(frozen=True)
class QuantizedPath:
    """What lies between codes and the real tensors that they were rounded from.

    Attributes:
        movement: The nodes that hand codes on, producers before consumers.
        quantizers: The nodes that round.
        sources: The real inputs of those, and of operators that compute on codes.
    """

    movement: tuple[ir.Node, ...]
    quantizers: tuple[ir.Node, ...]
    sources: tuple[ir.Value, ...]


def quantized_path(*codes: ir.Value | None) -> QuantizedPath:
    """What ``codes`` come from, back to real tensors, initializers and graph inputs."""
    done: dict[ir.Node, None] = {}
    sources: dict[ir.Value, None] = {}
    # A node is left behind when all it reads has been seen: producers come first.
    stack = [(value, False) for value in codes][::-1]
    seen: set[ir.Node] = set()
    while stack:
        value, leaving = stack.pop()
        node = None if value is None else value.producer()
        if node is None:
            continue
        if leaving:
            done[node] = None
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((value, True))
        if node.op_type in QUANTIZERS or node.op_type in INTEGER_OPS:
            sources.update((each, None) for each in node.inputs if each and _is_real(each))
        if node.op_type not in QUANTIZERS:
            stack += [(each, False) for each in _codes_read(node)][::-1]
    return QuantizedPath(
        tuple(node for node in done if node.op_type in _MOVED_INPUTS),
        tuple(node for node in done if node.op_type in QUANTIZERS),
        tuple(sources),
    )


def hidden_sources(node: ir.Node) -> tuple[ir.Value, ...]:
    """The real tensors that ``node`` depends on through the codes that it reads."""
    if node.op_type in DEQUANTIZERS:
        return quantized_path(node.inputs[0]).sources
    return quantized_path(*node.inputs).sources if node.op_type in INTEGER_OPS else ()


def moved_inputs(node: ir.Node) -> tuple[int, ...]:
    """The positions of the inputs whose elements ``node`` hands on."""
    known = _MOVED_INPUTS[node.op_type]
    return tuple(range(len(node.inputs))) if known is None else known


def _codes_read(node: ir.Node) -> list[ir.Value | None]:
    if node.op_type in _MOVED_INPUTS:
        return [node.inputs[index] for index in moved_inputs(node)]
    return list(node.inputs) if node.op_type in INTEGER_OPS else []


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
