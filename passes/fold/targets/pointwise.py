"""Products of many rows as convolutions of one pixel, whose kernel rounds to codes in registers.

ONNX Runtime's products store int32 sums and read them again to rescale them; its convolution of
channels-last uint8 data with int8 weights does not. Microseconds of processor time, onnxruntime
1.32 on x86-64 with AVX512-VNNI, one thread; ``float, rounded`` is MatMulIntegerToFloat and
QuantizeLinear, ``QGemm`` has a Reshape before and after it:

    rows, depth, channels    float, rounded    QGemm    convolution
    1, 384, 384                         8.6     10.0            9.8
    8, 384, 384                          13       15             14
    24, 384, 384                         29       34             22
    96, 384, 384                         81       84             70
    128, 32, 128                         13       14              9
    96, 256, 1000                       148      160            122
    200, 1024, 256                      270      280            254
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Linear
from onnxfold.passes.fold.targets.builder import CONTRIB, Builder

_RANKS = (3, 4)
_WEIGHTS = 64 * 64  # fewer are not worth another form
_ROWS = 16  # fewer take as long either way


def is_pointwise(linear: Linear) -> bool:
    """Whether the product of uint8 rows and int8 weights to uint8 is worth a convolution.

    Sizes that are not known count as large.
    """
    output, weights, affine = linear.output, linear.w.codes, linear.type
    if linear.operator.op_type != "MatMul" or weights is None or weights.ndim != 2:
        return False
    if affine is None or linear.bias_codes is None or output.shape is None:
        return False
    if {linear.x.type.dtype, affine.dtype} != {ir.DataType.UINT8}:
        return False
    if linear.w.type.dtype != ir.DataType.INT8 or np.any(linear.w.type.zero_point):
        return False
    rows = [size for size in list(output.shape)[:-1] if isinstance(size, int)]
    many = len(rows) < len(output.shape) - 1 or int(np.prod(rows)) >= _ROWS
    return len(output.shape) in _RANKS and weights.size >= _WEIGHTS and many


def pointwise(linear: Linear, build: Builder) -> ir.Value:
    """The product as a channels-last QLinearConv over the axes between the first and the last."""
    name, affine = linear.output.name or "product", linear.type
    weights, shape = linear.w.codes, linear.output.shape
    assert affine is not None
    assert weights is not None
    assert linear.bias_codes is not None
    assert shape is not None
    ones = [1] * (len(shape) - 2)
    kernel: Array = np.moveaxis(weights, 0, 1)
    kernel = np.ascontiguousarray(kernel).reshape([*kernel.shape, *ones])
    inputs = [
        build.operand(linear.x, f"{name}_left"),
        *build.parameters(linear.x.type),
        build.constant(kernel, f"{name}_weights"),
        *build.parameters(linear.w.type),
        *build.parameters(affine),
        build.constant(linear.bias_codes, f"{name}_bias"),
    ]
    attributes = {"channels_last": 1}
    return build.insert(
        "QLinearConv", inputs, linear.output, affine.dtype, domain=CONTRIB, attributes=attributes
    )
