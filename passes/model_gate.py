"""What a rewriter does to a model as a whole: names, types, inputs, outputs, opsets, metadata."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.errors import PassError
from onnxfold.passes.listener import RewriteListener
from onnxfold.passes.names import Names
from onnxfold.passes.steps import StepGate
from onnxfold.passes.walk import Scopes, use_count


class ModelGate(StepGate):
    """Mutates what belongs to the whole of one model on behalf of one pass.

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

    def order_initializers(self, names: Sequence[str]) -> None:
        """Put the initializers ``names`` of the main graph first, in this order."""
        self._mutate("initializers_ordered")
        known = self.model.graph.initializers
        wanted = {name: known[name] for name in names if name in known}
        ordered = [*wanted.values(), *(known[name] for name in known if name not in wanted)]
        known.clear()
        for value in ordered:
            self.model.graph.register_initializer(value)

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
            wanted: Values, in the order in which they choose, and the bases of their names.
        """
        self._mutate("renamed")
        for value, _ in wanted:
            _set_name(value, self.unique_name("settled"))
        self._names = None
        for value, name in wanted:
            _set_name(value, self.unique_name(name))

    def name_node(self, node: ir.Node, name: str) -> None:
        """Give ``node`` the name ``name``, made unique where it is taken; outputs keep theirs."""
        self._mutate("renamed")
        node.name = self.unique_name(name)

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


def _set_name(value: ir.Value, name: str) -> None:
    """Name a value, and its node where that has no other."""
    if value.is_initializer():
        _set_name_apart(value, name)
        return
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
