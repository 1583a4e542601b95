"""The gradient of If: an If on the same condition, whose branches repeat the branch before them."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.bodies import BodyBuilder, body_of
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("If")
def if_(call: Call, b: Builder) -> Gradients:
    """Give each captured value its gradient in the branch that is taken; zeros if it has none."""
    outputs = b.nodes(
        "If",
        [call.x(0)],
        len(call.captured),
        then_branch=_branch(call, "then_branch", b),
        else_branch=_branch(call, "else_branch", b),
    )
    for value, gradient in zip(call.captured, outputs, strict=True):
        b.assume_like(gradient, value)
        call.flow(value, gradient)
    return ()


def _branch(call: Call, name: str, b: Builder) -> ir.Attr:
    branch = BodyBuilder(b, f"{b.prefix}_{name}")
    copies = branch.copy(body_of(call.node, name), {})
    pairs = zip(copies, call.gradients, strict=True)
    seeds = {copy: gradient for copy, gradient in pairs if gradient is not None}
    found = call.differentiator.gradients(branch, seeds, call.captured)
    parts = zip(call.captured, found, strict=True)
    gradients = [part or branch.zeros_like(value) for value, part in parts]
    return ir.AttrGraph(name, branch.finish(gradients))
