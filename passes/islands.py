"""What is left in float beside integer arithmetic: islands, each with the reasons for it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import onnx_ir as ir

from onnxfold.passes.census import has_codes, integer_weights
from onnxfold.passes.constants import constant_array
from onnxfold.passes.float_ops import flow_in
from onnxfold.passes.op_kinds import (
    CODE_TYPES,
    FLOAT_TYPES,
    NodeKinds,
    OpKind,
    is_dequantize,
    is_quantize,
    node_kinds,
    op_key,
)
from onnxfold.passes.provenance import PASS_KEY, node_name, original_names
from onnxfold.passes.remark import Remark

_OUTSIDE = (OpKind.INTEGER, OpKind.SHAPE, OpKind.CONSTANT)
"""Kinds of nodes that an island ends at."""

ABOUT_FLOAT = ("compile", "fold-qdq", "insert-qdq", "lift-qoperator")
"""The passes, and commands, whose remarks are about what is not integer."""

_FOLD = "fold-qdq"
_CONVERSION = ("Cast", "Mul", "Sub")
"""What a fold writes a DequantizeLinear as where ONNX Runtime must not fuse it."""

_QUOTED = re.compile(r"'[^']*'")


class Cause(Enum):
    """Whose decision it is that something stays float."""

    EDGE = "on purpose"
    IMPOSSIBLE = "cannot"
    SLOWER = "measured"
    FIXABLE = "can be changed"


@dataclass(frozen=True)
class Reason:
    """One reason, and the nodes it holds for.

    Attributes:
        reason: Why, as a clause.
        advice: What would change it; empty where nothing would.
        op_type: The operator; empty where the reason is about the island as a whole.
        nodes: Names of the nodes, of the model as it was when the reason was found.
    """

    reason: str
    advice: str = ""
    op_type: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Island:
    """A maximal group of nodes joined by real numbers: Q, DQ and the float operators among them.

    Attributes:
        cause: Whose decision it is.
        reasons: Why; the first one decides the cause.
        nodes: Names of its nodes, in order.
        ops: How often each operator occurs.
        float_ops: How many of the nodes are neither Q nor DQ.
        reads: What it reads from outside: codes, or graph inputs.
        writes: What it gives away: codes, or graph outputs.
        time_share: Share of the run time, 0 to 1; None where it was not measured.
    """

    cause: Cause
    reasons: tuple[Reason, ...]
    nodes: tuple[str, ...]
    ops: dict[str, int]
    float_ops: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    time_share: float | None = None

    @property
    def reason(self) -> str:
        """The first reason."""
        return self.reasons[0].reason if self.reasons else ""

    @property
    def advice(self) -> str:
        """What would remove it; empty where nothing would."""
        return next((each.advice for each in self.reasons if each.advice), "")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {**asdict(self), "cause": self.cause.value}


def find_islands(
    model: ir.Model, remarks: Sequence[Remark] = (), *, qdq_form: bool = False
) -> tuple[Island, ...]:
    """Every Q, DQ and float operator of ``model`` in islands, in graph order.

    Args:
        model: Types must be known: run ``infer-shapes`` before.
        remarks: What passes and measurements said about its nodes, or about those that they were
            made of; only those of ``ABOUT_FLOAT`` count.
        qdq_form: Whether another runtime will fuse what ``fold-qdq`` wrote as Q/DQ about
            operators: those are no islands then.
    """
    found = node_kinds(model)
    index = _by_node(remarks)
    groups = _groups(model, found)
    if qdq_form:
        groups = [group for group in groups if not _is_in_qdq_form(group, index)]
    return tuple(_island(_Group(group, model, found, index)) for group in groups)


def shape_of_reason(text: str) -> str:
    """``text`` without the names in it, to tell reasons of the same kind."""
    return _QUOTED.sub("''", text)


RemarkIndex = dict[str, list[Remark]]


def _by_node(remarks: Iterable[Remark]) -> RemarkIndex:
    index: RemarkIndex = defaultdict(list)
    for remark in remarks:
        if remark.pass_name in ABOUT_FLOAT:
            index[remark.node].append(remark)
    return index


def _groups(model: ir.Model, found: NodeKinds) -> list[list[ir.Node]]:
    """The connected groups, control flow left out; each in order, and in order of their firsts."""
    sets = _Sets()
    members: dict[ir.Node, ir.Value] = {}
    for node, kind in found.kinds.items():
        if kind in _OUTSIDE:
            continue
        values = [*found.float_inputs(node), *found.float_outputs(node)]
        if kind is OpKind.CONTROL:
            pairs = [pair for pair in flow_in(node, model) if pair[0].dtype in FLOAT_TYPES]
            for outer, inner in pairs:
                sets.join(outer, inner)
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
    return list(groups.values())


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


def _is_in_qdq_form(group: Sequence[ir.Node], index: RemarkIndex) -> bool:
    """Whether the group is Q/DQ about operators as the fold wants it, and it refused none of it."""
    if len(group) == 1 or any(_said(node, index) for node in group):
        return False
    enters, leaves = (any(map(test, group)) for test in (is_dequantize, is_quantize))
    return all(map(_is_folded, group)) or (enters and leaves)


def _is_folded(node: ir.Node) -> bool:
    return _FOLD in node.metadata_props.get(PASS_KEY, "").split(",")


def _said(node: ir.Node, index: RemarkIndex) -> list[Remark]:
    names = dict.fromkeys([node_name(node), *original_names(node)])
    return [remark for name in names for remark in index.get(name, ())]


@dataclass(frozen=True)
class _Group:
    """A group on its way to becoming an island."""

    nodes: Sequence[ir.Node]
    model: ir.Model
    found: NodeKinds
    index: RemarkIndex

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
        return list(dict.fromkeys([*read, *made]))

    @property
    def float_nodes(self) -> list[ir.Node]:
        """The members that are neither Q nor DQ."""
        edges = (OpKind.QUANTIZE, OpKind.DEQUANTIZE)
        return [node for node in self.nodes if self.found.kinds[node] not in edges]

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


def _island(group: _Group) -> Island:
    reasons, cause = _explained(group)
    ops = Counter(map(op_key, group.nodes))
    return Island(
        cause,
        reasons,
        tuple(map(node_name, group.nodes)),
        dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        len(group.float_nodes),
        _reads(group),
        _writes(group),
    )


def _reads(group: _Group) -> tuple[str, ...]:
    own = set(group.nodes)
    read = [
        value
        for node in group.nodes
        for value in node.inputs
        if value is not None and value not in group.found.known and value.producer() not in own
    ]
    return tuple(dict.fromkeys(value.name or "" for value in read))


def _writes(group: _Group) -> tuple[str, ...]:
    own = set(group.nodes)
    written = [
        value
        for node in group.nodes
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in own for use in value.uses())
    ]
    return tuple(dict.fromkeys(value.name or "" for value in written))


def _explained(group: _Group) -> tuple[tuple[Reason, ...], Cause]:
    before = group.of_kind(OpKind.DEQUANTIZE) or group.kernels_before or group.casts(to_codes=False)
    after = group.of_kind(OpKind.QUANTIZE) or group.kernels_after or group.casts(to_codes=True)
    weights = [
        node for node in group.of_kind(OpKind.DEQUANTIZE, constant=True) if not _is_folded(node)
    ]
    remarks = [remark for node in group.nodes for remark in _said(node, group.index)]
    at_edge = not weights and (not before or not after)
    if at_edge:
        # Refusals at the edge are about what nobody asked to be integer.
        remarks = [each for each in remarks if each.pass_name != _FOLD or each.measured]
    if remarks:
        return _merged(remarks), _cause_of(remarks)
    if all(_is_folded(node) and node.op_type in _CONVERSION for node in group.float_nodes):
        return _bare(group)
    if at_edge:
        reason = _edge(group, computed=bool(before))
        return (reason,), Cause.EDGE if has_codes(group.model) else Cause.FIXABLE
    if not before and not after:
        return (_only_weights(weights),), Cause.FIXABLE
    return (), Cause.IMPOSSIBLE


def _merged(remarks: Sequence[Remark]) -> tuple[Reason, ...]:
    """One reason for all nodes of an operator it holds for; those that decide first."""
    merged: dict[tuple[str, str], list[Remark]] = defaultdict(list)
    for remark in dict.fromkeys(remarks):
        merged[remark.op_type, shape_of_reason(remark.reason)].append(remark)
    reasons = [
        Reason(
            same[0].reason,
            same[0].advice,
            op_type,
            tuple(dict.fromkeys(each.node for each in same)),
        )
        for (op_type, _), same in merged.items()
    ]
    first = {
        reason: _order(remarks) for reason, remarks in zip(reasons, merged.values(), strict=True)
    }
    return tuple(sorted(reasons, key=lambda each: (first[each], -len(each.nodes))))


def _order(remarks: Sequence[Remark]) -> int:
    """Measurements first, then what cannot be changed: these decide."""
    return 0 if remarks[0].measured else 2 if remarks[0].advice else 1


def _cause_of(remarks: Sequence[Remark]) -> Cause:
    if any(remark.measured for remark in remarks):
        return Cause.SLOWER
    return Cause.FIXABLE if all(remark.advice for remark in remarks) else Cause.IMPOSSIBLE


def _bare(group: _Group) -> tuple[tuple[Reason, ...], Cause]:
    """Q and DQ with nothing in between."""
    quantizers = group.of_kind(OpKind.QUANTIZE)
    dequantizers = group.of_kind(OpKind.DEQUANTIZE) or group.casts(to_codes=False)
    inputs, outputs = group.graph_inputs, group.graph_outputs
    if quantizers and dequantizers:
        return (_between(dequantizers[0], quantizers),), Cause.FIXABLE
    if inputs:
        reason = f"the graph input {_named(inputs)} is float"
        return (Reason(reason, "feed it as codes"),), Cause.EDGE
    if outputs:
        reason = f"the graph output {_named(outputs)} is float"
        return (Reason(reason, "read it as codes"),), Cause.EDGE
    kernels = [*group.kernels_before, *group.kernels_after]
    if kernels:
        reason = f"{op_key(kernels[0])} computes with real numbers at this edge"
        return (Reason(reason, op_type=op_key(kernels[0])),), Cause.IMPOSSIBLE
    if not quantizers and not dequantizers:
        return (Reason("it quantizes or dequantizes constants", "fold constants"),), Cause.FIXABLE
    reason = "its real numbers are read by control flow or by nothing"
    return (Reason(reason, "run remove-dead-code, or quantize inside of the body"),), Cause.FIXABLE


def _between(dequantize: ir.Node, quantizers: Sequence[ir.Node]) -> Reason:
    """Codes that become other codes."""
    codes = dequantize.inputs[0]
    name = codes.name if codes is not None else ""
    if all(_is_shift(dequantize, each) for each in quantizers):
        return Reason(
            f"int8 codes of '{name}' are shifted to or from uint8",
            "use uint8 at the edges of the graph",
        )
    return Reason(
        f"'{name}' is requantized: its readers disagree about its scale",
        "use one scale and zero point on both sides",
    )


def _is_shift(dequantize: ir.Node, quantize: ir.Node) -> bool:
    """Whether the pair only changes the type of the codes."""
    if len(dequantize.inputs) < 2:
        return False
    first, second = (constant_array(node.inputs[1]) for node in (dequantize, quantize))
    codes = dequantize.inputs[0]
    if first is None or second is None or codes is None or first.shape != second.shape:
        return False
    return codes.dtype != quantize.outputs[0].dtype and bool((first == second).all())


def _edge(group: _Group, *, computed: bool) -> Reason:
    if computed:
        where, what = "after the last DequantizeLinear", group.graph_outputs
        advice = f"quantize {_named(what)}" if what else "quantize what it gives"
        return Reason(f"it is computed {where}", advice)
    if group.of_kind(OpKind.QUANTIZE) or group.kernels_after:
        what = group.graph_inputs
        advice = f"quantize {_named(what)}" if what else "quantize what it reads"
        return Reason("it is computed before the first QuantizeLinear", advice)
    if has_codes(group.model):
        return Reason("nothing it reads or gives is quantized", "quantize what it reads and gives")
    only_weights = any(True for _ in integer_weights(group.model))
    what = (
        "only weights are quantized, behind Cast and Mul" if only_weights else "it is a float model"
    )
    return Reason(what, "onnxfold compile quantizes it")


def _only_weights(weights: Sequence[ir.Node]) -> Reason:
    return Reason(
        "only its weights are quantized",
        "quantize the activations as well",
        "DequantizeLinear",
        tuple(map(node_name, weights)),
    )


def _named(values: Sequence[ir.Value], most: int = 3) -> str:
    names = [f"'{value.name}'" for value in values]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
