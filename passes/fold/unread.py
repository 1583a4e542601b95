"""Erasing what nothing reads any more, once a rewrite has replaced it."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count


def erase_unread(value: ir.Value | None, rewriter: Rewriter) -> None:
    """Erase the subgraph that ends in ``value``, from its end, as far as nothing reads it.

    Args:
        value: What was read.
        rewriter: The gate; each node and each constant is a step of its own.
    """
    if value is None or use_count(value) or value.is_graph_output():
        return
    node = value.producer()
    if node is None:
        _erase_constant(value, rewriter)
        return
    if node.graph is None:
        return  # it went with another of its readers
    if any(use_count(each) or each.is_graph_output() for each in node.outputs):
        return
    inputs = dict.fromkeys(node.inputs)
    with rewriter.step("remove-replaced", node):
        rewriter.erase(node)
    for each in inputs:
        erase_unread(each, rewriter)


def _erase_constant(value: ir.Value, rewriter: Rewriter) -> None:
    if value.is_initializer() and not value.is_graph_input():
        with rewriter.step("remove-replaced-constant"):
            rewriter.remove_initializer(value)
