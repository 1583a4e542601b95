"""Codes that ONNX Runtime holds channels-last, where MaxPool and DepthToSpace can be fast.

It turns QLinearConv to channels-last and pushes the Transposes through what follows; where they
meet those of another convolution on all inputs, they vanish. Found by looking at the graphs that
onnxruntime 1.23 and 1.32 execute.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.types import is_dequantize, is_quantize

_CODES = ir.DataType.UINT8
_IMAGE_RANK = 4
_LONG_COPY = 8  # channels that are copied faster than one by one
_TURNED = "QLinearConv"
_CARRIERS = frozenset({"Clip", "Concat", "MaxPool", "QLinearAdd", "QLinearConcat", "QLinearMul"})


def is_channels_last(codes: ir.Value) -> bool:
    """Whether ``codes`` come from convolutions alone, through ops that keep their layout."""
    pending, seen = [codes], {codes}
    while pending:
        producer = pending.pop().producer()
        if producer is None:
            return False
        if producer.op_type == _TURNED and not producer.domain:
            continue
        if producer.op_type not in _CARRIERS:
            return False
        for value in producer.inputs:
            if value is not None and value not in seen and not value.is_initializer():
                seen.add(value)
                pending.append(value)
    return True


def is_turned(value: ir.Value) -> bool:
    """Whether a Transpose is all that made ``value``, but for Q and DQ."""
    node = value.producer()
    while node is not None and (is_quantize(node) or is_dequantize(node)):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node is not None and node.op_type == "Transpose" and not node.domain


def depth_to_space(node: ir.Node, codes: ir.Value, build: Builder) -> ir.Value | None:
    """DepthToSpace of codes that are channels-last: blocks of whole pixels change places.

    None where that does not apply: other layouts, the other mode, sizes that are not known, or
    few channels, whose copies are short. Microseconds behind a convolution, 64 channels 56x56 to
    112x112: 537, the uint8 kernel 1405; 16 channels 28x28: 44 and 89; 3 channels: 41 and 34.
    """
    output, block = node.outputs[0], node.attributes.get_int("blocksize", 1)
    sizes = _image_sizes(codes)
    if sizes is None or node.attributes.get_string("mode", "DCR") != "DCR":
        return None
    channels, height, width = sizes[0] // block**2, sizes[1], sizes[2]
    if channels < _LONG_COPY or codes.dtype is None or not is_channels_last(codes):
        return None

    def transposed(value: ir.Value, *perm: int) -> ir.Value:
        shape = [None] * len(perm)
        attributes = {"perm": perm}
        return build.insert(
            "Transpose", [value], output, value.dtype or _CODES, shape=shape, attributes=attributes
        )

    def reshaped(value: ir.Value, *shape: int) -> ir.Value:
        target = build.constant(np.array(shape, np.int64), "shape")
        known = [size or None for size in shape]
        return build.insert("Reshape", [value, target], output, value.dtype or _CODES, shape=known)

    pixels = transposed(codes, 0, 2, 3, 1)
    blocks = reshaped(pixels, 0, height, width, block, block, channels)
    rows = transposed(blocks, 0, 1, 3, 2, 4, 5)
    image = reshaped(rows, 0, height * block, width * block, channels)
    return build.insert(
        "Transpose", [image], output, codes.dtype, attributes={"perm": [0, 3, 1, 2]}
    )


def _image_sizes(codes: ir.Value) -> tuple[int, int, int] | None:
    """Channels, height and width, where all are known."""
    shape = codes.shape
    if shape is None or len(shape) != _IMAGE_RANK:
        return None
    _, channels, height, width = shape
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        return None
    return channels, height, width
