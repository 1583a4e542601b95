"""One step of a loop, backward: the step once more, and what its gradients become.

The body is written with all that it reads as inputs, and the rules of Scan and Loop say where those
come from: the gradients of the states that are carried, sums of the gradients of captured values,
the states before the step, the elements, and the gradients of the scanned outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.grad.bodies import BodyBuilder
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.carried import carried_states
from onnxfold.passes.grad.vjp import Call, Gradients


@dataclass(frozen=True)
class Recurrence:
    """A Scan or a Loop whose gradient is wanted.

    Attributes:
        call: The node.
        body: The body of one step.
        count: How many states there are.
        first: The position of the first state among the inputs of node and body: 0 for Scan, 2 for
            Loop, whose body also gives one output before them.
        turned: The positions of scanned outputs that are not stacked in order along axis 0.
    """

    call: Call
    body: ir.Graph
    count: int
    first: int = 0
    turned: frozenset[int] = frozenset()

    @property
    def states(self) -> list[tuple[ir.Value, ir.Value]]:
        """What the body reads, and what it gives for the next step, of each state."""
        before = self.body.inputs[self.first : self.first + self.count]
        return list(zip(before, self.body.outputs[self._offset :], strict=False))

    @property
    def elements(self) -> Sequence[ir.Value]:
        """What the body reads of tensors that are scanned."""
        return self.body.inputs[self.first + self.count :]

    def initial(self, index: int) -> ir.Value:
        """A state before the first step."""
        return self.call.x(self.first + index)

    def scanned_gradients(self) -> dict[int, ir.Value]:
        """By position among the scanned outputs, the gradients that are given."""
        found = enumerate(self.call.gradients[self.count :])
        return {index: gradient for index, gradient in found if gradient is not None}

    def scanned(self, index: int) -> int:
        """The position among the outputs of the body of a scanned output."""
        return self._offset + self.count + index

    def state_output(self, index: int) -> int:
        """The position among the outputs of the body of a state."""
        return self._offset + index

    def carried(self) -> list[int]:
        """The positions of the states whose gradients are carried from step to step."""
        call, body = self.call, self.body
        varied = [v for v, need in zip(body.inputs, call.needed, strict=False) if need]
        scanned = [body.outputs[self.scanned(index)] for index in self.scanned_gradients()]
        final = zip(self.states, call.gradients, strict=False)
        used = [pair[1] for pair, gradient in final if gradient is not None]
        return carried_states(body, self.states, [*varied, *call.captured], [*used, *scanned])

    def save(self, b: Builder, index: int) -> ir.Value:
        """Let the node give a state as it is before every step, stacked along axis 0."""
        return self.save_input(b, self.first + index, self.initial(index))

    def save_input(self, b: Builder, index: int, like: ir.Value) -> ir.Value:
        """Let the node give an input of the body, which is like a value, stacked along axis 0."""
        value, outputs = self.body.inputs[index], self.body.outputs
        places = range(self.scanned(0), len(outputs))
        plain = (place for i, place in enumerate(places) if i not in self.turned)
        place = next((place for place in plain if _copies(outputs[place], value)), None)
        if place is None:
            name = f"{b.prefix}_saved"
            copy = b.rewriter.insert(
                self.body[0], "Identity", [value], name=name, dtype=like.dtype, shape=like.shape
            )
            place = len(outputs)
            outputs.append(copy)
        stacked = b.rewriter.ask_for_output(self.call.node, place - self._offset)
        shape = None if like.shape is None else ir.Shape([None, *like.shape])
        b.rewriter.set_type(stacked, like.dtype, shape)
        return stacked

    @property
    def _offset(self) -> int:
        return 1 if self.first else 0


@dataclass(frozen=True)
class BackwardStep:
    """The body of a backward loop.

    Its outputs are the gradients of the carried states, the sums for captured values, and the
    gradients of elements; after the leading inputs come the first two of those.

    Attributes:
        builder: What wrote the body.
        leading: The first inputs, as the body forward has them before its states.
        carried: The positions of the states whose gradients are carried.
        saved: By position, the input that is a state before the step; where it is read.
        elements: By position, the input that is an element; where it is read.
        scanned: By position, the input that is the gradient of a scanned output.
        wanted: The positions of the elements whose gradients the body gives.
    """

    builder: BodyBuilder
    leading: Sequence[ir.Value]
    carried: Sequence[int]
    saved: Mapping[int, ir.Value]
    elements: Mapping[int, ir.Value]
    scanned: Mapping[int, ir.Value]
    wanted: Sequence[int]

    @property
    def is_empty(self) -> bool:
        """Whether no gradient flows through the loop."""
        return not self.builder.graph.outputs

    def first_gradients(self, loop: Recurrence, b: Builder) -> list[ir.Value]:
        """What the gradients of the carried states, and the sums, begin with."""
        finals = [
            loop.call.gradients[index] or b.zeros_like(loop.initial(index))
            for index in self.carried
        ]
        return [*finals, *(b.zeros_like(value) for value in loop.call.captured)]

    def hand_over(self, loop: Recurrence, outputs: Sequence[ir.Value], b: Builder) -> Gradients:
        """The gradients of the loop's inputs, from the outputs of the backward loop.

        A state that is not carried goes through unchanged where it has a gradient.
        """
        call, found = loop.call, iter(outputs)
        gradients: list[ir.Value | None] = [None] * len(call.node.inputs)
        for index in self.carried:
            gradients[loop.first + index] = next(found)
        for value in call.captured:
            total = next(found)
            b.assume_like(total, value)
            call.flow(value, total)
        for index in self.wanted:
            gradients[loop.first + loop.count + index] = next(found)
        return gradients


def backward_step(loop: Recurrence, b: Builder) -> BackwardStep:
    """Write the body of the loop that carries gradients back.

    Args:
        loop: The loop forward.
        b: Writes in front of the node that will hold the body.
    """
    call, step = loop.call, BodyBuilder(b, f"{b.prefix}_step")
    if not len(loop.body):
        raise call.refusal("its body is empty")
    leading = [step.input(value, "given") for value in loop.body.inputs[: loop.first]]
    carried = loop.carried()
    before = [state[0] for state in loop.states]
    d_states = {i: step.input(before[i], "state", fallback=loop.initial(i)) for i in carried}
    sums = [step.input(value, "sum") for value in call.captured]
    saved = [step.input(v, "saved", fallback=loop.initial(i)) for i, v in enumerate(before)]
    elements = [step.input(value, "element") for value in loop.elements]
    outputs = loop.body.outputs
    d_scanned = {
        i: step.input(outputs[loop.scanned(i)], "scanned") for i in loop.scanned_gradients()
    }
    values = dict(zip(loop.body.inputs, [*leading, *saved, *elements], strict=True))
    copies = step.copy(loop.body, values)
    _refuse_growing_states(loop, saved, copies)
    seeds = {copies[loop.state_output(i)]: gradient for i, gradient in d_states.items()}
    seeds.update((copies[loop.scanned(i)], gradient) for i, gradient in d_scanned.items())
    needed = call.needed[loop.first + loop.count :]
    wanted = [index for index, need in enumerate(needed) if need]
    targets = [*(saved[i] for i in carried), *(elements[i] for i in wanted)]
    found = call.differentiator.gradients(step, seeds, [*targets, *call.captured])
    parts = [part or step.zeros_like(x) for part, x in zip(found, targets, strict=False)]
    pairs = zip(sums, found[len(targets) :], strict=True)
    added = [total if part is None else step.add(total, part) for total, part in pairs]
    step.finish([*parts[: len(carried)], *added, *parts[len(carried) :]])
    return BackwardStep(
        step,
        leading,
        carried,
        _kept(step, dict(enumerate(saved))),
        _kept(step, dict(enumerate(elements))),
        _kept(step, d_scanned),
        wanted,
    )


def _refuse_growing_states(
    loop: Recurrence, before: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> None:
    """A state can be stacked step by step only where it keeps its shape."""
    for index, state in enumerate(before):
        shapes = state.shape, outputs[loop.state_output(index)].shape
        if not _may_be_equal(*shapes):
            name = loop.initial(index).name
            raise loop.call.refusal(f"its state '{name}' changes its shape from step to step")


def _may_be_equal(left: ir.Shape | None, right: ir.Shape | None) -> bool:
    if left is None or right is None:
        return True
    pairs = zip(left, right, strict=False)
    known = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
    return len(left) == len(right) and all(a == b for a, b in known)


def _kept(step: BodyBuilder, inputs: Mapping[int, ir.Value]) -> dict[int, ir.Value]:
    kept = step.drop_unused(list(inputs.values()))
    return {i: value for (i, value), keep in zip(inputs.items(), kept, strict=True) if keep}


def _copies(output: ir.Value, value: ir.Value) -> bool:
    producer = output.producer()
    return producer is not None and producer.op_type == "Identity" and producer.inputs[0] is value
