"""The invariants of the IR: what every model given to a pass, and left by one, must satisfy.

One walk in time linear in the number of nodes and edges; types and shapes are compared where both
sides declare them, nothing is inferred.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

import onnx
import onnx.defs
import onnx_ir as ir

from onnxfold.passes.errors import VerificationError
from onnxfold.passes.interface import Interface
from onnxfold.passes.neighbourhood import neighbourhood
from onnxfold.passes.verifier_qdq import QDQ_OPS, QdqVerifier
from onnxfold.passes.walk import iterate_graphs, label

_ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training"})
_QDQ_DOMAINS = ("", "com.microsoft")


def verify(model: ir.Model, *, interface: Interface | None = None, additive: bool = False) -> None:
    """Check that ``model`` satisfies every invariant.

    Every value has one producer and a name that is unique along its scopes; what a node reads is
    visible and computed before it, in its own graph or an enclosing one; uses are consistent; ops
    are known under the imported opsets and have their required inputs and attributes;
    initializers match their declared types; function calls resolve; Q/DQ nodes agree with their
    scales and zero points.

    Args:
        model: The model; not changed.
        interface: What inputs and outputs must still be.
        additive: Whether inputs and outputs may have been appended to ``interface``.

    Raises:
        VerificationError: The first invariant that does not hold.
    """
    if interface is not None:
        problem = interface.difference(Interface.of(model), additive=additive)
        if problem:
            raise VerificationError(f"the model's interface changed: {problem}")
    _Verifier(model).run()


@dataclass(frozen=True)
class _Signature:
    """What an operator's schema says, in a form that is fast to check."""

    least_inputs: int
    most_inputs: int
    required_inputs: tuple[int, ...]
    least_outputs: int
    most_outputs: int
    attributes: frozenset[str]
    required_attributes: tuple[str, ...]
    deprecated: bool


class _Verifier:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._functions = model.functions
        self._function_domains = {domain for domain, _, _ in model.functions}
        self._opsets: dict[str, int] = {}
        self._visible: dict[str, ir.Value] = {}
        self._graphs: list[ir.Graph] = []
        self._seen: set[ir.Node] = set()
        self._uses: Counter[ir.Value] = Counter()
        self._defined: list[ir.Value] = []
        self._qdq = QdqVerifier()

    def run(self) -> None:
        self._root(self._model.graph, self._model.opset_imports)
        self._typed_outputs(self._model.graph)
        for function in self._functions.values():
            if function.graph.initializers:
                name = next(iter(function.graph.initializers))
                self._fail(f"function {function.name} holds an initializer, '{name}'")
            self._root(function.graph, function.opset_imports)
        for value in self._defined:
            self._check_uses(value)

    def _root(self, graph: ir.Graph, opsets: dict[str, int]) -> None:
        self._opsets = opsets
        self._visible = {}
        self._graph(graph)

    def _typed_outputs(self, graph: ir.Graph) -> None:
        for value in (*graph.inputs, *graph.outputs):
            if value.type is None:
                self._fail(f"the type of '{value.name}', an input or output, is not declared")

    # Graphs and scopes

    def _graph(self, graph: ir.Graph) -> None:
        self._graphs.append(graph)
        first = len(self._defined)
        for value in graph.inputs:
            self._define(value, None)
        for name, value in graph.initializers.items():
            self._initializer(name, value)
            if not value.is_graph_input():
                self._define(value, None)
        for node in graph:
            self._node(node, graph)
        for value in graph.outputs:
            self._graph_output(value, graph)
        for value in self._defined[first:]:
            self._visible.pop(value.name or "", None)
        self._graphs.pop()

    def _define(self, value: ir.Value, node: ir.Node | None) -> None:
        name = value.name
        if not name:
            if node is None:
                self._fail(f"graph '{self._graphs[-1].name}' has an input without a name")
            if value.uses() or value.is_graph_output():
                self._fail(f"an output of {label(node)} is read but has no name", node)
            return
        if name in self._visible:
            where = f"{label(node)} defines" if node is not None else "an input or initializer is"
            self._fail(f"{where} '{name}', a name already taken in its scopes", node)
        self._visible[name] = value
        self._defined.append(value)

    def _initializer(self, name: str, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is None:
            self._fail(f"initializer '{name}' has no value")
        if value.name != name:
            self._fail(f"initializer '{name}' is registered for the value '{value.name}'")
        if value.dtype is not None and value.dtype != tensor.dtype:
            self._fail(
                f"initializer '{name}' is declared {value.dtype.name} and holds {tensor.dtype.name}"
            )
        if value.shape is None or _same_shape(value.shape, tensor.shape):
            return
        self._fail(f"initializer '{name}' is declared {value.shape} and holds {tensor.shape}")

    def _graph_output(self, value: ir.Value, graph: ir.Graph) -> None:
        name = value.name or ""
        if self._visible.get(name) is not value:
            self._fail(f"output '{name}' of graph '{graph.name}' is computed by no node in it")
        producer = value.producer()
        home = value.graph if producer is None else producer.graph
        if home is not graph:
            self._fail(f"output '{name}' of graph '{graph.name}' belongs to an enclosing graph")

    # Nodes

    def _node(self, node: ir.Node, graph: ir.Graph) -> None:
        if node.graph is not graph:
            self._fail(f"{label(node)} is listed in a graph it does not belong to", node)
        self._seen.add(node)
        visible, uses = self._visible, self._uses
        for value in node.inputs:
            if value is None:
                continue
            if visible.get(value.name or "") is not value:
                self._fail(f"{label(node)} reads '{value.name}', {self._why_hidden(value)}", node)
            uses[value] += 1
        self._operator(node)
        for body in iterate_graphs(node):
            self._graph(body)
        for index, output in enumerate(node.outputs):
            if output.producer() is not node or output.index() != index:
                self._fail(f"output '{output.name}' of {label(node)} names another producer", node)
            self._define(output, node)

    def _why_hidden(self, value: ir.Value) -> str:
        if value.name in self._visible:
            return "a value whose name another value has in this scope"
        producer = value.producer()
        if producer is None:
            owned = value.is_graph_input() or value.is_initializer()
            return "which belongs to another graph" if owned else "which nothing defines"
        if producer.graph is None:
            return f"whose producer {label(producer)} was removed"
        if producer.graph in self._graphs:
            return f"which {label(producer)} computes only later"
        return f"which {label(producer)} computes in a graph that does not enclose it"

    def _operator(self, node: ir.Node) -> None:
        version = self._opsets.get(node.domain)
        if version is None:
            self._fail(f"{label(node)}: the opset of domain '{node.domain}' is not imported", node)
        if node.op_identifier() in self._functions:
            self._call(node)
            return
        signature = _signature(node.domain, node.op_type, version)
        if signature is None:
            self._unknown_operator(node, version)
        else:
            self._arity(node, signature)
            self._attributes(node, signature)
        if node.op_type in QDQ_OPS and node.domain in _QDQ_DOMAINS and len(node.inputs) > 1:
            problem = self._qdq.problem(node, version)
            if problem:
                self._fail(f"{label(node)}: {problem}", node)

    def _unknown_operator(self, node: ir.Node, version: int) -> None:
        if node.domain in _ONNX_DOMAINS:
            where = node.domain or "ai.onnx"
            self._fail(f"{label(node)} is no operator of {where} opset {version}", node)
        if node.domain in self._function_domains and not node.domain.startswith("com.microsoft"):
            self._fail(f"{label(node)} calls a local function that does not exist", node)

    def _call(self, node: ir.Node) -> None:
        function = self._functions[node.op_identifier()]
        if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
            self._fail(
                f"{label(node)} has {len(node.inputs)} inputs and {len(node.outputs)} outputs, "
                f"its function {len(function.inputs)} and {len(function.outputs)}",
                node,
            )

    def _arity(self, node: ir.Node, signature: _Signature) -> None:
        inputs, outputs = node.inputs, node.outputs
        if signature.deprecated:
            self._fail(f"{label(node)} is deprecated in the imported opset", node)
        if not signature.least_inputs <= len(inputs) <= signature.most_inputs:
            self._fail(f"{label(node)} has {len(inputs)} inputs, which its schema forbids", node)
        if not signature.least_outputs <= len(outputs) <= signature.most_outputs:
            self._fail(f"{label(node)} has {len(outputs)} outputs, which its schema forbids", node)
        for index in signature.required_inputs:
            if index < len(inputs) and inputs[index] is None:
                self._fail(f"{label(node)} lacks its required input {index}", node)

    def _attributes(self, node: ir.Node, signature: _Signature) -> None:
        attributes = node.attributes
        for name in attributes:
            if name not in signature.attributes and not name.startswith("__"):
                self._fail(f"{label(node)} has an attribute '{name}' unknown to its schema", node)
        for name in signature.required_attributes:
            if name not in attributes:
                self._fail(f"{label(node)} lacks its required attribute '{name}'", node)

    # Uses

    def _check_uses(self, value: ir.Value) -> None:
        recorded = value.uses()
        for node, index in recorded:
            if node not in self._seen:
                self._fail(f"'{value.name}' is used by {label(node)}, which was removed", node)
            if index >= len(node.inputs) or node.inputs[index] is not value:
                self._fail(f"the recorded use of '{value.name}' by {label(node)} is stale", node)
        if len(recorded) != self._uses[value]:
            self._fail(f"not every use of '{value.name}' is recorded", value.producer())

    def _fail(self, message: str, node: ir.Node | None = None) -> NoReturn:
        raise VerificationError(message, neighbourhood(node) if node is not None else "")


def _same_shape(declared: ir.Shape, found: ir.ShapeProtocol) -> bool:
    sizes = found.numpy()
    return len(declared) == len(sizes) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(declared, sizes, strict=True)
    )


@cache
def _signature(domain: str, op_type: str, version: int) -> _Signature | None:
    try:
        schema = onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return _Signature(
        schema.min_input,
        schema.max_input,
        tuple(i for i, each in enumerate(schema.inputs) if each.option == single),
        schema.min_output,
        schema.max_output,
        frozenset(schema.attributes),
        tuple(name for name, each in schema.attributes.items() if each.required),
        schema.deprecated,
    )
