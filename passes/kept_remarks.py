"""What a fold said of the nodes it left in float, kept in the model for a later explanation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable

import onnx_ir as ir

from onnxfold.passes.provenance import node_name, original_names
from onnxfold.passes.remark import Remark
from onnxfold.passes.walk import all_nodes

KEY = "onnxfold.remarks"
"""Metadata key: JSON, a list of [pass, operator, reason, advice]."""

_AS_IT_CAME = "fold the model that it was made of again, for target standard"


def keep_remarks(model: ir.Model, remarks: Iterable[Remark], before: Collection[ir.Node]) -> None:
    """Write into each node what was said of it, or of those that it was made of.

    Args:
        model: The model, rewritten.
        remarks: What was said.
        before: The nodes that were there already: what an earlier fold said of them stays.
    """
    said: dict[str, list[Remark]] = defaultdict(list)
    for remark in dict.fromkeys(remarks):
        said[remark.node].append(remark)
    for node in all_nodes(model):
        if node in before and KEY in node.metadata_props:
            continue
        names = dict.fromkeys([node_name(node), *original_names(node)])
        found = [remark for name in names for remark in said.get(name, ())]
        node.metadata_props.pop(KEY, None)
        if found:
            rows = [[each.pass_name, each.op_type, each.reason, each.advice] for each in found]
            node.metadata_props[KEY] = json.dumps(rows)


def kept_remarks(node: ir.Node) -> list[Remark]:
    """What was said of ``node`` when it was made or left; nothing where that is not known."""
    text = node.metadata_props.get(KEY, "")
    try:
        rows: list[list[str]] = json.loads(text) if text else []
        found = [Remark(row[0], node_name(node), row[1], row[2], row[3]) for row in rows]
    except (IndexError, KeyError, TypeError, ValueError):  # written by another program
        return []
    return [
        Remark(each.pass_name, each.node, each.op_type, each.reason, each.advice or _AS_IT_CAME)
        if each.measured
        else each
        for each in found
    ]
