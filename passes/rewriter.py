"""The one gate through which every mutation of a model goes.

The gate names new values uniquely and deterministically, merges metadata, records provenance,
counts what was done and tells its listeners. Mutations happen inside a *step*, the unit that is
counted, listened to and bisected::

    with rewriter.step("merge-transposes", node):
        merged = rewriter.insert(node, "Transpose", [source], name="merged", attributes=...)
        rewriter.replace_node(node, [merged])

A listener may refuse a step: its first mutation then leaves the ``with`` block without a trace.
So a rule decides completely before it mutates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.errors import PassError
from onnxfold.passes.literals import AttributeValue, as_attribute, as_tensor, static_shape
from onnxfold.passes.model_gate import ModelGate
from onnxfold.passes.provenance import record_provenance
from onnxfold.passes.walk import iterate_graphs, label, nested_graphs, use_count

_DEFAULT_ONNX_OPSET = 21
_FIRST_OPSET = 1


class Rewriter(ModelGate):
    """Mutates one model on behalf of one pass.

    Attributes:
        model: The model (see ``ModelGate``).
    """

    def insert_node(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        attributes: Mapping[str, AttributeValue] | None = None,
        domain: str = "",
        outputs: int = 1,
        after: bool = False,
    ) -> ir.Node:
        """Insert a node before (or after) ``anchor``, in the anchor's graph.

        Args:
            anchor: An existing node; decides graph and position.
            op_type: The operator.
            inputs: Input values; None for an absent optional input.
            name: Base of the names of the node and its outputs, made unique.
            attributes: Attribute values by name.
            domain: Operator domain; imported if it is not yet (ai.onnx at 21, others at 1).
            outputs: Number of outputs.
            after: Insert after the anchor.

        Returns:
            The node. Types and shapes of its outputs are unknown until set or inferred.
        """
        step = self._mutate("inserted")
        if anchor.graph is None:
            raise PassError(f"pass {self.pass_name}: anchor {label(anchor)} is not in a graph")
        self._import_domain(anchor.graph, domain)
        unique = self.unique_name(name)
        output_names = [unique] + [self.unique_name(f"{name}_{i}") for i in range(1, outputs)]
        node = ir.Node(
            domain,
            op_type,
            inputs,
            [as_attribute(key, value) for key, value in (attributes or {}).items()],
            outputs=[ir.Value(name=output) for output in output_names],
            name=unique,
        )
        record_provenance(node, self.pass_name, step.sources)
        place = anchor.append if after else anchor.prepend
        place(node)
        self.scopes.add(node)
        for listener in self._listeners:
            listener.node_inserted(node)
        return node

    def insert(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        attributes: Mapping[str, AttributeValue] | None = None,
        domain: str = "",
        dtype: ir.DataType | None = None,
        shape: ir.Shape | Sequence[int | str | None] | None = None,
        after: bool = False,
    ) -> ir.Value:
        """Insert a node with one output and return that output, typed where the type is known."""
        node = self.insert_node(
            anchor, op_type, inputs, name=name, attributes=attributes, domain=domain, after=after
        )
        value = node.outputs[0]
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        if shape is not None:
            value.shape = ir.Shape(shape)
        return value

    def constant(
        self, anchor: ir.Node, data: npt.NDArray[Any] | ir.TensorProtocol, *, name: str
    ) -> ir.Value:
        """Add a constant that ``anchor`` (and what follows it) can read.

        An initializer of the anchor's graph; inside a local function, which can hold none, a
        Constant node.
        """
        if anchor.graph is None:
            raise PassError(f"pass {self.pass_name}: anchor {label(anchor)} is not in a graph")
        if self.scopes.in_function(anchor.graph):
            return self._constant_node(anchor, data, name)
        return self.add_initializer(anchor.graph, data, name=name)

    def add_initializer(
        self,
        graph: ir.Graph,
        data: npt.NDArray[Any] | ir.TensorProtocol,
        *,
        name: str,
    ) -> ir.Value:
        """Add an initializer to ``graph`` under a unique name based on ``name``."""
        self._mutate("initializers_added")
        unique = self.unique_name(name)
        tensor = as_tensor(data, unique)
        value = ir.Value(
            name=unique,
            shape=static_shape(tensor),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value

    def remove_initializer(self, value: ir.Value) -> None:
        """Remove an initializer that nothing reads.

        Raises:
            PassError: Something still reads it, or it is a graph input or output.
        """
        self._mutate("initializers_removed")
        graph = value.graph
        if graph is None or use_count(value) or value.is_graph_input() or value.is_graph_output():
            raise PassError(f"pass {self.pass_name}: initializer {value.name} is still in use")
        graph.initializers.pop(value.name or "")

    def replace_node(self, node: ir.Node, new_values: Sequence[ir.Value | None]) -> None:
        """Replace every output of ``node`` and erase it.

        Args:
            node: The node to replace.
            new_values: One value per output; None for an output that nothing reads.
        """
        for old, new in zip(node.outputs, new_values, strict=True):
            if new is not None:
                self.replace_value(old, new)
        self.erase(node)

    def replace_value(
        self, old: ir.Value, new: ir.Value, *, keep: Collection[ir.Node] = ()
    ) -> None:
        """Let everything that reads ``old`` read ``new``. Graph outputs keep their names.

        Args:
            old: The value to take out of use.
            new: The value that computes the same (or its rewritten form).
            keep: Nodes that go on reading ``old``; the producer of ``new`` always does.
        """
        if old is new:
            return
        self._mutate("replaced")
        if old.is_graph_output():
            new = self._take_over_output(old, new)
        moved: dict[ir.Node, None] = {}
        for node, index in old.uses():
            if node is not new.producer() and node not in keep:
                node.replace_input_with(index, new)
                moved[node] = None
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        for listener in self._listeners:
            listener.value_replaced(old, new)
            listener.uses_moved(tuple(moved))

    def erase(self, node: ir.Node) -> None:
        """Erase a node whose outputs nothing reads.

        Raises:
            PassError: An output is still read or is a graph output.
        """
        self._mutate("erased")
        if any(use_count(output) or output.is_graph_output() for output in node.outputs):
            raise PassError(f"pass {self.pass_name}: {label(node)} is still in use")
        if node.graph is None:
            raise PassError(f"pass {self.pass_name}: {label(node)} is not in a graph")
        nested = [inner for graph in _bodies(node) for inner in graph]
        read = [value for each in (node, *nested) for value in each.inputs if value is not None]
        for graph in _bodies(node):
            graph.outputs.clear()
        for inner in nested:
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
        for graph in _bodies(node)[::-1]:
            graph.remove(tuple(graph))
        node.graph.remove(node, safe=True)
        for listener in self._listeners:
            listener.node_erased(node, read)

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let input ``index`` of ``node`` read ``value``, growing the input list if needed."""
        self._mutate("modified")
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        self._modified(node)

    def truncate_inputs(self, node: ir.Node, count: int) -> None:
        """Drop all inputs of ``node`` from position ``count`` on."""
        self._mutate("modified")
        node.resize_inputs(count)
        self._modified(node)

    def truncate_outputs(self, node: ir.Node, count: int) -> None:
        """Drop the outputs of ``node``, which nothing reads, from position ``count`` on."""
        self._mutate("modified")
        node.resize_outputs(count)
        self._modified(node)

    def ask_for_output(self, node: ir.Node, index: int) -> ir.Value:
        """Output ``index`` of ``node``, which it computes from now on if it did not."""
        outputs = node.outputs
        if index < len(outputs) and outputs[index].name:
            return outputs[index]
        self._mutate("modified")
        if index >= len(outputs):
            node.resize_outputs(index + 1)
        for skipped in node.outputs:
            skipped.name = skipped.name or ""
        node.outputs[index].name = self.unique_name(f"{node.name or node.op_type}_{index}")
        self._modified(node)
        return node.outputs[index]

    def leave_out(self, value: ir.Value) -> None:
        """Stop computing an output of a node, which nothing reads; those behind it stay."""
        self._mutate("modified")
        value.name = ""
        producer = value.producer()
        if producer is not None:
            self._modified(producer)

    def set_attribute(self, node: ir.Node, name: str, value: AttributeValue | None) -> None:
        """Set an attribute, or remove it (None)."""
        self._mutate("modified")
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = as_attribute(name, value)
        self._modified(node)

    def add_output(self, value: ir.Value, name: str) -> ir.Value:
        """Append ``value`` to the outputs of the main graph, under a unique name based on ``name``.

        The verifier wants its type to be set.

        Returns:
            The output: ``value`` renamed, or a copy where it keeps its name: an input, an
            initializer, or an output already.
        """
        self._mutate("outputs_added")
        graph = self.model.graph
        if value.producer() is None or value.is_graph_output():
            value = self.insert(
                graph[-1],
                "Identity",
                [value],
                name=name,
                dtype=value.dtype,
                shape=value.shape,
                after=True,
            )
        else:
            value.name = self.unique_name(name)
        graph.outputs.append(value)
        return value

    # Internals

    def _modified(self, node: ir.Node) -> None:
        for listener in self._listeners:
            listener.node_modified(node)

    def _import_domain(self, graph: ir.Graph, domain: str) -> None:
        version = _FIRST_OPSET if domain else _DEFAULT_ONNX_OPSET
        self.scopes.root(graph).opset_imports.setdefault(domain, version)
        self.model.opset_imports.setdefault(domain, version)

    def _constant_node(
        self, anchor: ir.Node, data: npt.NDArray[Any] | ir.TensorProtocol, name: str
    ) -> ir.Value:
        tensor = as_tensor(data, name)
        value = self.insert(
            anchor,
            "Constant",
            [],
            name=name,
            attributes={"value": tensor},
            dtype=tensor.dtype,
            shape=static_shape(tensor),
        )
        value.const_value = tensor
        return value

    def _take_over_output(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """Let ``new`` stand where ``old`` is a graph output; an Identity where it cannot."""
        graph = old.graph
        producer = new.producer()
        if graph is None:
            raise PassError(f"pass {self.pass_name}: output {old.name} is in no graph")
        if producer is None or producer.graph is not graph or new.is_graph_output():
            anchor = old.producer()
            if anchor is None:
                raise PassError(f"pass {self.pass_name}: output {old.name} has no producer")
            new = self.insert(
                anchor, "Identity", [new], name=f"{old.name}_copy", dtype=new.dtype, after=True
            )
        name = old.name
        old.name = self.unique_name(f"{name}_original")
        new.name = name
        new.type = old.type or new.type
        new.shape = old.shape or new.shape
        new.metadata_props.update(old.metadata_props)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        return new


def _bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs nested in ``node``, at any depth."""
    return [graph for body in iterate_graphs(node) for graph in (body, *nested_graphs(body))]
