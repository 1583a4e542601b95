"""Learns which way to round each weight of one layer, by gradient descent on relaxed codes.

AdaRound: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.
Between the two codes around a weight lies h = clip(1.2 sigmoid(v) - 0.1, 0, 1); v is learned with
Adam, for the least squared error of the layer's activations, while a growing penalty
1 - |2 h - 1|^beta draws h to 0 or 1.

Products run on ONNX Runtime on one thread: BLAS would change bits with the number of its threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxfold.passes.constants import Array
from onnxfold.passes.quantize.rounding import Grid
from onnxfold.runtime.session import REFERENCE, Session

_STRETCH = 1.2
_SHIFT = -0.1
_WARM_UP = 0.2
"""Share of the steps in which nothing is drawn to whole codes yet."""
_SHARPEST, _SOFTEST = 20.0, 2.0
"""Beta at the end of the warm-up and at the end."""
_MOMENTUM, _SQUARES, _EPSILON = 0.9, 0.999, 1e-8
_CONFIG = replace(REFERENCE, name="learned rounding")
_CHUNK = 1024
_FARTHEST = 0.25
"""Where h starts for a code that is not next to its weight: that far from the code."""


@dataclass(frozen=True)
class RoundingOptions:
    """How long and how carefully codes are learned.

    Attributes:
        steps: Steps of Adam for each layer.
        batch: Rows of inputs in a step.
        rate: Adam's step size.
        penalty: Weight of what draws h to whole codes; the squared error of the codes that are
            there weighs 1 for each weight.
        rows: Rows of inputs taken from each feed, evenly spaced.
        numbers: Limit on the inputs kept of a layer, all rows together: 4 bytes each, twice.
        seed: Decides the order of rows.
    """

    steps: int = 500
    batch: int = 128
    rate: float = 0.2
    penalty: float = 5.0
    rows: int = 256
    numbers: int = 1 << 24
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Rows:
    """What a layer is fed, and what its activations ought to be.

    Attributes:
        inputs: float32 [groups, rows, inputs].
        targets: float32 [groups, rows, outputs], clipped as activations are.
    """

    inputs: Array
    targets: Array

    def at(self, chosen: Array) -> Rows:
        """Some of the rows."""
        return Rows(self.inputs[:, chosen], self.targets[:, chosen])


@dataclass(frozen=True, eq=False)
class RoundingTask:
    """A layer whose codes are to be learned.

    Attributes:
        weights: The real weights, float64 [groups, outputs, inputs].
        codes: The codes it has, of that shape, float64.
        grid: What codes stand for.
        bias: float64 [groups, outputs].
        low: What activations are clipped to from below, such as 0 behind a Relu; may be infinite.
        high: From above.
    """

    weights: Array
    codes: Array
    grid: Grid
    bias: Array
    low: float = -np.inf
    high: float = np.inf


def learn_codes(
    task: RoundingTask, training: Rows, held_out: Rows, options: RoundingOptions
) -> Array:
    """Codes of a layer, float64 [groups, outputs, inputs].

    An output channel keeps the codes it has unless the new ones have a smaller squared error on
    ``held_out``.
    """
    products = _Products(task)
    before = products.errors(task.codes, training)
    learned = _descend(task, products, training, before, options)
    better = products.errors(learned, held_out) < products.errors(task.codes, held_out)
    return np.where(better[:, :, np.newaxis], learned, task.codes)


def _descend(
    task: RoundingTask,
    products: _Products,
    training: Rows,
    before: Array,
    options: RoundingOptions,
) -> Array:
    """Learn all channels at once: their errors do not depend on each other."""
    base, start = _start(task)
    scale = _transposed(np.broadcast_to(task.grid.scale, task.weights.shape))
    zero = _transposed(np.broadcast_to(task.grid.zero, task.weights.shape))
    lowest = (_transposed(base) - zero) * scale
    # Each weight's share of the error that is there is 1, whatever the units of the layer.
    inputs = task.weights.shape[2]
    share = np.where(before > 0, inputs / np.maximum(before, 1e-30), 0.0)
    factor = (scale * share[:, np.newaxis]).astype(np.float32)
    state = _Adam.at(_inverse(_transposed(start)))
    warm = int(_WARM_UP * options.steps)
    batches = _batches(training, options)
    for step in range(options.steps):
        sigmoid = 1 / (1 + np.exp(-state.place))
        fraction = np.clip(_STRETCH * sigmoid + np.float32(_SHIFT), 0, 1)
        gradient = products.gradient(lowest + scale * fraction, *next(batches)) * factor
        if step >= warm:
            done = (step - warm) / max(options.steps - warm - 1, 1)
            beta = _SOFTEST + 0.5 * (_SHARPEST - _SOFTEST) * (1 + np.cos(done * np.pi))
            gradient += _pull(fraction, beta) * np.float32(options.penalty)
        inside = (fraction > 0) & (fraction < 1)
        gradient *= sigmoid * (1 - sigmoid) * np.float32(_STRETCH) * inside
        state.move(gradient, options.rate)
    up = _STRETCH / (1 + np.exp(-state.place)) + _SHIFT >= 0.5
    codes: Array = base + _transposed(up)
    return codes


def _start(task: RoundingTask) -> tuple[Array, Array]:
    """The lower of the two codes between which to choose, and where between them to start."""
    grid, codes = task.grid, task.codes
    exact = task.weights / grid.scale + grid.zero
    base = np.clip(np.where(codes > exact, codes - 1, codes), grid.low, grid.high - 1)
    fraction = np.clip(exact - base, 0, 1)
    far = np.abs(codes - exact) >= 1
    near_code = np.where(codes > base, 1 - _FARTHEST, _FARTHEST)
    return base, np.where(far, near_code, fraction)


def _inverse(fraction: Array) -> Array:
    """The v at which h is ``fraction``."""
    return -np.log(_STRETCH / (np.clip(fraction, 0.001, 0.999) - _SHIFT) - 1)


def _pull(fraction: Array, beta: float) -> Array:
    """The gradient of 1 - |2 h - 1|^beta."""
    signed = 2 * fraction - 1
    pull: Array = -2 * beta * np.sign(signed) * np.abs(signed) ** np.float32(beta - 1)
    return pull


def _transposed(array: Array) -> Array:
    """[groups, outputs, inputs] to [groups, inputs, outputs] and back, float32."""
    return np.ascontiguousarray(np.swapaxes(array, 1, 2), np.float32)


@dataclass
class _Adam:
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015."""

    place: Array
    mean: Array
    square: Array
    steps: int = 0

    @classmethod
    def at(cls, place: Array) -> _Adam:
        place = place.astype(np.float32)
        return cls(place, np.zeros_like(place), np.zeros_like(place))

    def move(self, gradient: Array, rate: float) -> None:
        self.steps += 1
        self.mean = _MOMENTUM * self.mean + (1 - _MOMENTUM) * gradient
        with np.errstate(over="ignore"):
            # Beyond 1e19 a square is infinite: the weight then stays where it is.
            self.square = _SQUARES * self.square + (1 - _SQUARES) * np.square(gradient)
        corrected = float(np.sqrt(1 - _SQUARES**self.steps)) / (1 - _MOMENTUM**self.steps)
        self.place = self.place - rate * corrected * self.mean / (np.sqrt(self.square) + _EPSILON)


def _batches(rows: Rows, options: RoundingOptions) -> Iterator[tuple[Array, Array, Array]]:
    """Inputs, the same transposed, and targets of one batch after the other, for ever."""
    random = np.random.default_rng(options.seed)
    count = rows.inputs.shape[1]
    order = random.permutation(count)
    parts = [rows.at(each) for each in np.array_split(order, max(count // options.batch, 1))]
    ready = [(part.inputs, _transposed(part.inputs), part.targets) for part in parts]
    while True:
        for index in random.permutation(len(ready)):
            yield ready[index]


_OUTPUT = """product = MatMul(inputs, weights)
output = Add(product, bias)
clipped = Clip(output, low, high)
error = Sub(clipped, targets)"""
_GIVEN = """float[G, K, O] weights, float[G, 1, O] bias, float low, float high,
float[G, R, K] inputs, float[G, R, O] targets"""
_HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
_ERROR = f"{_HEAD} layer ({_GIVEN}) => (float[G, R, O] error) {{ {_OUTPUT} }}"
_GRADIENT = f"""{_HEAD} layer ({_GIVEN}, float[G, K, R] transposed) => (float[G, K, O] gradient)
{{
{_OUTPUT}
is_inside = Equal(output, clipped)
inside = Cast<to = 1>(is_inside)
pulling = Mul(error, inside)
gradient = MatMul(transposed, pulling)
}}"""


class _Products:
    """The layer on rows of inputs: its errors, and how they change with its weights."""

    def __init__(self, task: RoundingTask) -> None:
        self._grid = task.grid
        self._error, self._gradient = (
            Session(onnx.parser.parse_model(text), _CONFIG) for text in (_ERROR, _GRADIENT)
        )
        self._fixed = {
            "bias": task.bias[:, np.newaxis].astype(np.float32),
            "low": np.array(task.low, np.float32),
            "high": np.array(task.high, np.float32),
        }

    def gradient(self, weights: Array, inputs: Array, transposed: Array, targets: Array) -> Array:
        """d(mean squared error)/d(weights), float32 [groups, inputs, outputs]."""
        given = {"weights": weights, "inputs": inputs, "targets": targets}
        found = self._gradient.run({**self._fixed, **given, "transposed": transposed})["gradient"]
        gradient: Array = found * np.float32(2 / max(inputs.shape[1], 1))
        return gradient

    def errors(self, codes: Array, rows: Rows) -> Array:
        """Mean squared error of each output channel, float64 [groups, outputs]."""
        weights = _transposed(self._grid.reals(codes))
        total, count = np.zeros(codes.shape[:2]), rows.inputs.shape[1]
        for start in range(0, count, _CHUNK):
            part = rows.at(np.arange(start, min(start + _CHUNK, count)))
            given = {"weights": weights, "inputs": part.inputs, "targets": part.targets}
            error: Array = self._error.run({**self._fixed, **given})["error"]
            total += np.square(error, dtype=np.float64).sum(axis=1)
        return total / max(count, 1)
