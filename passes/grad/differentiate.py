"""Reverse-mode differentiation of one graph: from the gradients of some values to those of others.

Values are walked from the seeds back to what they are computed from; each node that lies between
the two ends is asked, in reverse order, for the gradients of its inputs (``passes.grad.vjp``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.dependence import depends_on, read_besides, real_or_unknown
from onnxfold.passes.grad.function_bodies import can_expand, expand_function
from onnxfold.passes.grad.quantized_paths import INTEGER_OPS
from onnxfold.passes.grad.rules import load_rules
from onnxfold.passes.grad.shapes import UnknownTypeError
from onnxfold.passes.grad.vjp import FLAT, NO_GRADIENT, Call, VjpFunction, describe_path, key_of
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import label


class Differentiator:
    """Writes gradients into one model.

    Attributes:
        rewriter: The gate; a step must be open.
        normalize_steps: Whether gradients of quantization scales are normalized.
    """

    def __init__(self, rewriter: Rewriter, normalize_steps: bool = False) -> None:
        self.rewriter = rewriter
        self.normalize_steps = normalize_steps
        self._rules = load_rules()

    def gradients(
        self,
        builder: Builder,
        seeds: Mapping[ir.Value, ir.Value],
        wrt: Sequence[ir.Value],
        *,
        until: Sequence[ir.Value] = (),
        around: Collection[ir.Graph] = (),
    ) -> list[ir.Value | None]:
        """The gradients of ``wrt``, given those of the values that ``seeds`` maps.

        Args:
            builder: Writes the nodes; its anchor stands after everything the seeds depend on.
            seeds: Gradients by value: what the values are multiplied with (vector-Jacobian).
            wrt: The values whose gradients are wanted. A gradient goes on through one of them to
                others that it depends on.
            until: Values that count as independent: what they are computed from is not looked at.
            around: Graphs around that of the seeds whose nodes are looked at, too.

        Returns:
            One gradient a value, of its type and shape; None where the seeds do not depend on it.

        Raises:
            UsageError: An operator between them has no gradient; names it and the path.
        """
        order = _ancestors(seeds, frozenset(until), frozenset(around))
        active = _active_values(order, frozenset(wrt), frozenset(until) - frozenset(wrt))
        self._refuse_integer_arithmetic(order, active)
        flows = _Flows(builder)
        for value, gradient in seeds.items():
            flows.add(value, gradient)
        for node in reversed(order):
            outputs = tuple(flows.total(output) for output in node.outputs)
            if not any(outputs) or not depends_on(node, active):
                continue
            for value, gradient in self._flow_back(node, outputs, active, builder):
                flows.add(value, gradient)
        return [flows.total(value) for value in wrt]

    def refusal(self, node: ir.Node, reason: str) -> UsageError:
        """The error that says why ``node`` cannot be differentiated, and where it stands."""
        path = describe_path(_path_to_output(node))
        return UsageError(f"no gradient of {label(node)}: {reason}; on the path {path}")

    def _refuse_integer_arithmetic(
        self, order: Sequence[ir.Node], active: frozenset[ir.Value]
    ) -> None:
        """Let no gradient be lost unnoticed in an operator that computes on codes."""
        for node in order:
            if node.op_type in INTEGER_OPS and depends_on(node, active):
                raise self.refusal(
                    node,
                    f"{node.op_type} computes on integers; differentiate the float model, or one "
                    "with QuantizeLinear and DequantizeLinear around float operators",
                )

    def _flow_back(
        self,
        node: ir.Node,
        outputs: tuple[ir.Value | None, ...],
        active: frozenset[ir.Value],
        builder: Builder,
    ) -> Iterator[tuple[ir.Value, ir.Value]]:
        rule = self._rule(node)
        if rule is None:
            return
        needed = tuple(value in active for value in node.inputs)
        opset = self.rewriter.opset(node, node.domain)
        captured = tuple(value for value in read_besides(node) if value in active)
        call = Call(node, outputs, needed, opset, self, captured)
        with builder.named(f"grad_{node.name or node.outputs[0].name}"):
            try:
                found = rule(call, builder)
            except UnknownTypeError as error:
                raise self.refusal(node, str(error)) from error
        for value, gradient, wanted in zip(node.inputs, found, needed, strict=False):
            if value is not None and gradient is not None and wanted:
                builder.assume_like(gradient, value)
                yield value, gradient
        yield from call.flows

    def _rule(self, node: ir.Node) -> VjpFunction | None:
        key = key_of(node)
        if key in FLAT:
            return None
        rule = self._rules.get(key)
        if rule is not None:
            return rule
        if key in NO_GRADIENT:
            raise self.refusal(node, NO_GRADIENT[key])
        if can_expand(node, self.rewriter.opset(node, node.domain)):
            return expand_function
        if node.op_identifier() in self.rewriter.model.functions:
            raise self.refusal(node, "it calls a function; run inline-functions{which=all} first")
        raise self.refusal(node, f"{node.op_type} has no rule")


class _Flows:
    """The gradients that flow into each value, summed when they are asked for."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._parts: dict[ir.Value, list[ir.Value]] = {}

    def add(self, value: ir.Value, gradient: ir.Value) -> None:
        self._parts.setdefault(value, []).append(gradient)

    def total(self, value: ir.Value) -> ir.Value | None:
        parts = self._parts.get(value)
        if not parts:
            return None
        if len(parts) > 1:
            op_type = "Add" if len(parts) == 2 else "Sum"
            parts[:] = [self._builder.op(op_type, *parts, like=value)]
        return parts[0]


def _ancestors(
    seeds: Mapping[ir.Value, ir.Value],
    until: frozenset[ir.Value],
    around: frozenset[ir.Graph],
) -> list[ir.Node]:
    """What the seeds are computed from in their graph: producers before consumers."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    graphs = {value.graph for value in seeds} | around
    starts = [value.producer() for value in seeds if value not in until]
    stack = [(node, False) for node in starts if node is not None][::-1]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node in seen or node.graph not in graphs:
            continue
        seen.add(node)
        stack.append((node, True))
        for value in (*node.inputs, *read_besides(node)):
            producer = None if value is None or value in until else value.producer()
            if producer is not None and producer not in seen:
                stack.append((producer, False))
    return order


def _active_values(
    order: Sequence[ir.Node], wrt: frozenset[ir.Value], held: frozenset[ir.Value]
) -> frozenset[ir.Value]:
    """The values that depend on ``wrt`` and through which a gradient can flow."""
    active = set(wrt)
    for node in order:
        if key_of(node) in FLAT or not depends_on(node, active):
            continue
        active.update(output for output in node.outputs if real_or_unknown(output))
        active -= held
    return frozenset(active)


def _path_to_output(node: ir.Node) -> list[ir.Node]:
    """Nodes from ``node`` on, each fed by the one before, as far as it goes."""
    path = [node]
    seen = {node}
    while True:
        readers = (use.node for output in path[-1].outputs for use in output.uses())
        following = next((reader for reader in readers if reader not in seen), None)
        if following is None or following.op_type == "Gradient":
            return path
        seen.add(following)
        path.append(following)
