"""Elementwise ops for target ``ort``: which integer kernel serves them, where one is faster.

Microseconds, lower quartiles of 40 interleaved runs, 1 thread, onnxruntime 1.32.0 on x86-64 with
AVX512-VNNI, uint8 1x64x56x56, between DequantizeLinear and QuantizeLinear against integer form:

    Relu, other type     68 against QLinearLeakyRelu 59; Abs 70, 57; PRelu 1025, 67
    Tanh                104 against QLinearSigmoid of the double 59 (where its zero point is 128)
    Softplus           2325 against a table in GatherElements 245; Mish 2442, Where 2195,
                       Pow 1543, Shrink 1399, Celu 481, Selu 466, Elu 458, Log 432
    Gelu                220 against 245; HardSwish 202, Erf 197, Exp 143
    Add of a constant    97 against QLinearAdd 39; HardSigmoid 80 against QLinearAdd, Clip 59
    Sub                 133 against BitwiseNot, QLinearAdd 53
    Max                 129 against uint8 Max 22, which onnxruntime 1.23 lacks; int32 132
    Where              2130 against uint8 Where, one operand requantized 1540; QLinearWhere 2100
    Mul, Add a channel   73 against depthwise QLinearConv 69, a table a channel 203; so
                       BatchNormalization
    Add of an image     111 against integer arithmetic 460; of three values (Sum) 237, 744; Mean
                        258, 746
    Other functions against a table 183: Neg 73, ThresholdedRelu 74, Max of a number 82, Round 93,
                       Softsign 96, Ceil 116, Reciprocal 133, Floor 137, Sqrt 141, SiLU 162; the
                       table is little better for Sign 264 and a Gelu of four ops 268
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_scalar
from onnxfold.passes.fold.costs import FASTER_IN_FLOAT, NOT_IN_OLDEST
from onnxfold.passes.fold.lowering import Extremum, Function, Operand, Refusal, Select, Sum
from onnxfold.passes.fold.rules.operands import exact_operand
from onnxfold.passes.fold.targets.builder import CONTRIB, Builder
from onnxfold.passes.fold.targets.tables import look_up, sizes_for_reshape
from onnxfold.passes.fold.types import is_quantize

_NANOSECONDS = {
    "Celu": 1.9,
    "Cos": 1.8,
    "Elu": 1.8,
    "Erf": 0.5,
    "Log": 1.7,
    "Mish": 11.7,
    "PRelu": 4.6,
    "Pow": 7.2,
    "Selu": 1.8,
    "Shrink": 6.5,
    "Sign": 1.0,
    "Sin": 1.9,
    "Softplus": 11.1,
    "Where": 10.4,
}
"""What float kernels take for one element, beside DequantizeLinear and QuantizeLinear."""

_ALSO_IN_FLOAT = "what it rounds is computed in float for others"
_OTHER_KERNEL = 0.15  # a cautious minimum: ONNX Runtime fuses chains of them
_TABLE = 1.7  # a table takes 0.7 to 1.0
_QUICK_POWERS = (2, 3)
_TIE_DISTANCE = 1e-3  # in codes: float32 kernels of sigmoid and tanh differ by less
_SUM_TIE_DISTANCE = 1e-4  # of 256 codes in float32
_BITWISE_NOT = 18
"""The opset since which there is BitwiseNot."""


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel of com.microsoft that holds a table of 256 codes.

    Attributes:
        op_type: QLinearLeakyRelu or QLinearSigmoid.
        x: The type it reads its codes with.
        y: The type it gives its results.
        attributes: Its attributes.
    """

    op_type: str
    x: AffineType
    y: AffineType
    attributes: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, eq=False)
class _Line:
    """A function that is slope x + intercept within limits.

    Attributes:
        slope: Positive.
        intercept: What is added.
        limits: Smallest and largest code of the result, where saturation is not enough.
    """

    slope: float
    intercept: float
    limits: tuple[int, int] | None


def decline_elementwise(lowering: Function | Sum | Extremum) -> Refusal | None:
    """Why the float ops are kept: they are faster, or run on every version."""
    if is_quantize(lowering.node):
        return Refusal(_ALSO_IN_FLOAT)
    match lowering:
        case Function():
            taken = _kernel(lowering) or _line(lowering) or _is_slow_in_float(lowering)
            return None if taken else Refusal(FASTER_IN_FLOAT)
        case Sum():
            two = len(lowering.operands) == 2 and lowering.constant is None
            return None if two else Refusal(FASTER_IN_FLOAT)
        case Extremum():
            return Refusal(NOT_IN_OLDEST)


def write_function(function: Function, build: Builder) -> ir.Value:
    """A kernel with a table inside, or a table."""
    output = function.node.outputs[0]
    codes = build.operand(function.operand, output.name or "argument")
    kernel = _kernel(function)
    if kernel is not None:
        return _write_kernel(kernel, codes, output, build)
    line = _line(function)
    if line is not None:
        return _write_line(line, codes, function, build)
    return look_up(codes, function.table, function.type, output, build, axis=function.axis)


def _write_kernel(kernel: _Kernel, codes: ir.Value, output: ir.Value, build: Builder) -> ir.Value:
    return build.insert(
        kernel.op_type,
        [codes, *build.parameters(kernel.x), *build.parameters(kernel.y)],
        output,
        kernel.y.dtype,
        domain=CONTRIB,
        attributes=kernel.attributes,
    )


def _write_line(line: _Line, codes: ir.Value, function: Function, build: Builder) -> ir.Value:
    """QLinearAdd of a constant, and limits on the codes where they have any."""
    output, dtype = function.node.outputs[0], function.type.dtype
    constant = exact_operand(line.intercept)
    inputs = [
        codes,
        *build.parameters(build.types.rescaled(function.operand.type, line.slope)),
        build.operand(constant, f"{output.name}_constant"),
        *build.parameters(constant.type),
        *build.parameters(function.type),
    ]
    added = build.insert("QLinearAdd", inputs, output, dtype, domain=CONTRIB)
    if line.limits is None:
        return added
    bounds = [build.constant(np.asarray(each, dtype.numpy()), "code_limit") for each in line.limits]
    return build.insert("Clip", [added, *bounds], output, dtype)


def write_sum(lowering: Sum, build: Builder) -> ir.Value:
    """QLinearAdd, which multiplies both operands by real factors anyway."""
    output = lowering.node.outputs[0]
    inputs: list[ir.Value | None] = []
    for operand, coefficient in zip(lowering.operands, lowering.coefficients, strict=True):
        affine = build.types.rescaled(operand.type, abs(coefficient))
        if coefficient < 0:
            affine = _flipped(affine, build)
        codes = _signed_codes(operand, coefficient, output, build)
        inputs += [codes, *build.parameters(affine)]
    inputs += build.parameters(lowering.type)
    return build.insert("QLinearAdd", inputs, output, lowering.type.dtype, domain=CONTRIB)


def write_select(select: Select, codes: Sequence[ir.Value], build: Builder) -> ir.Value:
    """Where on codes, which are of one type."""
    output = select.node.outputs[0]
    return build.insert("Where", [select.node.inputs[0], *codes], output, select.type.dtype)


def _flipped(affine: AffineType, build: Builder) -> AffineType:
    """The type in which codes 255 - q stand for the negative numbers."""
    zero_point = np.asarray(255 - affine.zero_point.astype(np.int64), np.uint8)
    return build.types.intern(AffineType(affine.scale, zero_point, affine.dtype))


def _signed_codes(
    operand: Operand, coefficient: float, output: ir.Value, build: Builder
) -> ir.Value:
    """The codes q of an operand, or 255 - q where its coefficient is negative."""
    name = f"{output.name}_operand"
    if coefficient < 0 and operand.codes is not None:
        return build.operand(Operand(operand.type, codes=255 - operand.codes), name)
    codes = build.operand(operand, name)
    if coefficient > 0:
        return codes
    if build.rewriter.opset(build.anchor) >= _BITWISE_NOT:
        return build.insert("BitwiseNot", [codes], codes, operand.type.dtype)
    wide = _cast(codes, ir.DataType.INT32, build)
    largest = build.constant(np.asarray(255, np.int32), "largest_code")
    flipped = build.insert("Sub", [largest, wide], codes, ir.DataType.INT32)
    return _cast(flipped, operand.type.dtype, build)


def _cast(value: ir.Value, dtype: ir.DataType, build: Builder) -> ir.Value:
    return build.insert("Cast", [value], value, dtype, attributes={"to": int(dtype)})


def _is_slow_in_float(function: Function) -> bool:
    """Whether the float kernels take twice as long as a table, whose sizes must be known."""
    output, value = function.node.outputs[0], function.operand.value
    shape = output.shape if value is None or value.shape is None else value.shape
    if shape is None or sizes_for_reshape(shape) is None:
        return False
    return sum(_float_cost(node) for node in function.covered) >= _TABLE


def _float_cost(node: ir.Node) -> float:
    if node.op_type == "Pow" and constant_scalar(node.inputs[1]) in _QUICK_POWERS:
        return _OTHER_KERNEL
    return _NANOSECONDS.get(node.op_type, _OTHER_KERNEL)


def _kernel(function: Function) -> _Kernel | None:
    """The kernel that computes ``function``, if there is one."""
    if function.axis is not None:
        return None
    x = _argument(function.operand.type).astype(np.float64)
    # What the last op computes of its own input need not be the function: that may be of another.
    if function.node.op_type == "Sigmoid" and _computes(function, (1.0 + np.tanh(x / 2)) / 2):
        return _Kernel("QLinearSigmoid", function.operand.type, function.type)
    if function.node.op_type == "Tanh" and _computes(function, np.tanh(x)):
        return _tanh(function)
    return _two_slopes(function)


def _computes(function: Function, numbers: Array) -> bool:
    return bool(np.allclose(function.numbers, numbers, rtol=1e-5, atol=1e-6))


def _two_slopes(function: Function) -> _Kernel | None:
    """A function that is a x for x < 0 and b x for x > 0, as LeakyRelu of b x."""
    x = _argument(function.operand.type)
    below, above = _slope(function.numbers, x, x < 0), _slope(function.numbers, x, x > 0)
    if below is None or above is None or function.numbers[x == 0].any():
        return None
    above = above if np.isfinite(above) else below
    below = below if np.isfinite(below) else above
    if not above > 0:
        return None
    scale = np.asarray(float(function.operand.type.scale) * above, np.float32)
    affine = AffineType(scale, function.operand.type.zero_point, function.operand.type.dtype)
    argument, alpha = _argument(affine), np.float32(below / above)
    codes = function.type.quantize(np.where(argument < 0, argument * alpha, argument))
    if not np.array_equal(codes, function.table):
        return None
    return _Kernel("QLinearLeakyRelu", affine, function.type, {"alpha": float(alpha)})


def _slope(numbers: Array, x: Array, where: Array) -> float | None:
    """The one factor of ``numbers`` to ``x``; infinite where there are none, else None."""
    if not where.any():
        return float("inf")
    ratio = numbers[where].astype(np.float64) / x[where]
    same = np.max(ratio) - np.min(ratio) <= 1e-6 * np.max(np.abs(ratio))
    return float(ratio[np.argmax(np.abs(x[where]))]) if same else None


def _tanh(function: Function) -> _Kernel | None:
    """tanh(x) = 2 sigmoid(2 x) - 1, where that moves the zero point to another code."""
    x, y = function.operand.type, function.type
    moved = float(y.zero_point) - 1.0 / float(y.scale)
    low, high = y.limits
    if moved != int(moved) or not low <= moved <= high:
        return None
    exact = np.tanh(_argument(function.operand.type).astype(np.float64)) / float(y.scale)
    if np.any(np.abs(exact - np.floor(exact) - 0.5) < _TIE_DISTANCE):
        return None
    double = AffineType(np.asarray(x.scale * 2, np.float32), x.zero_point, x.dtype)
    zero_point = np.asarray(int(moved), y.zero_point.dtype)
    half = AffineType(np.asarray(y.scale / 2, np.float32), zero_point, y.dtype)
    return _Kernel("QLinearSigmoid", double, half)


def _line(function: Function) -> _Line | None:
    """``function`` as a line within limits; None where it is none, or sums could tie."""
    if function.axis is not None:
        return None
    x = _argument(function.operand.type).astype(np.float64)
    numbers = function.numbers.astype(np.float64)
    (inside,) = np.nonzero((numbers > np.min(numbers)) & (numbers < np.max(numbers)))
    if inside.size < 2:
        return None
    first, last = inside[0], inside[-1]
    slope = float(np.float32((numbers[last] - numbers[first]) / (x[last] - x[first])))
    intercept = float(np.float32(numbers[first] - slope * x[first]))
    if not (slope > 0 and np.isfinite(slope) and np.isfinite(intercept)):
        return None
    steps = (slope * x + intercept) / float(function.type.scale) + float(function.type.zero_point)
    codes = np.clip(np.rint(steps), *function.type.limits)
    limits = int(np.min(function.table)), int(np.max(function.table))
    rounded = np.clip(codes, *limits)
    near_tie = np.abs(steps - np.floor(steps) - 0.5) < _SUM_TIE_DISTANCE
    if np.any(rounded != function.table) or np.any(near_tie & (rounded == codes)):
        return None
    return _Line(slope, intercept, None if np.array_equal(rounded, codes) else limits)


def _argument(affine: AffineType) -> Array:
    """The real numbers that all codes of a type stand for, [256]."""
    low, high = affine.limits
    return affine.dequantize(np.arange(low, high + 1))
