"""The gradient of Loop: a Loop that runs as often, from the last step to the first.

The Loop forward is given one more output for every state that its steps, repeated, read; how many
those are says how often it ran. A state must keep its shape from step to step.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.backward_step import BackwardStep, Recurrence, backward_step
from onnxfold.passes.grad.bodies import BodyBuilder, body_of
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_STATES = 2


@vjp("Loop")
def loop(call: Call, b: Builder) -> Gradients:
    """Carry the gradients of the states back from step to step; sum those of captured values."""
    body = body_of(call.node)
    forward = Recurrence(call, body, len(body.inputs) - _STATES, _STATES)
    _refuse_other_states(forward)
    step = backward_step(forward, b)
    if step.is_empty:
        return ()
    saved = {index: forward.save(b, index) for index in step.saved}
    steps = _step_count(forward, list(saved.values()), b)
    last = b.sub(steps, b.op("Squeeze", b.ints(1)))
    scanned = forward.scanned_gradients()
    stacked = {step.saved[index]: saved[index] for index in saved}
    stacked |= {step.scanned[index]: scanned[index] for index in step.scanned}
    _read_by_number(step, last, stacked)
    graph = step.builder.graph
    outputs = b.nodes(
        "Loop",
        [steps, None, *step.first_gradients(forward, b)],
        len(graph.outputs) - 1,
        body=ir.AttrGraph("body", graph),
    )
    return step.hand_over(forward, outputs, b)


def _refuse_other_states(forward: Recurrence) -> None:
    """Only tensors can be stacked step by step."""
    for index in range(forward.count):
        initial = forward.initial(index)
        if not isinstance(initial.type, ir.TensorType | None):
            raise forward.call.refusal(f"its state '{initial.name}' is no tensor")


def _step_count(forward: Recurrence, saved: list[ir.Value], b: Builder) -> ir.Value:
    """How many steps the loop ran: a scalar."""
    call = forward.call
    given = [output for output in call.node.outputs[forward.count :] if output.name]
    stacked = [*saved, *given]
    if not stacked:
        stacked = [forward.save_input(b, 0, b.op("Squeeze", b.ints(0)))]
    return b.op("Squeeze", b.op("Shape", stacked[0], start=0, end=1))


def _read_by_number(step: BackwardStep, last: ir.Value, stacked: dict[ir.Value, ir.Value]) -> None:
    """Let the body read what is stacked by the number of the step, counted down from ``last``."""
    b: BodyBuilder = step.builder
    number, goes_on = step.leading
    b.anchor = b.graph[0]
    downward = b.sub(last, number)
    b.rewriter.replace_value(number, downward)
    for value, source in stacked.items():
        b.rewriter.replace_value(value, b.op("Gather", source, downward, axis=0, like=value))
        b.graph.inputs.remove(value)
    b.graph.outputs.insert(0, b.op("Identity", goes_on, like=goes_on))
