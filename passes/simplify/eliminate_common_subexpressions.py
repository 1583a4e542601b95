"""eliminate-common-subexpressions: compute once what is computed several times."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import iterate_graphs

_NOT_SHARED = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Identity",  # a copy is what gives one value two output names
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_SHARED_DOMAINS = frozenset({"", "ai.onnx.ml"})
"""Domains whose operators are known to be functions of their inputs."""

_Seen: TypeAlias = MutableMapping[Hashable, ir.Node]


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Let nodes that compute the same from the same values share one node.

    A node in a body may read what an enclosing graph computed before. Random operators, nodes
    with bodies and operators of unknown domains are left alone.
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Share nodes in the main graph, its bodies and local functions."""
        for graph in (model.graph, *(each.graph for each in model.functions.values())):
            _share_nodes(graph, {}, rewriter)


def _share_nodes(graph: ir.Graph, seen: _Seen, rewriter: Rewriter) -> None:
    for node in tuple(graph):
        bodies = tuple(iterate_graphs(node))
        for body in bodies:
            # Only what stands before the node is visible in its bodies.
            _share_nodes(body, ChainMap({}, seen), rewriter)
        if bodies or not _is_shareable(node):
            continue
        kept = seen.setdefault(_key(node), node)
        if kept is not node and not _needs_copy(node, kept):
            _replace(node, kept, rewriter)


def _is_shareable(node: ir.Node) -> bool:
    if node.domain not in _SHARED_DOMAINS or node.op_type in _NOT_SHARED or node.overload:
        return False
    return not any(attribute.is_ref() for attribute in node.attributes.values())


def _key(node: ir.Node) -> Hashable:
    attributes = tuple(sorted((key, _frozen(each)) for key, each in node.attributes.items()))
    outputs = tuple(bool(output.name) for output in node.outputs)
    return node.domain, node.op_type, tuple(node.inputs), attributes, outputs


def _frozen(attribute: ir.Attr) -> tuple[str, Hashable]:
    value = attribute.value
    match attribute.type:
        case ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            frozen: Hashable = (str(tensor.dtype), tuple(tensor.shape.numpy()), _bytes(tensor))
        case ir.AttributeType.INTS | ir.AttributeType.FLOATS | ir.AttributeType.STRINGS:
            frozen = tuple(value)
        case ir.AttributeType.INT | ir.AttributeType.FLOAT | ir.AttributeType.STRING:
            frozen = value
        case _:
            frozen = id(attribute)
    # The text of a float tells 0.0 from -0.0, which are equal.
    return attribute.type.name, repr(frozen)


def _bytes(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return tensor.tobytes()


def _needs_copy(node: ir.Node, kept: ir.Node) -> bool:
    """Whether an output name would cost an Identity, which is no better than the node."""
    return any(
        output.is_graph_output() and (original.is_graph_output() or kept.graph is not node.graph)
        for output, original in zip(node.outputs, kept.outputs, strict=True)
    )


def _replace(node: ir.Node, kept: ir.Node, rewriter: Rewriter) -> None:
    with rewriter.step("share-node", node):
        rewriter.replace_node(node, list(kept.outputs))
