"""What kind of work each node of a model does, and which of its values are real numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from onnxfold.passes.walk import all_graphs, iterate_graphs

FLOAT_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
"""Types of real numbers. 8-bit floats are codes: a scale gives them their meaning."""

CODE_TYPES = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
    | {ir.DataType.INT4, ir.DataType.UINT4}
)
"""Types of quantized activations."""

QDQ_DOMAINS = ("", "com.microsoft")
"""The domains that have a QuantizeLinear and a DequantizeLinear."""

_QUANTIZE = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_DEQUANTIZE = frozenset({"DequantizeLinear"})
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_SHAPE = frozenset({"Shape", "Size"})
_INTEGER = frozenset(
    {
        "ConvInteger",
        "MatMulInteger",
        "com.microsoft::ConvIntegerToFloat",
        "com.microsoft::DynamicQuantizeLSTM",
        "com.microsoft::DynamicQuantizeMatMul",
        "com.microsoft::MatMulInteger16",
        "com.microsoft::MatMulIntegerToFloat",
        "com.microsoft::QAttention",
        "com.microsoft::QEmbedLayerNormalization",
        "com.microsoft::QGemm",
    }
)
_INTEGER_PREFIXES = ("QLinear", "QOrdered")
_MOVEMENT = frozenset(
    {
        "CenterCropPad",
        "Compress",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "ReverseSequence",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "TensorScatter",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    }
)
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


class OpKind(Enum):
    """The kinds of work, in the order they are listed in."""

    INTEGER = "integer arithmetic"
    FLOAT = "float arithmetic"
    QUANTIZE = "quantize"
    DEQUANTIZE = "dequantize"
    MOVEMENT = "data movement"
    SHAPE = "shape computation"
    CONSTANT = "constants"
    CONTROL = "control flow and calls"


@dataclass(frozen=True)
class NodeKinds:
    """The nodes of one model by kind.

    Attributes:
        kinds: The kind of each node; outer graphs before inner ones.
        constants: Values computed from constants alone, with no Q or DQ on the way.
        known: Values known at compile time: those, and what Q and DQ make of them.
        reals: Values that are real numbers; where no type is known, as in many a local function,
            those that float operators work on.
    """

    kinds: dict[ir.Node, OpKind]
    constants: Collection[ir.Value]
    known: Collection[ir.Value]
    reals: Collection[ir.Value]

    def float_inputs(self, node: ir.Node) -> list[ir.Value]:
        """The real numbers ``node`` reads, constants and parameters of Q and DQ left out."""
        if self.kinds[node] is OpKind.DEQUANTIZE:
            return []
        read = node.inputs[:1] if self.kinds[node] is OpKind.QUANTIZE else node.inputs
        found = [each for each in read if each is not None and each in self.reals]
        return [each for each in found if each not in self.constants]

    def float_outputs(self, node: ir.Node) -> list[ir.Value]:
        """The real numbers ``node`` computes."""
        if self.kinds[node] is OpKind.QUANTIZE:
            return []
        return [each for each in node.outputs if each in self.reals and each not in self.constants]


def op_key(node: ir.Node) -> str:
    """``Conv``, or ``com.microsoft::QGemm`` outside ai.onnx."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def node_kinds(model: ir.Model) -> NodeKinds:
    """Sort the nodes of ``model`` by kind; run ``infer-shapes`` before, or types are unknown."""
    constants: set[ir.Value] = set()
    known: set[ir.Value] = set()
    shapes: set[ir.Value] = set()
    reals: set[ir.Value] = set()
    kinds: dict[ir.Node, OpKind] = {}
    functions = set(model.functions)
    for graph in all_graphs(model):
        given = [each for each in graph.initializers.values() if not each.is_graph_input()]
        constants.update(given)
        known.update(given)
        for node in graph:
            is_call = node.op_identifier() in functions
            kind = OpKind.CONTROL if is_call else _kind(node, constants, shapes)
            kinds[node] = kind
            if kind is OpKind.CONSTANT:
                constants.update(node.outputs)
            if kind is OpKind.CONSTANT or _is_known(node, kind, known):
                known.update(node.outputs)
            if kind is OpKind.SHAPE:
                shapes.update(node.outputs)
            reals.update(_reals(node, kind, reals))
    return NodeKinds(kinds, constants, known, reals)


def is_quantize(node: ir.Node) -> bool:
    """Whether ``node`` turns real numbers into codes."""
    return node.op_type in _QUANTIZE and node.domain in QDQ_DOMAINS


def is_dequantize(node: ir.Node) -> bool:
    """Whether ``node`` turns codes into real numbers."""
    return node.op_type in _DEQUANTIZE and node.domain in QDQ_DOMAINS


def is_integer_kernel(node: ir.Node) -> bool:
    """Whether ``node`` is an operator made for codes, whatever types stand at its edges."""
    return op_key(node) in _INTEGER or node.op_type.startswith(_INTEGER_PREFIXES)


def _kind(node: ir.Node, constants: set[ir.Value], shapes: set[ir.Value]) -> OpKind:
    if is_quantize(node):
        return OpKind.QUANTIZE
    if is_dequantize(node):
        return OpKind.DEQUANTIZE
    if any(True for _ in iterate_graphs(node)) or node.op_type in _CONTROL:
        return OpKind.CONTROL
    read = [value for value in node.inputs if value is not None]
    if all(value in constants for value in read) and node.op_type not in _RANDOM:
        return OpKind.CONSTANT
    computed = [value for value in read if value not in constants]
    if node.op_type in _SHAPE or (computed and all(value in shapes for value in computed)):
        return OpKind.SHAPE
    if is_integer_kernel(node):
        return OpKind.INTEGER
    if node.op_type in _MOVEMENT and not node.domain:
        return OpKind.MOVEMENT
    types = {value.dtype for value in (*computed, *node.outputs)} - {None}
    return OpKind.FLOAT if not types or types & FLOAT_TYPES else OpKind.INTEGER


def _reals(node: ir.Node, kind: OpKind, reals: set[ir.Value]) -> Iterator[ir.Value]:
    """The real numbers among what ``node`` reads and gives, ``reals`` being known before it."""
    moved = kind is OpKind.MOVEMENT and node.inputs[0] in reals
    for value in node.inputs:
        assumed = kind is OpKind.FLOAT or (kind is OpKind.QUANTIZE and value is node.inputs[0])
        if value is not None and (value.dtype in FLOAT_TYPES or (value.dtype is None and assumed)):
            yield value
    for value in node.outputs:
        assumed = moved or kind in (OpKind.FLOAT, OpKind.DEQUANTIZE)
        if value.name and (value.dtype in FLOAT_TYPES or (value.dtype is None and assumed)):
            yield value


def _is_known(node: ir.Node, kind: OpKind, known: set[ir.Value]) -> bool:
    if kind is OpKind.CONTROL or node.op_type in _RANDOM:
        return False
    return all(value in known for value in node.inputs if value is not None)
