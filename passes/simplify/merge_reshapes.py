"""merge-reshapes: one Reshape for several that follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import reshape_target, static_shape
from onnxfold.passes.walk import use_count

_SHAPE_ONLY = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@rule("merge-reshapes", "Reshape")
def merge_reshapes(node: ir.Node, rewriter: Rewriter) -> None:
    """Reshape of what only changed the shape: Reshape of its input."""
    middle = node.inputs[0]
    producer = middle.producer() if middle is not None else None
    if middle is None or producer is None:
        return
    if producer.domain or producer.op_type not in _SHAPE_ONLY:
        return
    target = reshape_target(node)
    resolved = None if target is None else _without_copies(target, middle)
    if resolved is None:
        return
    rewriter.add_source(producer)
    if resolved != target:
        shape = rewriter.constant(node, np.array(resolved, dtype=np.int64), name="shape")
        rewriter.set_input(node, 1, shape)
    rewriter.set_input(node, 0, producer.inputs[0])
    if not use_count(middle) and not middle.is_graph_output():
        rewriter.erase(producer)


@rule("fix-shape", "Flatten", "Squeeze", "Unsqueeze")
def fix_shape(node: ir.Node, rewriter: Rewriter) -> None:
    """Flatten, Squeeze or Unsqueeze after another of them: Reshape, which then merges."""
    middle = node.inputs[0]
    producer = middle.producer() if middle is not None else None
    if middle is None or producer is None or producer.domain:
        return
    dims = static_shape(node.outputs[0])
    if producer.op_type not in _SHAPE_ONLY or dims is None or 0 in dims:
        return
    output = node.outputs[0]
    # A declared output shape is a claim; here it would become the computation.
    if output.is_graph_output():
        return
    shape = rewriter.constant(node, np.array(dims, dtype=np.int64), name="shape")
    reshaped = rewriter.insert(
        node, "Reshape", [middle, shape], name=f"{output.name}_reshaped", dtype=output.dtype
    )
    rewriter.replace_node(node, [reshaped])


@dataclass(frozen=True)
class MergeReshapes(PatternPass):
    """Merge consecutive Reshape, Flatten, Squeeze and Unsqueeze nodes into one Reshape."""

    name: ClassVar[str] = "merge-reshapes"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """Merging first: it needs no known shape."""
        return (merge_reshapes, fix_shape)


def _without_copies(target: Sequence[int], middle: ir.Value) -> tuple[int, ...] | None:
    """``target`` with each 0 replaced by the dimension of ``middle`` that it copies."""
    if 0 not in target:
        return tuple(target)
    if middle.shape is None or middle.is_graph_output():
        return None
    resolved: list[int] = []
    for index, dim in enumerate(target):
        copied = middle.shape[index] if dim == 0 and index < len(middle.shape) else dim
        if not isinstance(copied, int) or copied == 0:
            return None
        resolved.append(copied)
    return tuple(resolved)
