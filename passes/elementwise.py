"""Elementwise float operators, computed in numpy at a chosen precision.

Unlike the exact kernels of constant folding, what is computed here is the real function: a pass
that promises only ``REASSOCIATED`` evaluates it in float64 and rounds once. All operators are
continuous on their domain, so a rounding error never becomes a jump.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.constants import Array

Unary: TypeAlias = Callable[[Array, Mapping[str, Any]], Array]

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


def is_elementwise(node: ir.Node) -> bool:
    """Whether ``compute_elementwise`` knows the operator, its form and its attributes."""
    if node.domain or len(node.outputs) != 1:
        return False
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return False
    if node.op_type in ("Add", "Mul", "Sub", "Div") and "broadcast" in node.attributes:
        return False  # opset 6 and older broadcast along an axis
    return node.op_type in _UNARY or node.op_type in _VARIADIC or node.op_type == "Clip"


def compute_elementwise(
    node: ir.Node, inputs: Sequence[Array | None], dtype: npt.DTypeLike = np.float64
) -> Array:
    """The output of an elementwise ``node``, every step in ``dtype``.

    Args:
        node: A node for which ``is_elementwise`` holds.
        inputs: One array per input, broadcast as ONNX does; None for an absent optional input.
        dtype: float64 for the real function, float32 for what a runtime computes (nearly).

    Returns:
        The result in ``dtype``; infinite or NaN where the operator is undefined or overflows.
    """
    arrays = [None if each is None else each.astype(dtype) for each in inputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    with np.errstate(all="ignore"):
        if node.op_type == "Clip":
            return _clip(arrays, attributes).astype(dtype)
        present = [each for each in arrays if each is not None]
        if node.op_type in _UNARY:
            return _UNARY[node.op_type](present[0], attributes).astype(dtype)
        return functools.reduce(_VARIADIC[node.op_type], present).astype(dtype)


def _clip(arrays: Sequence[Array | None], attributes: Mapping[str, Any]) -> Array:
    """Bounds are attributes up to opset 10, then inputs; the upper one wins."""
    source = arrays[0]
    if source is None:
        raise ValueError("Clip without input")
    low, high = attributes.get("min"), attributes.get("max")
    low = arrays[1] if len(arrays) > 1 else low
    high = arrays[2] if len(arrays) > 2 else high
    clipped = source if low is None else np.maximum(source, low)
    return clipped if high is None else np.minimum(clipped, high)


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _sigmoid(x: Array) -> Array:
    decay = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + decay), decay / (1 + decay))


def _gelu(x: Array, attributes: Mapping[str, Any]) -> Array:
    if attributes.get("approximate", "none") == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x * math.sqrt(0.5)))


def _elu(x: Array, alpha: float, divisor: float = 1.0) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / divisor))


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return np.clip(alpha * x + beta, 0, 1)


def _parametric_relu(x: Array, slope: Array) -> Array:
    return np.where(x < 0, slope * x, x)


_UNARY: dict[str, Unary] = {
    "Abs": lambda x, _: np.abs(x),
    "Celu": lambda x, a: _elu(x, a.get("alpha", 1.0), a.get("alpha", 1.0)),
    "Elu": lambda x, a: _elu(x, a.get("alpha", 1.0)),
    "Erf": lambda x, _: _erf(x),
    "Exp": lambda x, _: np.exp(x),
    "Gelu": _gelu,
    "HardSigmoid": lambda x, a: _hard_sigmoid(x, a.get("alpha", 0.2), a.get("beta", 0.5)),
    "HardSwish": lambda x, _: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "Identity": lambda x, _: x,
    "LeakyRelu": lambda x, a: np.where(x < 0, a.get("alpha", 0.01) * x, x),
    "Log": lambda x, _: np.log(x),
    "Mish": lambda x, _: x * np.tanh(np.logaddexp(x.dtype.type(0), x)),
    "Neg": lambda x, _: -x,
    "Reciprocal": lambda x, _: 1 / x,
    "Relu": lambda x, _: np.maximum(x, 0),
    "Selu": lambda x, a: a.get("gamma", _SELU_GAMMA) * _elu(x, a.get("alpha", _SELU_ALPHA)),
    "Sigmoid": lambda x, _: _sigmoid(x),
    "Softplus": lambda x, _: np.logaddexp(x.dtype.type(0), x),
    "Softsign": lambda x, _: x / (1 + np.abs(x)),
    "Sqrt": lambda x, _: np.sqrt(x),
    "Swish": lambda x, a: x * _sigmoid(a.get("alpha", 1.0) * x),
    "Tanh": lambda x, _: np.tanh(x),
}

_VARIADIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "PRelu": _parametric_relu,
    "Pow": np.power,
    "Sub": np.subtract,
    "Sum": np.add,
}
