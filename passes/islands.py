"""What is left in float beside integer arithmetic: islands, each with the reasons for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from onnxfold.passes.float_groups import FloatGroup, float_groups
from onnxfold.passes.island_reasons import (
    Cause,
    Reason,
    RemarkIndex,
    explain_group,
    is_folded,
    remarks_by_node,
    remarks_on,
)
from onnxfold.passes.op_kinds import is_dequantize, is_quantize, op_key
from onnxfold.passes.provenance import node_name
from onnxfold.passes.remark import Remark


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
    index, groups = remarks_by_node(remarks), float_groups(model)
    if qdq_form:
        groups = [group for group in groups if not _is_in_qdq_form(group.nodes, index)]
    return tuple(_island(group, index) for group in groups)


def _is_in_qdq_form(group: Sequence[ir.Node], index: RemarkIndex) -> bool:
    """Whether the group is Q/DQ about operators as the fold wants it, and it refused none of it."""
    if len(group) == 1 or any(remarks_on(node, index) for node in group):
        return False
    enters, leaves = (any(map(test, group)) for test in (is_dequantize, is_quantize))
    return all(map(is_folded, group)) or (enters and leaves)


def _island(group: FloatGroup, index: RemarkIndex) -> Island:
    reasons, cause = explain_group(group, index)
    ops = Counter(map(op_key, group.nodes))
    return Island(
        cause,
        reasons,
        tuple(map(node_name, group.nodes)),
        dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        len(group.float_nodes),
        group.reads,
        group.writes,
    )
