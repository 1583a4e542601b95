"""What the gradients of RNN, GRU and LSTM share: directions, layouts, lengths, activations.

All steps are looked at in one matrix: its T N rows are the steps of all samples, in the order in
which the direction visits them. Hidden states before each step are the outputs of the step before,
so gates need no recurrence to be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.bodies import BodyBuilder
from onnxfold.passes.grad.builder import Builder, dtype_of
from onnxfold.passes.grad.vjp import Call

_PARAMETERS = {
    "Affine": (1.0, 0.0),
    "Elu": (1.0,),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01,),
    "ScaledTanh": (1.0, 1.0),
    "ThresholdedRelu": (1.0,),
}
"""Defaults of alpha and beta, for those activations that have them."""


@dataclass(frozen=True)
class Activation:
    """An activation function of a gate, with its numbers."""

    name: str
    numbers: tuple[float, ...] = ()

    def apply(self, x: ir.Value, b: Builder) -> ir.Value:
        """Its value at ``x``."""
        if self.name == "Affine":
            return b.add(b.scale(x, self.numbers[0]), b.number(self.numbers[1], x))
        if self.name == "ScaledTanh":
            return b.scale(b.op("Tanh", b.scale(x, self.numbers[1])), self.numbers[0])
        if self.name == "HardSigmoid":
            return b.op("HardSigmoid", x, alpha=self.numbers[0], beta=self.numbers[1])
        if self.numbers:
            return b.op(self.name, x, alpha=self.numbers[0])
        return b.op(self.name, x)

    def with_slope(self, x: ir.Value, call: Call, b: Builder) -> tuple[ir.Value, ir.Value]:
        """Its value at ``x`` and its derivative there."""
        y = self.apply(x, b)
        if self.name == "Sigmoid":
            return y, b.sub(y, b.mul(y, y))
        if self.name == "Tanh":
            return y, b.sub(b.number(1.0, y), b.mul(y, y))
        (slope,) = call.differentiator.gradients(b, {y: b.full_like(y, 1.0)}, [x], until=[x])
        return y, b.zeros_like(x) if slope is None else slope


@dataclass(frozen=True)
class Direction:
    """One direction of a layer, in the order in which it visits the steps.

    Attributes:
        number: Which of the layer's it is.
        reverse: Whether it goes from the last step to the first.
        x: The input, [T, N, I].
        rows: The same as a matrix, [T N, I].
        w: The weights of the input, [G H, I].
        r: The weights of the hidden state, [G H, H].
        biases: Those of the input and those of the hidden state, each [G H]; None where absent.
        before: The hidden states before each step, [T N, H].
        d_y: The gradient of the outputs, [T, N, H]; None where none flows back.
        d_h: The gradient of the last hidden state, [N, H]; zeros where none flows back.
        valid: Whether a step is within the length of its sample, [T, N, 1]; None where all are.
        activations: The functions of the gates.
    """

    number: int
    reverse: bool
    x: ir.Value
    rows: ir.Value
    w: ir.Value
    r: ir.Value
    biases: tuple[ir.Value, ir.Value] | None
    before: ir.Value
    d_y: ir.Value | None
    d_h: ir.Value
    valid: ir.Value | None
    activations: Sequence[Activation]


class Layer:
    """An RNN, GRU or LSTM node whose gradient is wanted.

    Attributes:
        call: The node.
        b: Writes.
        gates: How many gates it has.
    """

    def __init__(self, call: Call, b: Builder, gates: int, defaults: Sequence[str]) -> None:
        self.call, self.b, self.gates = call, b, gates
        if "clip" in call.node.attributes:
            raise call.refusal("it clips its gates")
        if call.int("layout", 0):
            raise call.refusal("layout 1, which onnxruntime does not run; transpose around it")
        self._defaults = defaults

    @property
    def x(self) -> ir.Value:
        """The input, [T, N, I]."""
        return self.call.x(0)

    @cached_property
    def hidden(self) -> int:
        """The number of hidden units, H."""
        given = self.call.int("hidden_size", 0)
        shape = self.call.x(2).shape
        known = given or (None if shape is None else shape[2])
        if not isinstance(known, int):
            raise self.call.refusal("its hidden_size is not known")
        return known

    @cached_property
    def count(self) -> int:
        """The number of directions."""
        return 2 if self.call.string("direction", "forward") == "bidirectional" else 1

    @cached_property
    def lengths(self) -> ir.Value | None:
        """The lengths of the samples, [N], int32; None where all are T."""
        return self.call.optional(4)

    def directions(self) -> list[Direction]:
        """Both directions, or the only one."""
        return [self._direction(number) for number in range(self.count)]

    def state(self, index: int, number: int) -> ir.Value:
        """An initial state of a direction, [N, H]; zeros where input ``index`` is absent."""
        value = self.call.optional(index)
        return self.zeros(self.hidden) if value is None else self.part(value, number)

    def state_gradient(self, output: int, number: int) -> ir.Value:
        """The gradient of a last state of a direction, [N, H]."""
        gradients = self.call.gradients
        found = gradients[output] if output < len(gradients) else None
        return self.zeros(self.hidden) if found is None else self.part(found, number)

    def part(self, value: ir.Value, number: int, axis: int = 0) -> ir.Value:
        """What belongs to one direction, without the axis that tells directions apart."""
        if self.count == 1:
            return self.b.op("Squeeze", value, self.b.ints(axis))
        return self.b.op("Gather", value, self.b.constant(np.array(number)), axis=axis)

    def join(self, parts: Sequence[ir.Value]) -> ir.Value:
        """The directions side by side: what ``part`` takes apart."""
        raised = [self.b.unsqueeze(each, 0) for each in parts]
        return raised[0] if self.count == 1 else self.b.op("Concat", *raised, axis=0)

    def stacked(self, rows: ir.Value) -> ir.Value:
        """A matrix of all steps, [T N, K], as [T, N, K]."""
        result = self.b.op("Reshape", rows, self._target)
        steps = [None, None] if self.x.shape is None else list(self.x.shape[:2])
        result.shape = ir.Shape([*steps, None if rows.shape is None else rows.shape[1]])
        return result

    def rows(self, value: ir.Value) -> ir.Value:
        """[T, N, K] as a matrix, [T N, K]."""
        return self.b.op("Flatten", value, axis=2)

    def before(self, first: ir.Value, outputs: ir.Value) -> ir.Value:
        """What was there before each step, [T, N, H], from what is there after."""
        b = self.b
        earlier = b.op("Slice", outputs, b.ints(0), b.ints(-1), b.ints(0))
        return b.op("Concat", b.unsqueeze(first, 0), earlier, axis=0, like=outputs)

    def zeros(self, width: int) -> ir.Value:
        """Zeros [N, width]."""
        b, batch = self.b, None if self.x.shape is None else self.x.shape[1]
        dtype = dtype_of(self.x)
        if isinstance(batch, int):
            return b.constant(np.zeros((batch, width), dtype.numpy()))
        shape = b.op("Concat", b.dim(self.x, 1), b.ints(width), axis=0)
        zero = ir.tensor(np.zeros(1, dtype.numpy()))
        result = b.op("ConstantOfShape", shape, value=zero)
        result.shape = ir.Shape([batch, width])
        return result

    def where_valid(self, direction: Direction, value: ir.Value, otherwise: float) -> ir.Value:
        """``value``, [T, N, K], but a number at the steps beyond the length of a sample."""
        if direction.valid is None:
            return value
        number = self.b.number(otherwise, value)
        return self.b.op("Where", direction.valid, value, number, like=value)

    def given(self, direction: Direction) -> list[ir.Value]:
        """What a step backward reads besides factors: dY, and where a state is held; if any."""
        found: list[ir.Value] = []
        if direction.d_y is not None:
            found.append(self.where_valid(direction, direction.d_y, 0.0))
        if direction.valid is not None:
            outside = self.b.op("Not", direction.valid)
            found.append(self.b.cast(outside, dtype_of(self.x)))
        return found

    @staticmethod
    def with_output_gradient(
        body: BodyBuilder, direction: Direction, hidden: ir.Value, given: Sequence[ir.Value]
    ) -> ir.Value:
        """The gradient of a hidden state, with what flows into it as an output."""
        return hidden if direction.d_y is None else body.add(hidden, given[0])

    @staticmethod
    def held(
        body: BodyBuilder,
        direction: Direction,
        earlier: ir.Value,
        hidden: ir.Value,
        given: Sequence[ir.Value],
    ) -> ir.Value:
        """The gradient of the state before a step that keeps the state beyond a length."""
        if direction.valid is None:
            return earlier
        return body.add(earlier, body.mul(hidden, given[-1]))

    def d_x(self, parts: Sequence[ir.Value], directions: Sequence[Direction]) -> ir.Value:
        """The gradient of the input from those of the gates, [T N, G H], of each direction."""
        b = self.b
        each = [
            self._turned(self.stacked(b.op("Gemm", gates, direction.w)), direction.reverse)
            for gates, direction in zip(parts, directions, strict=True)
        ]
        return each[0] if len(each) == 1 else b.add(*each)

    def of_parameters(
        self, gates: Sequence[ir.Value], directions: Sequence[Direction]
    ) -> list[ir.Value | None]:
        """Gradients of input, weights and biases, where all drive the same gates.

        Args:
            gates: The gradients of the gates of each direction, [T N, G H].
            directions: The directions.

        Returns:
            Those of the first four inputs of the node; None where none is needed.
        """
        b, needed = self.b, [*self.call.needed, *[False] * 4]
        pairs = list(zip(gates, directions, strict=True))
        found: list[ir.Value | None] = [None] * 4
        if needed[0]:
            found[0] = self.d_x(gates, directions)
        if needed[1]:
            found[1] = self.join([b.op("Gemm", g, d.rows, transA=1) for g, d in pairs])
        if needed[2]:
            found[2] = self.join([b.op("Gemm", g, d.before, transA=1) for g, d in pairs])
        if needed[3]:
            sums = [b.reduce_sum(g, 0, keepdims=False) for g in gates]
            found[3] = self.join([b.op("Concat", each, each, axis=0) for each in sums])
        return found

    def _direction(self, number: int) -> Direction:
        call, b = self.call, self.b
        reverse = number == 1 or call.string("direction", "forward") == "reverse"
        x = self._turned(self.x, reverse)
        y = self._outputs(b.output_of(call.node, 0), number, reverse)
        before = self.before(self.state(5, number), y)
        d_y = call.gradients[0]
        if d_y is not None:
            d_y = self._outputs(d_y, number, reverse)
        bias = call.optional(3)
        biases = None
        if bias is not None:
            halves = b.nodes("Split", [self.part(bias, number)], 2, axis=0, num_outputs=2)
            biases = halves[0], halves[1]
        return Direction(
            number,
            reverse,
            x,
            self.rows(x),
            self.part(call.x(1), number),
            self.part(call.x(2), number),
            biases,
            self.rows(before),
            d_y,
            self.state_gradient(1, number),
            self._valid,
            self._activations(number),
        )

    def _turned(self, value: ir.Value, reverse: bool) -> ir.Value:
        """[T, N, K] in the order in which a direction visits the steps, or back."""
        if not reverse:
            return value
        b = self.b
        if self.lengths is not None:
            lengths = b.cast(self.lengths, ir.DataType.INT64)
            return b.op("ReverseSequence", value, lengths, time_axis=0, batch_axis=1, like=value)
        ends = b.ints(-1), b.ints(np.iinfo(np.int64).min), b.ints(0), b.ints(-1)
        return b.op("Slice", value, *ends, like=value)

    def _outputs(self, value: ir.Value, number: int, reverse: bool) -> ir.Value:
        """[T, N, H] of a direction, from Y or its gradient."""
        return self._turned(self.part(value, number, 1), reverse)

    @cached_property
    def _target(self) -> ir.Value:
        dims = [None] if self.x.shape is None else list(self.x.shape[:2])
        known = [dim for dim in dims if isinstance(dim, int)]
        if len(known) == 2:
            return self.b.ints(*known, -1)
        steps = self.b.op("Shape", self.x, start=0, end=2)
        return self.b.op("Concat", steps, self.b.ints(-1), axis=0)

    @cached_property
    def _valid(self) -> ir.Value | None:
        if self.lengths is None:
            return None
        b = self.b
        zero, one = (b.constant(np.array(each, np.int64)) for each in (0, 1))
        steps = b.op("Range", zero, b.op("Squeeze", b.dim(self.x, 0)), one)
        lengths = b.cast(self.lengths, ir.DataType.INT64)
        return b.op("Less", b.unsqueeze(steps, 1, 2), b.unsqueeze(lengths, 1))

    def _activations(self, number: int) -> list[Activation]:
        attribute = self.call.node.attributes.get("activations")
        names = list(self._defaults) * self.count
        if attribute is not None:
            names = list(attribute.as_strings())
        alphas = list(self._numbers("activation_alpha"))
        betas = list(self._numbers("activation_beta"))
        found = [self._activation(name, alphas, betas) for name in names]
        each = len(self._defaults)
        return found[number * each : (number + 1) * each]

    def _numbers(self, name: str) -> Sequence[float]:
        attribute = self.call.node.attributes.get(name)
        return () if attribute is None else attribute.as_floats()

    def _activation(self, name: str, alphas: list[float], betas: list[float]) -> Activation:
        """The next activation; those that have numbers take them from the lists in turn."""
        defaults = _PARAMETERS.get(name, ())
        numbers = [
            given.pop(0) if given else default
            for default, given in zip(defaults, (alphas, betas), strict=False)
        ]
        return Activation(name, tuple(numbers))
