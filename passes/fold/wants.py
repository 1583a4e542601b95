"""Backwards from QuantizeLinear: the type that everything which reads a value asks for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.fold.types import TypeState, is_dequantize, is_quantize

COMMUTING: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "CastLike": (0,),
    "CenterCropPad": (0,),
    "Clip": (0,),
    "Compress": (0,),
    "Concat": None,
    "DepthToSpace": (0,),
    "Dropout": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
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
    "Resize": (0,),
    "ReverseSequence": (0,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "TopK": (0,),
    "Transpose": (0,),
    "Trilu": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
"""Ops f with quantize(f(x)) = quantize(f(dequantize(quantize(x)))): they select elements or are
monotone. For each, the inputs that are data; None means all."""

_READ_NO_NUMBERS = frozenset({"Shape", "Size"})


def find_wants(graphs: Sequence[ir.Graph], types: TypeState) -> None:
    """Fill ``types.wants``, in one sweep from the outputs back; bodies before what they capture.

    Args:
        graphs: All graphs, outer before inner.
        types: What is known; filled.
    """
    for graph in reversed(graphs):
        for node in reversed(graph):
            _find_wants_of(node.outputs, types)
        _find_wants_of(graph.inputs, types)


def _find_wants_of(values: Sequence[ir.Value], types: TypeState) -> None:
    for value in values:
        want = _want(value, types)
        if want is not None:
            types.wants[value] = want


def _want(value: ir.Value, types: TypeState) -> AffineType | None:
    if value.is_graph_output():
        return None
    agreed: AffineType | None = None
    for node, index in value.uses():
        if node.op_type in _READ_NO_NUMBERS and not node.domain:
            continue
        want = want_of_use(node, index, types)
        if want is None or (agreed is not None and want is not agreed):
            return None
        agreed = want
    return agreed


def want_of_use(node: ir.Node, index: int, types: TypeState) -> AffineType | None:
    """The type that ``node`` quantizes its input ``index`` to, at once or in the end."""
    if is_quantize(node):
        affine = types.parameters(node) if index == 0 else None
        if affine is None or not types.takes(affine):
            return None
        return types.internal(affine)
    if not commutes(node, index):
        return None
    wants = [types.want(output) for output in node.outputs if output.uses()]
    if any(output.is_graph_output() for output in node.outputs):
        return None
    return wants[0] if wants and all(want is wants[0] for want in wants) else None


def is_dequantized(value: ir.Value | None, types: TypeState) -> bool:
    """Whether the numbers of ``value`` are codes, dequantized, and maybe selected or moved."""
    while value is not None and (node := value.producer()) is not None:
        if is_dequantize(node):
            affine = types.parameters(node)
            return affine is not None and types.takes(affine)
        if not commutes(node, 0):
            return False
        value = node.inputs[0]
    return False


def commutes(node: ir.Node, index: int) -> bool:
    """Whether quantizing input ``index`` of ``node`` first changes no code of the result."""
    if node.domain or node.op_type not in COMMUTING:
        return False
    positions = COMMUTING[node.op_type]
    if positions is not None and index not in positions:
        return False
    return _moves_whole_numbers(node)


def _moves_whole_numbers(node: ir.Node) -> bool:
    """Whether this node, of an op that may do more, only selects elements or is monotone."""
    attributes, inputs = node.attributes, node.inputs
    match node.op_type:
        case "Cast":
            return attributes.get_int("to", 0) == ir.DataType.FLOAT
        case "CastLike":
            return inputs[1] is not None and inputs[1].dtype == ir.DataType.FLOAT
        case "Clip":
            return all(
                constant_scalar(bound) is not None for bound in inputs[1:] if bound is not None
            )
        case "Dropout":
            return len(inputs) < 3 or constant_scalar(inputs[2]) is False
        case "MaxPool":
            return len(node.outputs) == 1
        case "Pad":
            value = inputs[2] if len(inputs) > 2 else None
            return value is None or constant_scalar(value) is not None
        case "Resize":
            return attributes.get_string("mode", "nearest") == "nearest"
        case "ScatterElements" | "ScatterND":
            return attributes.get_string("reduction", "none") in ("none", "max", "min")
        case _:
            return True
