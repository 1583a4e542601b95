"""Finds what goes into the softmax behind an output, and adds it to the outputs of a copy.

A sigmoid is a softmax of two scores, one of them zero, and amplifies rounding alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from onnxfold.passes.errors import OnnxfoldError
from onnxfold.runtime.session import REFERENCE, Session, SessionConfig
from onnxfold.runtime.specs import ModelLike, TensorSpec, load_ir, specs_of


def softmax_outputs(model: ir.Model) -> frozenset[str]:
    """The outputs of the main graph that a softmax computes, in either form."""
    outputs = model.graph.outputs
    return frozenset(v.name for v in outputs if v.name and _softmax_input(v) is not None)


_SQUASHING = ("Softmax", "Sigmoid")
_SPREADING = ("Reshape", "Expand", "Unsqueeze", "Identity")


def softmax_inputs(model: ir.Model) -> dict[str, str]:
    """For each output of the main graph that a softmax computes: the value before the softmax.

    Softmax itself is recognized, and Exp(z) / ReduceSum(Exp(z)) with or without the usual
    subtraction of ReduceMax. Outputs whose softmax input is an output anyway are left out.
    """
    visible = {value.name for value in model.graph.outputs}
    found: dict[str, str] = {}
    for output in model.graph.outputs:
        before = _softmax_input(output)
        if before is None or before.is_graph_input() or before.is_initializer():
            continue
        if output.name and before.name and before.name not in visible:
            found[output.name] = before.name
    return found


@dataclass(frozen=True)
class LogitsSession:
    """A session that also returns, by a name of its own, what goes into the softmaxes.

    Attributes:
        session: The session of the copy with the added outputs.
        names: Output name -> the value before its softmax, where it was added.
        shapes: What the model declares of its outputs; onnxruntime reports what it infers instead
            where the two contradict each other, which another form of the model may hide from it.
    """

    session: Session
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int | str | None, ...]] = field(
        default_factory=dict[str, "tuple[int | str | None, ...]"]
    )

    @classmethod
    def open(
        cls, model: ModelLike, config: SessionConfig = REFERENCE, only: frozenset[str] | None = None
    ) -> LogitsSession:
        """Load a copy of ``model`` with the added outputs; ``model`` itself is not changed.

        Args:
            model: The model.
            config: How it runs. Added outputs change what optimizations do: none should be on.
            only: The outputs to do it for; all that are behind a softmax if None.

        Raises:
            ExecutionError: ONNX Runtime refuses the model.
        """
        source = load_ir(model)
        names = softmax_inputs(source)
        names = {name: z for name, z in names.items() if only is None or name in only}
        declared = specs_of(source.graph.outputs)
        shapes = {each.name: each.shape for each in declared if each.shape is not None}
        if not names:
            return cls(Session(model, config), {}, shapes)
        try:
            return cls(Session(exposed(source, names), config), names, shapes)
        except OnnxfoldError:
            # A type that is unknown here may make the copy invalid where the model is not.
            return cls(Session(model, config), {}, shapes)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's own outputs, as it declares them."""
        hidden = set(self.names.values())
        return tuple(
            replace(spec, shape=self.shapes.get(spec.name, spec.shape))
            for spec in self.session.outputs
            if spec.name not in hidden
        )

    def run(self, feed: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's own outputs, and the values before the softmaxes by output name."""
        values = self.session.run(feed)
        before = {name: values[value] for name, value in self.names.items()}
        return {spec.name: values[spec.name] for spec in self.outputs}, before


def before_softmax(name: str) -> str:
    """What metrics and reasons call the value before the softmax behind output ``name``."""
    return f"{name} (before softmax)"


def exposed(model: ir.Model, names: Mapping[str, str]) -> ir.Model:
    """A copy of ``model`` that also returns the values ``names`` maps its outputs to."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    outputs = {value.name: value for value in copy.graph.outputs}
    for name, before in names.items():
        value = values[before]
        value.type = value.type or outputs[name].type
        if value not in copy.graph.outputs:
            copy.graph.outputs.append(value)
    return copy


def _softmax_input(output: ir.Value) -> ir.Value | None:
    node = output.producer()
    if node is None or node.domain:
        return None
    if node.op_type in _SQUASHING:
        return node.inputs[0]
    if node.op_type != "Div":
        return None
    exponential = _producer(node.inputs[0])
    total = _producer(_spread(node.inputs[1]))
    if not _is(exponential, "Exp") or not _is(total, "ReduceSum") or exponential is None:
        return None
    if total is None or total.inputs[0] is not exponential.outputs[0]:
        return None
    shifted = _producer(exponential.inputs[0])
    if not _is(shifted, "Sub") or shifted is None:
        return exponential.inputs[0]
    maximum = _producer(_spread(shifted.inputs[1]))
    if maximum is None or not _is(maximum, "ReduceMax"):
        return exponential.inputs[0]
    same = maximum.inputs[0] is shifted.inputs[0]
    return shifted.inputs[0] if same else exponential.inputs[0]


def _spread(value: ir.Value | None) -> ir.Value | None:
    """The reduced value that ``value`` is spread from, over the axis that was reduced."""
    while (node := _producer(value)) is not None and not node.domain:
        if node.op_type == "Max":
            # jax writes Max(-inf, ReduceMax(x)).
            computed = [each for each in node.inputs if _producer(each) is not None]
            value = computed[0] if len(computed) == 1 else None
        elif node.op_type in _SPREADING:
            value = node.inputs[0]
        else:
            break
    return value


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and not node.domain and node.op_type == op_type
