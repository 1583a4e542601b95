"""The gradient of Scan: a Scan that visits the steps in reverse and repeats each before it.

The Scan forward is given one more output for every state that the repetition reads.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.backward_step import Recurrence, backward_step
from onnxfold.passes.grad.bodies import body_of
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_REVERSE = 1


@vjp("Scan")
def scan(call: Call, b: Builder) -> Gradients:
    """Carry the gradients of the states back from step to step; sum those of captured values."""
    body = body_of(call.node)
    given = call.int("num_scan_inputs", 1)
    count = len(body.inputs) - given
    results = len(body.outputs) - count
    axes_in = _numbers(call, "scan_input_axes", given)
    back_in = [1 - each for each in _numbers(call, "scan_input_directions", given)]
    axes_out = _numbers(call, "scan_output_axes", results)
    directions_out = _numbers(call, "scan_output_directions", results)
    turned = frozenset(i for i in range(results) if axes_out[i] or directions_out[i])
    loop = Recurrence(call, body, count, turned=turned)
    back_out = [1 - each for each in directions_out]
    step = backward_step(loop, b)
    if step.is_empty:
        return ()
    saved = [loop.save(b, index) for index in step.saved]
    _extend_outputs(call, b, len(body.outputs) - count)
    gradients = loop.scanned_gradients()
    scanned = [(value, 0, _REVERSE) for value in saved]
    scanned += [(call.x(count + i), axes_in[i], back_in[i]) for i in step.elements]
    scanned += [(gradients[i], axes_out[i], back_out[i]) for i in step.scanned]
    outputs = b.nodes(
        "Scan",
        [*step.first_gradients(loop, b), *(value for value, _, _ in scanned)],
        len(step.builder.graph.outputs),
        body=ir.AttrGraph("body", step.builder.graph),
        num_scan_inputs=len(scanned),
        scan_input_axes=[axis for _, axis, _ in scanned],
        scan_input_directions=[direction for _, _, direction in scanned],
        scan_output_axes=[axes_in[index] for index in step.wanted],
        scan_output_directions=[back_in[index] for index in step.wanted],
    )
    return step.hand_over(loop, outputs, b)


def _numbers(call: Call, name: str, count: int) -> list[int]:
    """An attribute with one number a scanned input or output: zeros by default."""
    return list(call.ints(name) or [0] * count)


def _extend_outputs(call: Call, b: Builder, count: int) -> None:
    """Let what the attributes say of scanned outputs cover those that were added."""
    for name in ("scan_output_axes", "scan_output_directions"):
        known = call.ints(name)
        if known:
            b.rewriter.set_attribute(call.node, name, [*known, *[0] * (count - len(known))])
