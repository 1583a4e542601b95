"""Convolutions whose result is read unrounded, on ConvInteger where ONNX Runtime gains by that.

Microseconds of CPU time, medians of 15 interleaved runs on one thread, onnxruntime 1.32.0 on x86-64
with AVX512-VNNI: DequantizeLinear and a float Conv with a bias against ConvInteger, Cast, Mul and
Add, weights as uint8 (int8 ones take six times as long); channels, size, kernel in front.

    64, 56x56, 1x1      305 against 231       16, 32x32, 3x3       60 against 76
    256, 14x14, 1x1     257 against 201       32, 28x28, 3x3      147 against 153
    64, 56x56, 3x3     2374 against 1923      128, 14x14, 3x3     546 against 534

A float convolution takes an activation behind it in as well, ConvInteger does not; and only kernels
of one tap need no copy of their data, which ConvInteger makes on one thread.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Linear
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.products import accumulated, channel_shape

_FLOAT = ir.DataType.FLOAT
_FEWEST_CHANNELS = 64
_TAKEN_IN = frozenset({"Add", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""Ops that float convolutions of ONNX Runtime take in."""


def is_fast_unrounded(linear: Linear) -> bool:
    """Whether ConvInteger is faster than a float convolution that leaves its result unrounded."""
    codes = linear.w.codes
    if codes is None or codes.ndim < 3 or math.prod(codes.shape[2:]) != 1:
        return False
    if (
        min(codes.shape[:2]) < _FEWEST_CHANNELS
        or linear.operator.attributes.get_int("group", 1) > 1
    ):
        return False
    return all(
        reader.domain or reader.op_type not in _TAKEN_IN for reader, _ in linear.output.uses()
    )


def unrounded_convolution(linear: Linear, build: Builder) -> ir.Value:
    """The convolution as a real number, with the bias as it was written."""
    output = linear.output
    total = accumulated(linear, build)
    real = build.insert("Cast", [total], output, _FLOAT, attributes={"to": int(_FLOAT)})
    scale: Array = np.asarray(linear.x.type.scale * linear.w.type.scale, np.float32)
    if scale.ndim:
        scale = scale.reshape(channel_shape(linear, scale))
    unit = build.constant(scale, f"{output.name}_unit")
    real = build.insert("Mul", [real, unit], output, _FLOAT)
    if linear.bias is None:
        return real
    bias = linear.bias.astype(np.float32).reshape(channel_shape(linear, linear.bias))
    addend = build.constant(bias, f"{output.name}_bias")
    return build.insert("Add", [real, addend], output, _FLOAT)
