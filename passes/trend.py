"""Whether a scalar function given as a region of elementwise nodes rises, falls, or does both."""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.elementwise import compute_elementwise


class Trend(enum.Enum):
    """How f(x) moves with x, never strictly."""

    RISING = "rising"
    FALLING = "falling"
    VALLEY = "valley"
    """First falls, then rises: quasi-convex. GELU, SiLU, HardSwish and Mish do."""


def trend_of(region: Sequence[ir.Node], source: ir.Value) -> Trend | None:
    """The trend of the last output of ``region`` as a function of ``source``; None if unknown.

    Rising and falling functions are first recognized by the rules of monotone composition, which
    hold for constants of any shape. What those cannot tell is sampled, if all constants are
    scalars, over -1e12 .. 1e12 in float64. Samples decide because they resolve the function:

    - between two samples the argument of a curved operator moves by at most 0.25, except where
      the operator has settled (argument beyond 40);
    - between two samples lies at most one kink (of Relu, Clip, Max ...) or zero of a factor.

    A function for which either fails is unknown. All operators are analytic between kinks, with
    no singularity nearer than 1.5 to the real axis, so that nothing can hide between samples.

    Args:
        region: Nodes for which ``is_elementwise`` holds, in an order of computation; what they
            read is ``source``, another node's output, or a constant.
        source: The variable.
    """
    return _by_rules(region, source) or _by_samples(region, source)


# Rules

_RISING = frozenset(
    {
        *("Celu", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "Identity", "LeakyRelu", "Relu"),
        *("Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"),
    }
)
"""Rising where ``alpha``, if they have one, is not negative."""


def _by_rules(region: Sequence[ir.Node], source: ir.Value) -> Trend | None:
    signs: dict[ir.Value, int] = {source: 1}
    for node in region:
        sign = _sign(node, signs)
        if not sign:
            return None
        signs[node.outputs[0]] = sign
    last = signs[region[-1].outputs[0]] if region else 1
    return Trend.RISING if last > 0 else Trend.FALLING


def _sign(node: ir.Node, signs: Mapping[ir.Value, int]) -> int:
    """1 where the output rises with the source, -1 where it falls, 0 where neither is certain."""
    found = [0 if value is None else signs.get(value, 0) for value in node.inputs]
    moving = [sign for sign in found if sign]
    if node.op_type in ("Add", "Sum", "Max", "Min"):
        return moving[0] if len(set(moving)) == 1 else 0
    if node.op_type == "Sub":
        directions = {found[0], -found[1]} - {0}
        return directions.pop() if len(directions) == 1 else 0
    if len(moving) != 1:
        return 0
    if node.op_type == "Mul":
        return moving[0] * _constant_sign(node.inputs[0] if found[1] else node.inputs[1])
    if not found[0]:
        return 0
    if node.op_type == "Div":
        return moving[0] * _constant_sign(node.inputs[1])
    if node.op_type == "PRelu":
        return moving[0] if _constant_sign(node.inputs[1]) > 0 else 0
    if node.op_type == "Neg":
        return -moving[0]
    shaping = [
        node.attributes[name].value for name in ("alpha", "gamma") if name in node.attributes
    ]
    return moving[0] if node.op_type in _RISING and all(each >= 0 for each in shaping) else 0


def _constant_sign(value: ir.Value | None) -> int:
    array = constant_array(value)
    if array is None:
        return 0
    return 1 if (array > 0).all() else -1 if (array < 0).all() else 0


# Samples

_STEP = 0.25
"""The most an argument may move between two samples."""
_SETTLED = 40.0
"""Beyond this a curved operator is flat, straight, or out of proportion to everything else."""
_ROUNDING = 1e-12
"""Float64 noise, relative to the function."""

_CURVED = frozenset(
    {
        *("Celu", "Elu", "Erf", "Exp", "Gelu", "Mish", "Selu", "Sigmoid", "Softplus", "Softsign"),
        *("Swish", "Tanh"),
    }
)
_KINKS_AT_ZERO = frozenset({"Abs", "Celu", "Elu", "LeakyRelu", "PRelu", "Relu", "Selu"})


def _by_samples(region: Sequence[ir.Node], source: ir.Value) -> Trend | None:
    found: dict[ir.Value, Array] = {source: _samples()}
    turning: dict[object, Array] = {}
    for node in region:
        inputs = [found[value] if value in found else _scalar(value) for value in node.inputs]
        if any(each is None and value for each, value in zip(inputs, node.inputs, strict=True)):
            return None
        if not _is_resolved(node, inputs):
            return None
        turning.update(_turning_points(node, inputs))
        found[node.outputs[0]] = compute_elementwise(node, inputs)
    if _is_crowded(turning):
        return None
    return _shape(found[region[-1].outputs[0]]) if region else Trend.RISING


@functools.cache
def _samples() -> Array:
    """Step 1/128 up to 64, then steps of 0.6 % up to 1e12; zero is one of them."""
    near = np.arange(0, 64 * 128) / 128
    far = np.geomspace(64, 1e12, 4096)
    positive = np.concatenate([near, far])
    return np.concatenate([-positive[:0:-1], positive])


def _scalar(value: ir.Value | None) -> Array | None:
    array = constant_array(value)
    return None if array is None or array.size != 1 else array.reshape(()).astype(np.float64)


def _is_resolved(node: ir.Node, inputs: Sequence[Array | None]) -> bool:
    """Whether no operator's argument jumps between two samples."""
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    if first is None:
        return False
    with np.errstate(all="ignore"):
        match node.op_type:
            case "Pow":
                return _is_power(second)
            case "Div":
                return second is not None and _is_smooth_divisor(second)
            case "Reciprocal" | "Log" | "Sqrt":
                return _is_smooth_divisor(first)
            case _:
                return node.op_type not in _CURVED or _moves_slowly(first)


def _is_power(exponent: Array | None) -> bool:
    return exponent is not None and exponent.ndim == 0 and float(exponent) in (1.0, 2.0, 3.0, 4.0)


def _is_smooth_divisor(divisor: Array) -> bool:
    """Never zero, and its logarithm moves slowly."""
    if not ((divisor > 0).all() or (divisor < 0).all()):
        return False
    return divisor.ndim == 0 or _moves_slowly(np.log(np.abs(divisor)))


def _moves_slowly(argument: Array) -> bool:
    if argument.ndim == 0:
        return True
    low = np.minimum(argument[:-1], argument[1:])
    high = np.maximum(argument[:-1], argument[1:])
    return bool(np.all((high - low <= _STEP) | (low > _SETTLED) | (high < -_SETTLED)))


def _turning_points(node: ir.Node, inputs: Sequence[Array | None]) -> dict[object, Array]:
    """What changes its sign where ``node`` has a kink, or a product a zero; one each by key."""
    pairs = [(value, array) for value, array in zip(node.inputs, inputs, strict=True)]
    moving = [(value, array) for value, array in pairs if array is not None and array.ndim]
    if node.op_type in ("Div", "Mul"):
        return {(value, 0.0): array for value, array in moving}
    if node.op_type in ("Clip", "Max", "Min") and "min" not in node.attributes:
        known = [(value, array) for value, array in pairs if array is not None]
        return {
            (first, second): np.atleast_1d(a - b)
            for (first, a), (second, b) in itertools.combinations(known, 2)
            if (a - b).ndim
        }
    return {
        (value, threshold): array - threshold
        for value, array in moving[:1]
        for threshold in _thresholds(node)
    }


def _thresholds(node: ir.Node) -> tuple[float, ...]:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type in _KINKS_AT_ZERO:
        return (0.0,)
    if node.op_type == "HardSwish":
        return (-3.0, 3.0)
    if node.op_type == "HardSigmoid":
        alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
        return (-beta / alpha, (1 - beta) / alpha) if alpha else ()
    if node.op_type == "Clip":
        return tuple(attributes[name] for name in ("min", "max") if name in attributes)
    return ()


def _is_crowded(turning: Mapping[object, Array]) -> bool:
    """Whether two kinks or zeros lie strictly between the same two samples."""
    count = np.zeros(len(_samples()) - 1, dtype=np.int64)
    for each in turning.values():
        signs = np.sign(each)
        count += signs[:-1] * signs[1:] < 0
    return bool((count > 1).any())


def _shape(values: Array) -> Trend | None:
    """The trend of a sequence; f(b) <= max(f(a), f(c)) for all a <= b <= c makes a valley."""
    if not np.isfinite(values).all():
        return None
    near_zero = values[np.abs(_samples()) <= 1]
    slack = _ROUNDING * (np.abs(values) + np.abs(near_zero).max())
    before = np.minimum.accumulate(values)
    after = np.minimum.accumulate(values[::-1])[::-1]
    if (values <= after + slack).all():
        return Trend.RISING
    if (values <= before + slack).all():
        return Trend.FALLING
    return Trend.VALLEY if (values <= np.maximum(before, after) + slack).all() else None
