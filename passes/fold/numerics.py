"""Elementwise ops in numpy, as ONNX Runtime computes them: float32, op by op.

What float32 does exactly rounded (arithmetic, square root, rounding, choice) is done in float32;
transcendental functions are computed in float64 and rounded once, to within an ulp of any kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array

Evaluate = Callable[[ir.Node, Sequence[Array | None]], Array]
"""Computes a node's output from its inputs (None where absent)."""

_HARD_SIGMOID = (("alpha", 0.2), ("beta", 0.5))
_SELU = (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))
_ERF = np.frompyfunc(math.erf, 1, 1)


def evaluate(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    """The output of ``node``, one of ``ELEMENTWISE``, for float32 (or boolean) inputs."""
    with np.errstate(all="ignore"):
        return ELEMENTWISE[node.op_type](node, inputs)


def _float32(function: Callable[..., Any]) -> Evaluate:
    """An op that float32 computes exactly rounded; absent inputs are not passed."""

    def compute(_: ir.Node, inputs: Sequence[Array | None]) -> Array:
        return np.asarray(function(*[each for each in inputs if each is not None]))

    return compute


def _float64(function: Callable[..., Any], *attributes: tuple[str, float]) -> Evaluate:
    """An op computed in float64 and rounded once; takes its float attributes as arguments."""

    def compute(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
        reals = [each.astype(np.float64) for each in inputs if each is not None]
        numbers = [node.attributes.get_float(name, default) for name, default in attributes]
        return np.asarray(function(*reals, *numbers), np.float32)

    return compute


def _variadic(function: Callable[[Any, Any], Any]) -> Evaluate:
    def compute(_: ir.Node, inputs: Sequence[Array | None]) -> Array:
        return reduce(function, [each for each in inputs if each is not None])

    return compute


def _mean(_: ir.Node, inputs: Sequence[Array | None]) -> Array:
    present = [each for each in inputs if each is not None]
    return np.asarray(reduce(np.add, present) / np.float32(len(present)))


def _clip(_: ir.Node, inputs: Sequence[Array | None]) -> Array:
    data, low, high = [*inputs, None, None][:3]
    assert data is not None
    raised = data if low is None else np.maximum(data, low)
    return raised if high is None else np.minimum(raised, high)


def _gelu(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    assert inputs[0] is not None
    x = inputs[0].astype(np.float64)
    if node.attributes.get_string("approximate", "none") == "tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        inner = erf(x / math.sqrt(2))
    return np.asarray(0.5 * x * (1 + inner), np.float32)


def erf(x: Array) -> Array:
    """The error function, in float64."""
    return np.asarray(_ERF(x), np.float64)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _swish(x: Array, alpha: float) -> Array:
    return x * _sigmoid(alpha * x)


def _mish(x: Array) -> Array:
    return x * np.tanh(_softplus(x))


def _softsign(x: Array) -> Array:
    return x / (1 + np.abs(x))


def _relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _celu(x: Array, alpha: float) -> Array:
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _selu(x: Array, alpha: float, gamma: float) -> Array:
    return gamma * _elu(x, alpha)


def _leaky_relu(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    assert inputs[0] is not None
    alpha = np.float32(node.attributes.get_float("alpha", 0.01))
    return _prelu(inputs[0], alpha)


def _prelu(x: Array, slope: Any) -> Array:
    return np.where(x < 0, x * slope, x)


def _thresholded_relu(x: Array, alpha: float) -> Array:
    return np.where(x > alpha, x, 0)


def _shrink(x: Array, bias: float, lambd: float) -> Array:
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))


def _hard_sigmoid(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    assert inputs[0] is not None
    alpha, beta = (node.attributes.get_float(name, default) for name, default in _HARD_SIGMOID)
    line = inputs[0] * np.float32(alpha) + np.float32(beta)
    return np.clip(line, np.float32(0), np.float32(1))


def _hard_swish(_: ir.Node, inputs: Sequence[Array | None]) -> Array:
    assert inputs[0] is not None
    line = inputs[0] * np.float32(1 / 6) + np.float32(0.5)
    return inputs[0] * np.clip(line, np.float32(0), np.float32(1))


ELEMENTWISE: dict[str, Evaluate] = {
    "Abs": _float32(np.abs),
    "Acos": _float64(np.arccos),
    "Acosh": _float64(np.arccosh),
    "Add": _float32(np.add),
    "And": _float32(np.logical_and),
    "Asin": _float64(np.arcsin),
    "Asinh": _float64(np.arcsinh),
    "Atan": _float64(np.arctan),
    "Atanh": _float64(np.arctanh),
    "Ceil": _float32(np.ceil),
    "Celu": _float64(_celu, ("alpha", 1.0)),
    "Clip": _clip,
    "Cos": _float64(np.cos),
    "Cosh": _float64(np.cosh),
    "Div": _float32(np.divide),
    "Elu": _float64(_elu, ("alpha", 1.0)),
    "Equal": _float32(np.equal),
    "Erf": _float64(erf),
    "Exp": _float64(np.exp),
    "Floor": _float32(np.floor),
    "Gelu": _gelu,
    "Greater": _float32(np.greater),
    "GreaterOrEqual": _float32(np.greater_equal),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "Less": _float32(np.less),
    "LessOrEqual": _float32(np.less_equal),
    "Log": _float64(np.log),
    "Max": _variadic(np.maximum),
    "Mean": _mean,
    "Min": _variadic(np.minimum),
    "Mish": _float64(_mish),
    "Mul": _float32(np.multiply),
    "Neg": _float32(np.negative),
    "Not": _float32(np.logical_not),
    "Or": _float32(np.logical_or),
    "PRelu": _float32(_prelu),
    "Pow": _float64(np.power),
    "Reciprocal": _float32(np.reciprocal),
    "Relu": _float32(_relu),
    "Round": _float32(np.rint),
    "Selu": _float64(_selu, *_SELU),
    "Shrink": _float64(_shrink, ("bias", 0.0), ("lambd", 0.5)),
    "Sigmoid": _float64(_sigmoid),
    "Sign": _float32(np.sign),
    "Sin": _float64(np.sin),
    "Sinh": _float64(np.sinh),
    "Softplus": _float64(_softplus),
    "Softsign": _float64(_softsign),
    "Sqrt": _float32(np.sqrt),
    "Sub": _float32(np.subtract),
    "Sum": _variadic(np.add),
    "Swish": _float64(_swish, ("alpha", 1.0)),
    "Tan": _float64(np.tan),
    "Tanh": _float64(np.tanh),
    "ThresholdedRelu": _float64(_thresholded_relu, ("alpha", 1.0)),
    "Where": _float32(np.where),
    "Xor": _float32(np.logical_xor),
}
"""Ops whose every output element depends on the same element of each input alone."""
