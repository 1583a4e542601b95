"""Which nodes of a model compute in float16, and which of their inputs and outputs are."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnxfold.passes.errors import PassError
from onnxfold.passes.op_kinds import OpKind, node_kinds
from onnxfold.passes.provenance import node_name
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes, label

_HALF = "tensor(float16)"
_STAY = (OpKind.CONSTANT, OpKind.CONTROL, OpKind.DEQUANTIZE, OpKind.QUANTIZE, OpKind.SHAPE)
_CREATE_FLOATS = ("EyeLike", "Multinomial", "RandomNormal", "RandomUniform", "RandomNormalLike")
"""Operators that an attribute tells what type to make, but for Cast and ConstantOfShape."""


@dataclass(frozen=True, eq=False)
class Float16Plan:
    """What is converted.

    Attributes:
        nodes: Node -> which of its inputs are float16; the order is that of the graph.
        values: The outputs that become float16.
        kept: Float nodes that stay, and why; only where there is something to say.
    """

    nodes: Mapping[ir.Node, tuple[int, ...]]
    values: Collection[ir.Value]
    kept: Mapping[ir.Node, str]


def plan_float16(
    model: ir.Model,
    rewriter: Rewriter,
    keep: Collection[str],
    largest: Mapping[str, float],
    limit: float,
) -> Float16Plan:
    """Decide for every node.

    Args:
        model: Its types must be known.
        rewriter: Knows the opsets.
        keep: Operators, and names of nodes, that stay float32.
        largest: max|x| of tensors, where it is known.
        limit: Nodes that read or make larger values stay float32.

    Raises:
        PassError: A type is not known.
    """
    kinds = node_kinds(model)
    nodes: dict[ir.Node, tuple[int, ...]] = {}
    values: set[ir.Value] = set()
    kept: dict[ir.Node, str] = {}
    for node in all_nodes(model):
        if node.domain or kinds.kinds[node] in _STAY or not _touches_float32(node):
            continue
        if node.op_type in keep or node_name(node) in keep:
            kept[node] = "the option keep names it"
            continue
        large = next((v for v in _values(node) if largest.get(v.name or "", 0.0) > limit), None)
        if large is not None:
            kept[node] = f"'{large.name}' reaches {largest[large.name or '']:.4g}"
            continue
        allowed = _allowed(node.op_type, rewriter.opset(node), len(node.inputs), len(node.outputs))
        if allowed is None or node.op_type in _CREATE_FLOATS or _holds_others(node):
            kept[node] = "it has no float16 form"
            continue
        inputs, outputs = allowed
        nodes[node] = tuple(i for i in inputs if _is_float32(node.inputs[i]))
        values.update(node.outputs[i] for i in outputs if _is_float32(node.outputs[i]))
    return Float16Plan(nodes, values, kept)


def _touches_float32(node: ir.Node) -> bool:
    if any(value.name and value.type is None for value in node.outputs):
        raise PassError(
            f"convert-float16: the type of what {label(node)} makes is not known: run infer-shapes "
            "first"
        )
    return any(_is_float32(value) for value in _values(node))


def _holds_others(node: ir.Node) -> bool:
    """Whether sequences or optional values are among what ``node`` reads and makes."""
    types = [value.type for value in _values(node)]
    return any(each is not None and not isinstance(each, ir.TensorType) for each in types)


def _values(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    yield from node.outputs


def _is_float32(value: ir.Value | None) -> bool:
    if value is None or not isinstance(value.type, ir.TensorType):
        return False
    return value.dtype == ir.DataType.FLOAT


@functools.cache
def _allowed(
    op_type: str, opset: int, inputs: int, outputs: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Positions of inputs and outputs that can be float16; None where no output can."""
    if not onnx.defs.has(op_type, opset, ""):
        return None
    schema = onnx.defs.get_schema(op_type, opset, "")
    read = tuple(i for i in range(inputs) if _takes_half(list(schema.inputs), i))
    made = tuple(i for i in range(outputs) if _takes_half(list(schema.outputs), i))
    floats = [i for i in range(inputs) if "tensor(float)" in _types(list(schema.inputs), i)]
    # Where no input is a float, an attribute says what is made: Cast, ConstantOfShape.
    return (read, made) if (read or not floats) and (made or read) else None


def _takes_half(parameters: list[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
    return _HALF in _types(parameters, index)


def _types(parameters: list[onnx.defs.OpSchema.FormalParameter], index: int) -> Collection[str]:
    if not parameters:
        return ()
    return parameters[min(index, len(parameters) - 1)].types
