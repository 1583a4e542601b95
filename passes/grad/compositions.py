"""Differentiates an operator through its own forward pass, written again in simpler operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients


def gradients_through(call: Call, b: Builder, outputs: Sequence[ir.Value | None]) -> Gradients:
    """The gradients of the node's inputs, through other nodes that compute its outputs from them.

    Args:
        call: The node.
        b: Wrote the other nodes.
        outputs: What they compute for each output; None where that has no gradient.

    Returns:
        One gradient an input.
    """
    seeds = {
        output: gradient
        for output, gradient in zip(outputs, call.gradients, strict=False)
        if output is not None and gradient is not None
    }
    inputs = [value for value in call.node.inputs if value is not None]
    pairs = zip(call.node.inputs, call.needed, strict=True)
    wanted = [value for value, need in pairs if value is not None and need]
    found = call.differentiator.gradients(b, seeds, wanted, until=inputs)
    by_value = dict(zip(wanted, found, strict=True))
    # An input that is read twice has one gradient, which holds both parts.
    return [None if value is None else by_value.pop(value, None) for value in call.node.inputs]
