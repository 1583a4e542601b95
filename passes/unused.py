"""Constants that nothing reads any more."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count


def drop_unused(value: ir.Value | None, rewriter: Rewriter) -> None:
    """Remove a constant that nothing reads, and the nodes that led to it; inside a step."""
    while value is not None and not use_count(value) and not value.is_graph_output():
        producer = value.producer()
        if producer is None:
            if value.is_initializer() and not value.is_graph_input():
                rewriter.remove_initializer(value)
            return
        value = producer.inputs[0] if producer.inputs else None
        rewriter.erase(producer)
