"""Tensors inside the bodies of If, Loop and Scan as outputs of the nodes that hold the bodies.

A tensor is handed out flat, all iterations one after the other, through every node around it. A
Loop gathers in a state what its iterations compute: unlike a stacked output, it may differ in size
from one to the next. A branch of an If that does not compute the tensor hands out nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxfold.passes.walk import all_graphs, iterate_graphs, nested_graphs

_HANDING_ON = ("If", "Loop")
"""Operators that hand on tensors whose size differs from one run of their body to the next."""


@dataclass(frozen=True)
class _Tap:
    """A value of rank 1 that holds all that a tensor inside a body was."""

    tensor: str
    value: ir.Value


def body_tensors(model: ir.Model) -> dict[str, str]:
    """Names of the tensors computed inside bodies; why one cannot be observed, or an empty text.

    Two bodies side by side can give one name to a tensor each: these are observed as one.
    """
    reasons: dict[str, str] = {}
    for node in model.graph:
        for body in iterate_graphs(node):
            _add_tensors(body, node, "", reasons)
    return reasons


def expose_bodies(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Give ``model`` an output for each tensor inside a body that is among ``names``.

    Args:
        model: Changed in place; its own outputs stay.
        names: Names that ``body_tensors`` gives without a reason; others are left out.

    Returns:
        Name of the output -> name of the tensor. A tensor that several bodies compute under one
        name has several outputs.
    """
    wanted = set(names)
    if not any(set(_names(body)) & wanted for body in nested_graphs(model.graph)):
        return {}
    exposer = _Exposer(model, wanted)
    exposed: dict[str, str] = {}
    for tap in exposer.bring_out(model.graph):
        model.graph.outputs.append(tap.value)
        exposed[tap.value.name or ""] = tap.tensor
    return exposed


def _add_tensors(body: ir.Graph, holder: ir.Node, around: str, reasons: dict[str, str]) -> None:
    reason = around
    if holder.domain or holder.op_type not in (*_HANDING_ON, "Scan"):
        reason = around or f"is inside a body of {holder.op_type}"
    for name in _names(body):
        reasons[name] = reasons.get(name) or reason
    if not reason and holder.op_type == "Scan":
        # The stacked outputs of a Scan are of one size, whatever a branch inside it does.
        reason = "is inside a body that a Scan runs"
    for node in body:
        for inner in iterate_graphs(node):
            _add_tensors(inner, node, reason, reasons)


def _names(body: ir.Graph) -> Iterator[str]:
    yield from (value.name or "" for value in body.inputs)
    yield from (output.name or "" for node in body for output in node.outputs if output.name)


@dataclass
class _Exposer:
    """Adds nodes and outputs to the bodies of a model, from the inside to the outside.

    Attributes:
        model: Changed in place.
        wanted: Names of tensors.
    """

    model: ir.Model
    wanted: Collection[str]
    _taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        graphs = list(all_graphs(self.model))
        self._taken = {name for each in graphs for name in (*_names(each), *each.initializers)}

    def bring_out(self, graph: ir.Graph) -> list[_Tap]:
        """What the bodies below ``graph`` compute, as values of ``graph``."""
        taps: list[_Tap] = []
        for node in tuple(graph):
            inner = [(body, self._inside(body)) for body in iterate_graphs(node)]
            if not any(found for _, found in inner):
                continue
            match node.op_type:
                case "If":
                    taps += self._through_if(node, inner)
                case "Loop":
                    taps += self._through_loop(node, *inner[0])
                case _:
                    taps += self._through_scan(node, *inner[0])
        return taps

    def _inside(self, body: ir.Graph) -> list[_Tap]:
        computed = [output for node in body for output in node.outputs]
        own = [value for value in (*body.inputs, *computed) if value.name in self.wanted]
        below = self.bring_out(body)
        return [_Tap(value.name or "", self._flat(body, value)) for value in own] + below

    def _flat(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """All elements of ``value``, float32, at the end of ``graph``."""
        if value.dtype != ir.DataType.FLOAT:
            to = ir.AttrInt64("to", ir.DataType.FLOAT)
            value = self._append(graph, "Cast", [value], [to])
        every = self._constant(graph, np.array([-1], np.int64))
        return self._append(graph, "Reshape", [value, every])

    def _through_if(
        self, node: ir.Node, inner: Sequence[tuple[ir.Graph, Sequence[_Tap]]]
    ) -> Iterator[_Tap]:
        for body, taps in inner:
            for tap in taps:
                for branch, _ in inner:
                    nothing = [self._constant(branch, np.zeros(0, np.float32))]
                    own = branch is body
                    value = tap.value if own else self._append(branch, "Identity", nothing)
                    branch.outputs.append(value)
                yield _Tap(tap.tensor, self._new_output(node))

    def _through_loop(self, node: ir.Node, body: ir.Graph, taps: Sequence[_Tap]) -> Iterator[_Tap]:
        states = len(body.inputs) - 2
        assert node.graph is not None
        for tap in taps:
            so_far = self._typed(ir.Value(name=self._name()))
            body.inputs.append(so_far)
            axis = ir.AttrInt64("axis", 0)
            all_of_them = self._append(body, "Concat", [so_far, tap.value], [axis])
            # The states come after the condition and before what is stacked.
            body.outputs.insert(1 + states, all_of_them)
            nothing = self._constant(node.graph, np.zeros(0, np.float32))
            node.resize_inputs(max(2 + states, len(node.inputs)) + 1)
            node.replace_input_with(2 + states, nothing)
            self._new_output(node)
            for index in reversed(range(states, len(node.outputs) - 1)):
                self._move_output(node, index)
            yield _Tap(tap.tensor, node.outputs[states])
            states += 1

    def _through_scan(self, node: ir.Node, body: ir.Graph, taps: Sequence[_Tap]) -> Iterator[_Tap]:
        assert node.graph is not None
        for tap in taps:
            body.outputs.append(tap.value)
            for name in ("scan_output_axes", "scan_output_directions"):
                if name in node.attributes:
                    listed = (*node.attributes[name].as_ints(), 0)
                    node.attributes.add(ir.AttrInt64s(name, listed))
            # One row an iteration.
            stacked = self._new_output(node)
            stacked.shape = ir.Shape([None, None])
            yield _Tap(tap.tensor, self._flat(node.graph, stacked))

    def _move_output(self, node: ir.Node, index: int) -> None:
        """Let what is output ``index`` of ``node`` be the next one, under its name."""
        old, new = node.outputs[index : index + 2]
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.type, new.shape = old.type, old.shape
        name, old.name = old.name, self._name()
        new.name = name
        self._typed(old)

    def _new_output(self, node: ir.Node) -> ir.Value:
        node.resize_outputs(len(node.outputs) + 1)
        node.outputs[-1].name = self._name()
        return self._typed(node.outputs[-1])

    def _append(
        self,
        body: ir.Graph,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        output = self._typed(ir.Value(name=self._name()))
        body.append(ir.Node("", op_type, inputs, attributes, outputs=[output], name=output.name))
        return output

    def _constant(self, graph: ir.Graph, data: np.ndarray) -> ir.Value:
        name = self._name()
        tensor = ir.tensor(data, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.shape = ir.Shape(data.shape)
        graph.register_initializer(value)
        return value

    def _typed(self, value: ir.Value) -> ir.Value:
        """``value`` as float32 of rank 1."""
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None])
        return value

    def _name(self) -> str:
        """A name that nothing has yet."""
        name = f"observed_{len(self._taken)}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name
