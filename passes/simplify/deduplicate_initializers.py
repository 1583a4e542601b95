"""deduplicate-initializers: keep one of several equal constants."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Let all readers of initializers with equal type, shape and bytes read the first of them.

    Within one graph. Initializers that are graph inputs (a caller may override them) or graph
    outputs, and strings, are left alone.
    """

    name: ClassVar[str] = "deduplicate-initializers"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Share the initializers of every graph."""
        for graph in all_graphs(model):
            for candidates in _same_type(graph):
                _share(candidates, rewriter)


def _same_type(graph: ir.Graph) -> list[list[ir.Value]]:
    """Initializers that could be equal; only their bytes need to be read."""
    groups: defaultdict[tuple[ir.DataType, tuple[int, ...]], list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype != ir.DataType.STRING:
            groups[tensor.dtype, tuple(tensor.shape.numpy())].append(value)
    return [group for group in groups.values() if len(group) > 1]


def _share(candidates: list[ir.Value], rewriter: Rewriter) -> None:
    first: dict[bytes, ir.Value] = {}
    for value in candidates:
        kept = first.setdefault(_digest(value), value)
        if kept is value:
            continue
        with rewriter.step("share-initializer"):
            rewriter.replace_value(value, kept)
            rewriter.remove_initializer(value)


def _digest(value: ir.Value) -> bytes:
    assert value.const_value is not None
    array = np.ascontiguousarray(value.const_value.numpy())
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()
