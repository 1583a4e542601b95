"""Maximal groups of nodes joined by real numbers, and what stands at their edges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.census import ModelKind, has_codes, model_kind
from onnxfold.passes.float_ops import flow_in
from onnxfold.passes.op_kinds import CODE_TYPES, FLOAT_TYPES, NodeKinds, OpKind, node_kinds

_OUTSIDE = (OpKind.INTEGER, OpKind.SHAPE, OpKind.CONSTANT)
"""Kinds of nodes that a group ends at."""


@dataclass(frozen=True)
class FloatGroup:
    """One group: Q, DQ, and the float operators that share real numbers with them.

    Attributes:
        nodes: Its nodes, in graph order.
        passed: Its real numbers that control flow and calls hand into bodies and out of them.
        model: The model they are in.
        found: The kinds of all nodes of the model.
        model_kind: What the model is as a whole.
        has_codes: Whether anything in the model is quantized in a form that the fold reads.
    """

    nodes: Sequence[ir.Node]
    passed: Sequence[ir.Value]
    model: ir.Model
    found: NodeKinds
    model_kind: ModelKind
    has_codes: bool

    def of_kind(self, kind: OpKind, *, constant: bool = False) -> list[ir.Node]:
        """The Q or DQ nodes of what is computed, or of constants."""
        return [
            node
            for node in self.nodes
            if self.found.kinds[node] is kind and (node.inputs[0] in self.found.known) is constant
        ]

    @property
    def values(self) -> list[ir.Value]:
        """All real numbers of the group."""
        read = [value for node in self.nodes for value in self.found.float_inputs(node)]
        made = [value for node in self.nodes for value in self.found.float_outputs(node)]
        return list(dict.fromkeys([*read, *made, *self.passed]))

    @property
    def float_nodes(self) -> list[ir.Node]:
        """The members that are neither Q nor DQ."""
        edges = (OpKind.QUANTIZE, OpKind.DEQUANTIZE)
        return [node for node in self.nodes if self.found.kinds[node] not in edges]

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of what it reads of computed values that it does not make."""
        own = set(self.nodes)
        read = [value for node in self.nodes for value in node.inputs if value is not None]
        outside = [each for each in read if each.producer() not in own]
        return tuple(
            dict.fromkeys(each.name or "" for each in outside if each not in self.found.known)
        )

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of what others, or the caller, read of it."""
        own = set(self.nodes)
        written = [
            value
            for node in self.nodes
            for value in node.outputs
            if value.is_graph_output() or any(use.node not in own for use in value.uses())
        ]
        return tuple(dict.fromkeys(value.name or "" for value in written))

    @property
    def graph_inputs(self) -> list[ir.Value]:
        """The model's inputs it reads as real numbers."""
        inputs = set(self.model.graph.inputs)
        return [value for value in self.values if value in inputs]

    @property
    def graph_outputs(self) -> list[ir.Value]:
        """The model's outputs it gives as real numbers."""
        outputs = set(self.model.graph.outputs)
        return [value for value in self.values if value in outputs]

    def casts(self, *, to_codes: bool) -> list[ir.Node]:
        """Casts between codes and real numbers, which stand for Q and DQ of scale 1."""
        casts = [node for node in self.nodes if node.op_type == "Cast" and not node.domain]
        values = [node.outputs[0] if to_codes else node.inputs[0] for node in casts]
        pairs = zip(casts, values, strict=True)
        return [node for node, value in pairs if value and value.dtype in CODE_TYPES]

    @property
    def kernels_before(self) -> list[ir.Node]:
        """Integer operators that give it real numbers."""
        producers = [value.producer() for value in self.values]
        integer = OpKind.INTEGER
        return [each for each in producers if each and self.found.kinds.get(each) is integer]

    @property
    def kernels_after(self) -> list[ir.Node]:
        """Integer operators that read its real numbers."""
        readers = [use.node for value in self.values for use in value.uses()]
        return [each for each in readers if self.found.kinds.get(each) is OpKind.INTEGER]


def float_groups(model: ir.Model) -> list[FloatGroup]:
    """The groups of ``model`` in order of their first nodes; types must be known."""
    found, kind, codes = node_kinds(model), model_kind(model), has_codes(model)
    return [
        FloatGroup(nodes, passed, model, found, kind, codes)
        for nodes, passed in _joined(model, found)
    ]


def _joined(model: ir.Model, found: NodeKinds) -> list[tuple[list[ir.Node], list[ir.Value]]]:
    """The connected groups, control flow left out; each in order, and in order of their firsts."""
    sets = _Sets()
    members: dict[ir.Node, ir.Value] = {}
    passed: list[ir.Value] = []
    for node, kind in found.kinds.items():
        if kind in _OUTSIDE:
            continue
        values = [*found.float_inputs(node), *found.float_outputs(node)]
        if kind is OpKind.CONTROL:
            pairs = [pair for pair in flow_in(node, model) if pair[0].dtype in FLOAT_TYPES]
            for outer, inner in pairs:
                sets.join(outer, inner)
                passed += [outer, inner]
            continue
        if kind is OpKind.DEQUANTIZE and node.inputs[0] in found.known:
            # Constants that are quantized in the graph belong to what reads them.
            values += [value for value in node.inputs[:1] if value is not None]
        for value in values[1:]:
            sets.join(values[0], value)
        if values:
            members[node] = values[0]
        elif kind in (OpKind.QUANTIZE, OpKind.DEQUANTIZE):
            members[node] = node.outputs[0]
    groups: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node, value in members.items():
        groups[sets.root(value)].append(node)
    handed: dict[ir.Value, list[ir.Value]] = defaultdict(list)
    for value in dict.fromkeys(passed):
        handed[sets.root(value)].append(value)
    return [(nodes, handed[root]) for root, nodes in groups.items()]


class _Sets:
    """Disjoint sets of values."""

    def __init__(self) -> None:
        self._parents: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        while (parent := self._parents.get(value, value)) is not value:
            self._parents[value] = self._parents.get(parent, parent)
            value = parent
        return value

    def join(self, first: ir.Value, second: ir.Value) -> None:
        self._parents[self.root(second)] = self.root(first)
