"""Why a group of nodes stays float: what passes said of it, else what its edges tell."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from onnxfold.passes.census import ModelKind
from onnxfold.passes.constants import constant_array
from onnxfold.passes.float_groups import FloatGroup
from onnxfold.passes.kept_remarks import kept_remarks
from onnxfold.passes.op_kinds import OpKind, is_integer_kernel, op_key
from onnxfold.passes.provenance import PASS_KEY, node_name, original_names
from onnxfold.passes.remark import Remark

ABOUT_FLOAT = ("compile", "fold-qdq", "insert-qdq")
"""The passes, and commands, whose remarks are about what is not integer."""

RemarkIndex = dict[str, list[Remark]]
"""Remarks by the name of the node they are about."""

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


_DYNAMIC = Reason(
    "its scales are computed at run time, for each input anew",
    "quantize the float original with fixed scales: onnxfold compile",
)


def explain_group(group: FloatGroup, index: RemarkIndex) -> tuple[tuple[Reason, ...], Cause]:
    """The reasons for ``group``, those that decide first; and whose decision it is.

    Args:
        group: Its Q, DQ and float operators.
        index: What passes said, by node.
    """
    before = group.of_kind(OpKind.DEQUANTIZE) or group.kernels_before or group.casts(to_codes=False)
    after = group.of_kind(OpKind.QUANTIZE) or group.kernels_after or group.casts(to_codes=True)
    weights = [
        node for node in group.of_kind(OpKind.DEQUANTIZE, constant=True) if not is_folded(node)
    ]
    remarks = [remark for node in group.nodes for remark in remarks_on(node, index)]
    at_edge = not weights and (not before or not after)
    if at_edge:
        # Refusals at the edge are about what nobody asked to be integer.
        remarks = [each for each in remarks if each.pass_name != _FOLD or each.measured]
    if remarks:
        return _merged(remarks), _cause_of(remarks)
    if group.model_kind is ModelKind.DYNAMIC and _is_dynamic(group):
        return (_DYNAMIC,), Cause.FIXABLE
    if all(is_folded(node) and node.op_type in _CONVERSION for node in group.float_nodes):
        return _bare(group)
    if at_edge:
        reason = _edge(group, computed=bool(before))
        return (reason,), Cause.EDGE if group.has_codes else Cause.FIXABLE
    if not before and not after:
        return (_only_weights(weights),), Cause.FIXABLE
    if all(map(is_folded, group.float_nodes)):
        # Of a model that was folded before: what was said then is not in the file.
        return (Reason("an earlier fold put it in float: faster, or with no kernel"),), Cause.SLOWER
    if before and not group.of_kind(OpKind.DEQUANTIZE):
        return (_unfollowed(before[0]),), Cause.FIXABLE
    return (), Cause.IMPOSSIBLE


def shape_of_reason(text: str) -> str:
    """``text`` without the names in it, to tell reasons of the same kind."""
    return _QUOTED.sub("''", text)


def remarks_by_node(remarks: Iterable[Remark]) -> RemarkIndex:
    """The remarks about what is not integer, by node."""
    index: RemarkIndex = defaultdict(list)
    for remark in remarks:
        if remark.pass_name in ABOUT_FLOAT:
            index[remark.node].append(remark)
    return index


def remarks_on(node: ir.Node, index: RemarkIndex) -> list[Remark]:
    """The remarks on ``node`` and on the nodes it was made of; first those of an earlier fold."""
    names = dict.fromkeys([node_name(node), *original_names(node)])
    said = [remark for name in names for remark in index.get(name, ())]
    kept = kept_remarks(node)
    same = {(each.op_type, each.reason) for each in said} >= {
        (each.op_type, each.reason) for each in kept
    }
    return said if same else kept


def is_folded(node: ir.Node) -> bool:
    """Whether a fold wrote ``node``."""
    return _FOLD in node.metadata_props.get(PASS_KEY, "").split(",")


def _merged(remarks: Sequence[Remark]) -> tuple[Reason, ...]:
    """One reason for all nodes of an operator it holds for; those that decide first."""
    merged: dict[tuple[str, str], list[Remark]] = defaultdict(list)
    for remark in dict.fromkeys(remarks):
        merged[remark.op_type, shape_of_reason(remark.reason)].append(remark)
    reasons = [
        Reason(
            same[0].reason,
            _advice(same[0]),
            op_type,
            tuple(dict.fromkeys(each.node for each in same)),
        )
        for (op_type, _), same in merged.items()
    ]
    first = {
        reason: _order(remarks) for reason, remarks in zip(reasons, merged.values(), strict=True)
    }
    return tuple(sorted(reasons, key=lambda each: (first[each], -len(each.nodes))))


def _advice(remark: Remark) -> str:
    if remark.measured and remark.pass_name == _FOLD:
        return remark.advice or "--target standard takes its integer kernel all the same"
    return remark.advice


def _order(remarks: Sequence[Remark]) -> int:
    """Measurements first, then what cannot be changed: these decide."""
    return 0 if remarks[0].measured else 2 if remarks[0].advice else 1


def _cause_of(remarks: Sequence[Remark]) -> Cause:
    if any(remark.measured for remark in remarks):
        return Cause.SLOWER
    return Cause.FIXABLE if all(remark.advice for remark in remarks) else Cause.IMPOSSIBLE


def _bare(group: FloatGroup) -> tuple[tuple[Reason, ...], Cause]:
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


def _edge(group: FloatGroup, *, computed: bool) -> Reason:
    if computed:
        where, what = "after the last DequantizeLinear", group.graph_outputs
        advice = f"quantize {_named(what)}" if what else "quantize what it gives"
        return Reason(f"it is computed {where}", advice)
    if group.of_kind(OpKind.QUANTIZE) or group.kernels_after:
        what = group.graph_inputs
        advice = f"quantize {_named(what)}" if what else "quantize what it reads"
        return Reason("it is computed before the first QuantizeLinear", advice)
    if group.has_codes:
        return Reason("nothing it reads or gives is quantized", "quantize what it reads and gives")
    only_weights = group.model_kind is ModelKind.WEIGHT_ONLY
    what = (
        "only weights are quantized, behind Cast and Mul" if only_weights else "it is a float model"
    )
    return Reason(what, "onnxfold compile quantizes it")


def _is_dynamic(group: FloatGroup) -> bool:
    """Whether real numbers become codes, or accumulators real numbers, by scales of a run."""
    values = [value for node in group.nodes for value in node.inputs if value is not None]
    if any(node.op_type == "DynamicQuantizeLinear" for node in group.nodes):
        return True
    producers = [value.producer() for value in values if value.dtype == ir.DataType.INT32]
    return any(each is not None and is_integer_kernel(each) for each in producers)


def _unfollowed(source: ir.Node) -> Reason:
    reason = f"{op_key(source)} '{node_name(source)}' gives it real numbers, and no type with them"
    return Reason(reason, "write a DequantizeLinear in its place")


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
