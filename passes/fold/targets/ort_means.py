"""Means in ONNX Runtime's integer kernels: windows as a convolution, whole maps as one mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import AveragePool, Operand, Reduction
from onnxfold.passes.fold.targets.builder import CONTRIB, Builder

_CHANNEL_AXIS = 1
_IMAGE_RANK = 4


def average_pool(pool: AveragePool, build: Builder) -> ir.Value | None:
    """A mean over windows; None where no integer kernel counts elements as this pool does.

    Over windows it is the depthwise convolution with weights 1 / n: codes 1 of scale 1 / n.
    QLinearAveragePool is 5 to 15 times slower (see ``costs``).
    """
    if _covers_all(pool):
        return _global(pool.operand, pool.type, pool.node.outputs[0], build, channels_last=False)
    channels = _channels(pool.operand)
    attributes = pool.node.attributes
    kernel = attributes.get_ints("kernel_shape", ())
    if channels is None or not _counts_every_element(pool.node):
        return None
    output = pool.node.outputs[0]
    name = output.name or "average"
    one_over_n = np.asarray(1.0 / math.prod(kernel), np.float32)
    weights = AffineType(one_over_n, np.zeros((), np.int8), ir.DataType.INT8)
    ones = np.ones((channels, 1, *kernel), np.int8)
    inputs = [
        build.operand(pool.operand, name),
        *build.parameters(pool.operand.type),
        build.constant(ones, f"{name}_ones"),
        *build.parameters(weights),
        *build.parameters(pool.type),
    ]
    kept = {
        key: attributes[key]
        for key in ("kernel_shape", "strides", "pads", "dilations", "auto_pad")
        if key in attributes
    }
    return build.insert(
        "QLinearConv", inputs, output, pool.type.dtype, attributes={**kept, "group": channels}
    )


def is_mean_of_maps(reduction: Reduction) -> bool:
    """Whether it is what QLinearGlobalAveragePool computes: a mean over the axes of an image."""
    if reduction.node.op_type == "GlobalAveragePool":
        return True
    return reduction.node.op_type == "ReduceMean" and _map_axes(reduction) is not None


def mean_of_maps(reduction: Reduction, build: Builder) -> ir.Value:
    """GlobalAveragePool, or a ReduceMean for which ``is_mean_of_maps`` holds."""
    output = reduction.node.outputs[0]
    if reduction.node.op_type == "GlobalAveragePool":
        return _global(reduction.operand, reduction.type, output, build, channels_last=False)
    channels_last = _map_axes(reduction) == "NHWC"
    if reduction.keepdims:
        return _global(
            reduction.operand, reduction.type, output, build, channels_last=channels_last
        )
    mean = _global(
        reduction.operand,
        reduction.type,
        output,
        build,
        channels_last=channels_last,
        shape=[None] * _IMAGE_RANK,
    )
    shape = build.constant(np.array([0, -1], np.int64), "shape")
    return build.insert("Reshape", [mean, shape], output, reduction.type.dtype)


def _global(
    operand: Operand,
    affine: AffineType,
    output: ir.Value,
    build: Builder,
    *,
    channels_last: bool,
    shape: Sequence[None] | None = None,
) -> ir.Value:
    inputs = [
        build.operand(operand, output.name or "average"),
        *build.parameters(operand.type),
        *build.parameters(affine),
    ]
    return build.insert(
        "QLinearGlobalAveragePool",
        inputs,
        output,
        affine.dtype,
        domain=CONTRIB,
        attributes={"channels_last": 1} if channels_last else None,
        shape=shape,
    )


def _map_axes(reduction: Reduction) -> str | None:
    """The layout in which the reduced axes are those of an image: NCHW or NHWC."""
    shape = _shape(reduction.operand)
    if shape is None or len(shape) != _IMAGE_RANK:
        return None
    if reduction.axes == (2, 3):
        return "NCHW"
    return "NHWC" if reduction.axes == (1, 2) else None


def _covers_all(pool: AveragePool) -> bool:
    shape = _shape(pool.operand)
    attributes = pool.node.attributes
    if shape is None or any(attributes.get_ints("pads", ())) or _is_padded(pool.node):
        return False
    return list(attributes.get_ints("kernel_shape", ())) == list(shape)[2:]


def _counts_every_element(node: ir.Node) -> bool:
    """Whether every window has as many elements, those of the padding included."""
    attributes = node.attributes
    if attributes.get_int("ceil_mode", 0) or _is_padded(node):
        return False
    padded = any(attributes.get_ints("pads", ()))
    return not padded or attributes.get_int("count_include_pad", 0) == 1


def _is_padded(node: ir.Node) -> bool:
    return node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _channels(operand: Operand) -> int | None:
    shape = _shape(operand)
    if shape is None or len(shape) <= _CHANNEL_AXIS:
        return None
    channels = shape[_CHANNEL_AXIS]
    return channels if isinstance(channels, int) else None


def _shape(operand: Operand) -> ir.Shape | None:
    return None if operand.value is None else operand.value.shape
