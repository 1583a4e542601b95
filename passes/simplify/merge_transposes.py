"""merge-transposes: one Transpose for several, a Reshape for one that moves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import axes_of
from onnxfold.passes.walk import use_count


@rule("merge-transposes", "Transpose")
def merge_transposes(node: ir.Node, rewriter: Rewriter) -> None:
    """Transpose of Transpose: one with the composed permutation."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or producer.op_type != "Transpose" or producer.domain:
        return
    rank = _rank(producer) or _rank(node)
    inner, outer = _permutation(producer, rank), _permutation(node, rank)
    if inner is None or outer is None:
        return
    merged = [inner[axis] for axis in outer]
    rewriter.add_source(producer)
    rewriter.set_input(node, 0, producer.inputs[0])
    rewriter.set_attribute(node, "perm", ir.AttrInt64s("perm", merged))
    if not use_count(producer.outputs[0]) and not producer.outputs[0].is_graph_output():
        rewriter.erase(producer)


@rule("transpose-to-reshape", "Transpose")
def transpose_to_reshape(node: ir.Node, rewriter: Rewriter) -> None:
    """Transpose that only moves dimensions of 1: Reshape, which copies nothing."""
    source = node.inputs[0]
    perm = _permutation(node, _rank(node))
    if source is None or source.shape is None or perm is None or perm == sorted(perm):
        return
    dims = source.shape
    moved = [axis for axis in perm if dims[axis] != 1]
    permuted = ir.Shape(dims[axis] for axis in perm)
    target = [dim if isinstance(dim, int) else -1 for dim in permuted]
    # Beside an empty dimension, -1 says nothing.
    if moved != sorted(moved) or target.count(-1) > 1 or 0 in target:
        return
    shape = rewriter.constant(node, np.array(target, dtype=np.int64), name="shape")
    output = node.outputs[0]
    reshaped = rewriter.insert(
        node,
        "Reshape",
        [source, shape],
        name=f"{output.name}_reshaped",
        dtype=output.dtype,
        shape=permuted,
    )
    rewriter.replace_node(node, [reshaped])


@rule("transpose-before-unsqueeze", "Transpose")
def transpose_before_unsqueeze(node: ir.Node, rewriter: Rewriter) -> None:
    """Transpose of Unsqueeze: the other way round, where it may meet another Transpose."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if source is None or producer is None or producer.op_type != "Unsqueeze" or producer.domain:
        return
    narrow, axes, perm = producer.inputs[0], axes_of(producer, "axes", 1), _permutation(node, None)
    if narrow is None or axes is None or len(axes) != 1 or perm is None or use_count(source) != 1:
        return
    if source.is_graph_output() or producer.graph is not node.graph:
        return
    added = axes[0] % len(perm)
    inner = [axis - (axis > added) for axis in perm if axis != added]
    name = f"{source.name}_transposed"
    transposed = rewriter.insert(
        node, "Transpose", [narrow], name=name, attributes={"perm": inner}, dtype=narrow.dtype
    )
    inputs, attributes = [transposed], {}
    if "axes" in producer.attributes:
        attributes = {"axes": [perm.index(added)]}
    else:
        inputs.append(rewriter.constant(node, np.array([perm.index(added)]), name=f"{name}_axis"))
    rewriter.add_source(producer)
    widened = rewriter.insert(
        node, "Unsqueeze", inputs, name=name, attributes=attributes, dtype=narrow.dtype
    )
    rewriter.replace_node(node, [widened])
    rewriter.erase(producer)


@dataclass(frozen=True)
class MergeTransposes(PatternPass):
    """Merge consecutive Transpose nodes; make those that only move dimensions of 1 a Reshape.

    To meet, a Transpose is moved ahead of an Unsqueeze.

    Pairs that cancel become a Transpose that ``remove-identity`` drops.
    """

    name: ClassVar[str] = "merge-transposes"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """Merging first: it sees more."""
        return (merge_transposes, transpose_to_reshape, transpose_before_unsqueeze)


def _permutation(node: ir.Node, rank: int | None) -> list[int] | None:
    """The permutation of ``node``: reversed axes where it gives none, if the rank is known."""
    perm = node.attributes.get("perm")
    if perm is not None:
        return None if perm.is_ref() else list(perm.as_ints())
    return None if rank is None else list(reversed(range(rank)))


def _rank(node: ir.Node) -> int | None:
    """The rank of what ``node`` transposes, from its permutation or from the shape."""
    perm = node.attributes.get("perm")
    if perm is not None:
        return None if perm.is_ref() else len(perm.as_ints())
    source = node.inputs[0]
    return None if source is None or source.shape is None else len(source.shape)
