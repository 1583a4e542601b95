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

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.errors import PassError
from onnxfold.passes.listener import RewriteListener
from onnxfold.passes.literals import AttributeValue, as_attribute, as_tensor, static_shape
from onnxfold.passes.names import Names
from onnxfold.passes.provenance import record_provenance
from onnxfold.passes.steps import StepGate
from onnxfold.passes.walk import Scopes, iterate_graphs, label, nested_graphs, use_count

_DEFAULT_ONNX_OPSET = 21
_FIRST_OPSET = 1


class Rewriter(StepGate):
    """Mutates one model on behalf of one pass.

    Attributes:
        model: The model; ``replace_model`` may put another one in its place.
    """

    def __init__(
        self, model: ir.Model, pass_name: str, listeners: Sequence[RewriteListener] = ()
    ) -> None:
        super().__init__(pass_name, listeners)
        self.model = model
        self._names: Names | None = None
        self._scopes: Scopes | None = None

    # Mutations

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

    def order_initializers(self, names: Sequence[str]) -> None:
        """Put the initializers ``names`` of the main graph first, in this order."""
        self._mutate("initializers_ordered")
        known = self.model.graph.initializers
        wanted = {name: known[name] for name in names if name in known}
        ordered = [*wanted.values(), *(known[name] for name in known if name not in wanted)]
        known.clear()
        for value in ordered:
            self.model.graph.register_initializer(value)

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

    def set_type(
        self,
        value: ir.Value,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | Sequence[int | str | None] | None = None,
    ) -> None:
        """Set what is known of the type of ``value``."""
        self._mutate("types_set")
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        if shape is not None:
            value.shape = ir.Shape(shape)

    def declare(
        self, value: ir.Value, type_: ir.TypeProtocol | None, shape: ir.Shape | None
    ) -> None:
        """Declare exactly this of the type of ``value``: None takes away what is declared."""
        self._mutate("types_set")
        value.type, value.shape = type_, shape

    def rename(self, value: ir.Value, name: str) -> None:
        """Give ``value`` the name ``name``, made unique where it is taken."""
        self._mutate("renamed")
        _set_name_apart(value, self.unique_name(name))

    def settle_names(self, wanted: Sequence[tuple[ir.Value, str]]) -> None:
        """Give values, and the nodes that compute them, names that were taken and are free now.

        Args:
            wanted: Values that this pass added, in the order in which they choose, and the bases
                of their names.
        """
        self._mutate("renamed")
        for value, _ in wanted:
            _set_name(value, self.unique_name("settled"))
        self._names = None
        for value, name in wanted:
            _set_name(value, self.unique_name(name))

    def swap_names(self, first: ir.Value, second: ir.Value) -> None:
        """Let two values of one scope exchange names: a replacement takes over the name."""
        self._mutate("renamed")
        names = first.name, second.name
        # Through a free name: initializers of one graph may not share one, even for a moment.
        first.name = self.unique_name(f"{names[0]}_swapped")
        second.name, first.name = names

    def add_input(
        self, name: str, dtype: ir.DataType, shape: ir.Shape | Sequence[int | str | None] | None
    ) -> ir.Value:
        """Append an input to the main graph, under a unique name based on ``name``."""
        self._mutate("inputs_added")
        declared = None if shape is None else ir.Shape(shape)
        value = ir.Value(name=self.unique_name(name), shape=declared, type=ir.TensorType(dtype))
        self.model.graph.inputs.append(value)
        return value

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

    def let_override(self, value: ir.Value) -> None:
        """Append an initializer of the main graph to its inputs: callers may feed another."""
        self._mutate("inputs_added")
        self.model.graph.inputs.append(value)

    def remove_input(self, value: ir.Value) -> None:
        """Take ``value`` out of the main graph's inputs; it stays where it is an initializer.

        Raises:
            PassError: Something still reads it, and it is no initializer.
        """
        self._mutate("inputs_removed")
        if not value.is_initializer() and (use_count(value) or value.is_graph_output()):
            raise PassError(f"pass {self.pass_name}: input {value.name} is still in use")
        self.model.graph.inputs.remove(value)

    def remove_output(self, value: ir.Value) -> None:
        """Take ``value`` out of the main graph's outputs; what computes it stays."""
        self._mutate("outputs_removed")
        self.model.graph.outputs.remove(value)

    def remove_function(self, identifier: ir.OperatorIdentifier) -> None:
        """Remove a local function that no node calls."""
        self._mutate("functions_removed")
        del self.model.functions[identifier]

    def remove_opset(self, graph: ir.Graph, domain: str) -> None:
        """Stop importing ``domain`` into ``graph`` (the main graph, or a function's)."""
        self._mutate("opsets_removed")
        del graph.opset_imports[domain]

    def set_ir_version(self, version: int) -> None:
        """Declare the IR version of the model."""
        self._mutate("ir_versions_set")
        self.model.ir_version = version

    def set_metadata(self, key: str, value: str | None) -> None:
        """Write an entry of the model's metadata, or remove it (None)."""
        self._mutate("metadata_set")
        if value is None:
            self.model.metadata_props.pop(key, None)
        else:
            self.model.metadata_props[key] = value

    def set_opset(self, version: int, domain: str = "", *, graph: ir.Graph | None = None) -> None:
        """Declare the opset version of the main graph (or a function's) for ``domain``."""
        self._mutate("opsets_set")
        root = self.model.graph if graph is None else graph
        root.opset_imports[domain] = version

    def replace_model(self, model: ir.Model) -> None:
        """Put a whole new model in place of the current one (conversion by another library)."""
        self._mutate("models_replaced")
        self.model = model
        self._names = None
        self._scopes = None

    # Scopes and names

    @property
    def scopes(self) -> Scopes:
        """Which node holds each body, and the opsets each graph is read under."""
        if self._scopes is None:
            self._scopes = Scopes(self.model)
        return self._scopes

    def opset(self, node: ir.Node, domain: str = "") -> int:
        """The opset version that ``node`` is read under, for ``domain``; 0 if not imported."""
        return self.scopes.opset(node.graph, domain) if node.graph is not None else 0

    def unique_name(self, base: str) -> str:
        """A name that no node or value of the model has: ``base``, or ``base_1``, ``base_2`` ..."""
        if self._names is None:
            self._names = Names(self.model)
        return self._names.unique(base)

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


def _set_name(value: ir.Value, name: str) -> None:
    """Name a value, and its node where that has no other."""
    value.name = name
    producer = value.producer()
    if producer is not None and producer.outputs[0] is value:
        producer.name = name


def _set_name_apart(value: ir.Value, name: str) -> None:
    """Name a value whose tensor a copy of the model, or a proto, may share: theirs keeps its."""
    tensor = value.const_value
    if isinstance(tensor, ir.TensorProtoTensor):
        # As it was stored, so that what is renamed back is byte for byte what it was.
        value.const_value = ir.TensorProtoTensor(copy.copy(tensor.raw))
    elif tensor is not None:
        value.const_value = copy.copy(tensor)
    value.name = name


def _bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs nested in ``node``, at any depth."""
    return [graph for body in iterate_graphs(node) for graph in (body, *nested_graphs(body))]
