"""Softmax for target ``ort``: QLinearSoftmax of few elements, the float kernel of many.

ONNX Runtime makes QLinearSoftmax, which is slow, of DequantizeLinear, Softmax and QuantizeLinear.
It does not where a Reshape lies between that it cannot take to the other side: behind a
DequantizeLinear that repeats its scale for each index of an axis. Microseconds of 8x64x64 on one
thread, onnxruntime 1.32.0: DequantizeLinear 5.6 and Reshape 0.3, against Cast 4.3 and Mul 4.2.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.costs import FASTER_IN_FLOAT, LARGEST_INTEGER_SOFTMAX
from onnxfold.passes.fold.lowering import Softmax
from onnxfold.passes.fold.targets.builder import CONTRIB, Builder

_FLOAT = ir.DataType.FLOAT
_MOST_STEPS = 256
_ROUNDING = 1e-6  # how near to a whole number 1 / scale must be


def write_softmax(softmax: Softmax, build: Builder) -> ir.Value:
    """QLinearSoftmax where there are few elements; five float nodes take longer then."""
    node, output = softmax.node, softmax.node.outputs[0]
    value = softmax.operand.value
    shape = None if value is None else value.shape
    scale = _scale_of_kernel(softmax.type)
    if shape is None or scale is None or _elements(shape) > LARGEST_INTEGER_SOFTMAX:
        return _through_real(softmax, build)
    # Of one number, 1.23 makes 0 as well.
    if shape[softmax.axis] == 1 or not isinstance(shape[softmax.axis], int):
        return _through_real(softmax, build)
    inputs = [
        build.operand(softmax.operand, output.name or "softmax"),
        *build.parameters(softmax.operand.type),
        build.constant(scale, "scale"),
        build.zero_point(softmax.type),
    ]
    attributes = {"axis": softmax.axis, "opset": build.rewriter.opset(node)}
    return build.insert(
        "QLinearSoftmax",
        inputs,
        output,
        softmax.type.dtype,
        domain=CONTRIB,
        attributes=attributes,
    )


def _scale_of_kernel(affine: AffineType) -> Array | None:
    """The scale with which QLinearSoftmax gives codes of ``affine``; None where it cannot.

    Its kernel multiplies by floor(1 / scale) in float32: 254 for 1/255, unless the scale is taken
    one unit smaller. In ONNX Runtime 1.23 what is more than 256 becomes 0, not 255.
    """
    steps = round(1 / float(affine.scale))
    if steps > _MOST_STEPS or abs(steps * float(affine.scale) - 1) > _ROUNDING:
        return None
    scale: Array = np.asarray(1 / steps, np.float32)
    if np.floor(np.reciprocal(scale)) != steps:
        scale = np.asarray(np.nextafter(scale, np.float32(0)))
    return scale


def _through_real(softmax: Softmax, build: Builder) -> ir.Value:
    node, output = softmax.node, softmax.node.outputs[0]
    codes = build.operand(softmax.operand, output.name or "operand")
    real = _real(codes, softmax.operand.type, output, build)
    result = build.insert(node.op_type, [real], output, _FLOAT, attributes=node.attributes)
    build.rewriter.remark(node, FASTER_IN_FLOAT)
    return build.quantize(result, softmax.type, output)


def _real(codes: ir.Value, affine: AffineType, like: ir.Value, build: Builder) -> ir.Value:
    """The codes as real numbers, maybe shifted, in a form that is not fused."""
    axis, count = _blocks(codes.shape)
    if count == 1 or codes.shape is None:
        # A Softmax does not change where all that it reads is shifted.
        zeros = np.zeros_like(affine.zero_point)
        return build.dequantize_unfused(codes, AffineType(affine.scale, zeros, affine.dtype), like)
    scale = np.full(count, affine.scale, np.float32)
    zero_point = np.full(count, affine.zero_point, affine.dtype.numpy())
    real = build.dequantize(codes, AffineType(scale, zero_point, affine.dtype, axis), like)
    shape = build.constant(np.zeros(len(codes.shape), np.int64), "shape")  # 0: as it is
    return build.insert("Reshape", [real, shape], like, _FLOAT, shape=codes.shape)


def _blocks(shape: ir.Shape | None) -> tuple[int, int]:
    """The first axis of several indices with a block for each, and how many; (0, 1) for none."""
    sizes = [] if shape is None else list(shape)[:-1]
    known = ((axis, size) for axis, size in enumerate(sizes) if isinstance(size, int) and size > 1)
    return next(known, (0, 1))


def _elements(shape: ir.Shape) -> int:
    """Number of elements; sizes that are not known count as 1, the usual batch."""
    return math.prod(size for size in shape if isinstance(size, int))
