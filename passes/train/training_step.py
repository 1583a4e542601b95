"""Adds the inputs, the arithmetic and the outputs of one step of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.train.arithmetic import Arithmetic, dtype_of
from onnxfold.passes.train.manifest import KEY, Manifest, State
from onnxfold.passes.train.trainable import Trainable, gradient_outputs
from onnxfold.passes.train.updates import Moving, Update

_GUARD = 1e-6
"""What torch's clip_grad_norm_ adds to a norm before it divides by it."""


@dataclass(frozen=True)
class StepOptions:
    """What a step is like, whatever optimizer makes it.

    Attributes:
        kind: The optimizer's name, for the manifest.
        loss: Name of the output that is to fall.
        learning_rate: The default of the input of that name.
        clip_norm: The largest norm that all gradients together may have; None for any.
    """

    kind: str
    loss: str
    learning_rate: float
    clip_norm: float | None


def add_step(
    rewriter: Rewriter, update: Update, tensors: Sequence[Trainable], options: StepOptions
) -> None:
    """Add one step behind everything else, and write the manifest; inside a step of the rewriter.

    Args:
        rewriter: The gate.
        update: The optimizer.
        tensors: What it moves, each with its gradient.
        options: The rest.
    """
    gradients = tuple(value.name or "" for value in gradient_outputs(rewriter.model).values())
    inputs = _Inputs(rewriter)
    slots = [inputs.add_tensor(each, update) for each in tensors]
    done = inputs.add("state_step", np.array(0, np.int64))
    rate = inputs.add("learning_rate", np.array(options.learning_rate, np.float32))
    a = Arithmetic(rewriter, rewriter.model.graph[-1], after=True)
    step = a.call("Add", done, 1, name="step")
    scalars = update.scalars(a, rate, step)
    clipped = _clipped(a, tensors, options.clip_norm)
    states: list[State] = []
    for each, gradient, held in zip(tensors, clipped, slots, strict=True):
        moving = Moving(each.name, each.value, gradient, held, each.decay)
        dtype = dtype_of([each.value])
        here = {key: a.cast(scalar, dtype) for key, scalar in scalars.items()}
        moved, new = update.move(a, moving, here)
        states.append(_state(rewriter, each.value, moved, each.name))
        states += [_state(rewriter, held[key], new[key], each.name, key) for key in held]
    counter = _state(rewriter, done, step)
    manifest = Manifest(
        options.kind, options.loss, rate.name or "", counter, tuple(states), gradients
    )
    rewriter.set_metadata(KEY, manifest.to_text())


class _Inputs:
    """Makes initializers inputs with a default."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter

    def add(self, name: str, default: Array) -> ir.Value:
        """A new input."""
        graph = self._rewriter.model.graph
        value = self._rewriter.add_initializer(graph, default, name=name)
        self._rewriter.let_override(value)
        return value

    def add_tensor(self, tensor: Trainable, update: Update) -> dict[str, ir.Value]:
        """Make a weight an input, and add what the optimizer keeps of it, by slot."""
        # A weight that is an input already keeps its name: callers know it.
        if not tensor.value.is_graph_input():
            self._rewriter.rename(tensor.value, f"state_{tensor.name}")
            self._rewriter.let_override(tensor.value)
        dtype = dtype_of([tensor.value]).numpy()
        return {
            slot: self.add(f"state_{tensor.name}_{slot}", np.full(tensor.shape, first, dtype))
            for slot, first in update.slots.items()
        }


def _state(
    rewriter: Rewriter, old: ir.Value, new: ir.Value, tensor: str = "", slot: str = ""
) -> State:
    base = "_".join(part for part in (tensor, slot) if part) or "step"
    output = rewriter.add_output(new, f"new_state_{base}")
    rewriter.set_type(output, old.dtype, old.shape)
    return State(old.name or "", output.name or "", tensor, slot)


def _clipped(a: Arithmetic, tensors: Sequence[Trainable], limit: float | None) -> list[ir.Value]:
    """The gradients, all scaled by one factor where their common norm exceeds ``limit``."""
    gradients = [each.gradient for each in tensors]
    if limit is None:
        return gradients
    dtypes = {dtype_of([each]) for each in gradients}
    widest = ir.DataType.DOUBLE if ir.DataType.DOUBLE in dtypes else ir.DataType.FLOAT
    squares = [
        a.call(
            "ReduceSumSquare",
            a.cast(each.gradient, widest),
            name=f"{each.name}_gradient_square_norm",
            attributes={"keepdims": 0},
            shape=ir.Shape(()),
        )
        for each in tensors
    ]
    norm = a.call("Sqrt", a.call("Sum", *squares, name="square_norm"), name="gradient_norm")
    guarded = a.call("Add", norm, _GUARD, name="guarded_norm")
    share = a.call("Min", a.call("Div", limit, guarded, name="clip_ratio"), 1.0, name="clip")
    return [
        a.call(
            "Mul",
            each.gradient,
            a.cast(share, dtype_of([each.gradient])),
            name=f"{each.name}_clipped_gradient",
        )
        for each in tensors
    ]
