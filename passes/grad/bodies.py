"""Writes the bodies of nodes that do not exist yet: what the gradients of control flow share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.walk import use_count


class BodyBuilder(Builder):
    """Writes one body; constants go to the graph around it.

    Attributes:
        graph: The body; ``finish`` makes it whole.
    """

    def __init__(self, outer: Builder, name: str) -> None:
        # What everything is inserted in front of; no part of the model, and taken out at the end.
        end = ir.Node("", "End", [], num_outputs=0, name="end")
        super().__init__(outer.rewriter, end, outer.prefix)
        self.graph = ir.Graph([], [], nodes=[end], name=outer.rewriter.unique_name(name))
        self._outer = outer
        self.rewriter.scopes.enclose(self.graph, outer.anchor)

    def input(self, like: ir.Value, name: str, *, fallback: ir.Value | None = None) -> ir.Value:
        """A new input of the type of ``like``; of the shape of ``fallback`` if it has none."""
        shape = like.shape if like.shape is not None or fallback is None else fallback.shape
        dtype = like.type if like.type is not None or fallback is None else fallback.type
        return self.typed_input(dtype, shape, name)

    def typed_input(
        self, dtype: ir.TypeProtocol | None, shape: ir.Shape | None, name: str
    ) -> ir.Value:
        """A new input of a type and shape."""
        value = ir.Value(
            name=self.rewriter.unique_name(f"{self.prefix}_{name}"),
            type=dtype,
            shape=None if shape is None else ir.Shape(shape),
        )
        self.graph.inputs.append(value)
        return value

    def constant(self, array: npt.NDArray[Any]) -> ir.Value:
        """A constant of the graph around, which may share it with others."""
        return self._outer.constant(array)

    def copy(self, graph: ir.Graph, values: dict[ir.Value, ir.Value]) -> list[ir.Value]:
        """Write the nodes of a body once more.

        Args:
            graph: The body.
            values: What is read in place of its inputs; the copies of its values are added.

        Returns:
            The copies of its outputs: each another value of this body.
        """
        for value in graph.initializers.values():
            if value not in values and value.const_value is not None:
                values[value] = self.constant(value.const_value.numpy())
        for node in list(graph):
            self._copy_node(node, values)
        outputs: list[ir.Value] = []
        for value in graph.outputs:
            outputs.append(self._own(values.get(value, value), outputs))
        return outputs

    def finish(self, outputs: Sequence[ir.Value]) -> ir.Graph:
        """The body with its outputs, without what they do not need."""
        for value in outputs:
            self.graph.outputs.append(self._own(value, self.graph.outputs))
        self.graph.remove(self.anchor)
        for node in list(self.graph)[::-1]:
            if not any(use_count(each) or each.is_graph_output() for each in node.outputs):
                self.rewriter.erase(node)
        return self.graph

    def drop_unused(self, candidates: Sequence[ir.Value]) -> list[bool]:
        """Take those of the inputs away that nothing reads; whether each is still there."""
        kept = [bool(use_count(each)) or each.is_graph_output() for each in candidates]
        for value, keep in zip(candidates, kept, strict=True):
            if not keep:
                self.graph.inputs.remove(value)
        return kept

    def _own(self, value: ir.Value, taken: Sequence[ir.Value]) -> ir.Value:
        """``value``, or a copy where it is computed elsewhere or stands for another output."""
        producer = value.producer()
        if producer is None or producer.graph is not self.graph or value in taken:
            return self.op("Identity", value, like=value)
        return value

    def _copy_node(self, node: ir.Node, values: dict[ir.Value, ir.Value]) -> None:
        inputs = [None if value is None else values.get(value, value) for value in node.inputs]
        attributes: dict[str, AttributeValue] = {
            name: self._copy_attribute(attribute, values)
            for name, attribute in node.attributes.items()
        }
        outputs = self.nodes(
            node.op_type, inputs, len(node.outputs), domain=node.domain, **attributes
        )
        for old, new in zip(node.outputs, outputs, strict=True):
            new.name = new.name if old.name else ""
            new.type = new.type or old.type
            new.shape = new.shape or (None if old.shape is None else ir.Shape(old.shape))
            values[old] = new

    def _copy_attribute(self, attribute: ir.Attr, values: dict[ir.Value, ir.Value]) -> ir.Attr:
        if attribute.type != ir.AttributeType.GRAPH:
            return attribute
        return ir.AttrGraph(attribute.name, copied_body(self, attribute.as_graph(), values))


def copied_body(outer: Builder, graph: ir.Graph, values: dict[ir.Value, ir.Value]) -> ir.Graph:
    """A copy of a body, for a node that ``outer`` writes.

    Args:
        outer: Writes the node.
        graph: The body.
        values: What is read in the place of others; the copies of the body's values are added.
    """
    nested = BodyBuilder(outer, graph.name or "body")
    for value in graph.inputs:
        values[value] = nested.input(value, value.name or "input")
    return nested.finish(nested.copy(graph, values))


def body_of(node: ir.Node, name: str = "body") -> ir.Graph:
    """The body that ``node`` holds under a name."""
    return node.attributes[name].as_graph()
