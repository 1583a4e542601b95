"""Backwards from QuantizeLinear: the type that everything which reads a value asks for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.fold.types import TypeState, is_activation_type, is_quantize

COMMUTING: dict[str, tuple[int, ...] | None] = {
    "Clip": (0,),
    "Concat": None,
    "DepthToSpace": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GlobalMaxPool": (0,),
    "Identity": (0,),
    "Max": None,
    "MaxPool": (0,),
    "Min": None,
    "Pad": (0,),
    "ReduceMax": (0,),
    "ReduceMin": (0,),
    "Relu": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
"""Ops f with quantize(f(x)) = quantize(f(dequantize(quantize(x)))): they select elements or are
monotone. For each, the inputs that are data; None means all."""


def find_wants(graphs: Sequence[ir.Graph], types: TypeState) -> None:
    """Fill ``types.wants``, in one sweep from the outputs back."""
    for graph in graphs:
        for node in reversed(graph):
            for output in node.outputs:
                want = _want(output, graph, types)
                if want is not None:
                    types.wants[output] = want


def _want(value: ir.Value, graph: ir.Graph, types: TypeState) -> AffineType | None:
    if value.is_graph_output():
        return None
    agreed: AffineType | None = None
    for node, index in value.uses():
        want = _want_of_use(node, index, types) if node.graph is graph else None
        if want is None or (agreed is not None and want is not agreed):
            return None
        agreed = want
    return agreed


def _want_of_use(node: ir.Node, index: int, types: TypeState) -> AffineType | None:
    if is_quantize(node):
        affine = types.parameters(node) if index == 0 else None
        if affine is None or not is_activation_type(affine):
            return None
        return types.internal(affine)
    if not commutes(node, index):
        return None
    wants = [types.want(output) for output in node.outputs if output.uses()]
    if any(output.is_graph_output() for output in node.outputs):
        return None
    return wants[0] if wants and all(want is wants[0] for want in wants) else None


def commutes(node: ir.Node, index: int) -> bool:
    """Whether quantizing input ``index`` of ``node`` first changes no code of the result."""
    if node.domain or node.op_type not in COMMUTING:
        return False
    positions = COMMUTING[node.op_type]
    if positions is not None and index not in positions:
        return False
    if node.op_type == "Clip":
        bounds = [value for value in node.inputs[1:] if value is not None]
        return all(constant_scalar(bound) is not None for bound in bounds)
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    if node.op_type == "Pad":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return value is None or constant_scalar(value) is not None
    return True
