"""Channels of convolutions on constant weights: how many there are, and adding some of weight 0."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.costs import CostTable, convolution_features, integer_family
from onnxfold.passes.rewriter import Rewriter

QUANTIZED_CONVOLUTION = "QLinearConv"
REAL_CONVOLUTION = "Conv"

_IMAGE_RANK = 4
_WEIGHTS = {QUANTIZED_CONVOLUTION: 3, REAL_CONVOLUTION: 1}
_BIAS = {QUANTIZED_CONVOLUTION: 8, REAL_CONVOLUTION: 2}
_WEIGHT_ZERO = 5
_PER_OUTPUT = {QUANTIZED_CONVOLUTION: ((4, 1), (5, 0), (8, 0)), REAL_CONVOLUTION: ((2, 0),)}
"""Inputs with a number for each output channel, and the number that one of weight 0 has."""


def is_convolution(node: ir.Node) -> bool:
    """Whether it is a 2-D convolution on constant weights, of which code 0 stands for 0."""
    place = _WEIGHTS.get(node.op_type)
    if place is None or node.domain or len(node.outputs) != 1:
        return False
    weights = constant_array(node.inputs[place])
    if weights is None or weights.ndim != _IMAGE_RANK:
        return False
    if any(each is not None and constant_array(each) is None for each in node.inputs[1:]):
        return False
    zero = constant_array(node.inputs[_WEIGHT_ZERO]) if place == _WEIGHTS["QLinearConv"] else None
    return zero is None or not np.any(zero)


def group_of(node: ir.Node) -> int:
    """The number of groups of a convolution."""
    return node.attributes.get_int("group", 1)


def weights_of(node: ir.Node) -> Array:
    """The weights, [outputs, inputs, ...], where ``is_convolution`` holds."""
    weights = constant_array(node.inputs[_WEIGHTS[node.op_type]])
    assert weights is not None
    return weights


def channels_of(value: ir.Value) -> int:
    """Channels of an image whose sizes are known but for the batch; else 0."""
    shape = value.shape
    if shape is None or len(shape) != _IMAGE_RANK:
        return 0
    sizes = [size for size in list(shape)[1:] if isinstance(size, int)]
    return sizes[0] if len(sizes) == _IMAGE_RANK - 1 else 0


def pixels_of(value: ir.Value) -> int:
    """Positions of an image; a batch that is not known counts as 1."""
    assert value.shape is not None
    batch, _, *sizes = value.shape
    return math.prod(size for size in (batch, *sizes) if isinstance(size, int))


def integer_cost(node: ir.Node, inputs: int, outputs: int, costs: CostTable) -> float:
    """Microseconds of a QLinearConv, had it that many channels.

    Args:
        node: A node for which ``is_convolution`` holds.
        inputs: Channels of the data that one output reads.
        outputs: Channels of the output.
        costs: What kernels cost.
    """
    group = outputs if group_of(node) > 1 else 1
    pixels = pixels_of(node.outputs[0])
    features = convolution_features(weights_of(node).shape[2:], inputs, outputs, pixels)
    return costs.cost(integer_family(inputs, outputs, group), features)


def resize_channels(value: ir.Value, count: int, rewriter: Rewriter) -> None:
    """Write down that ``value`` has ``count`` channels."""
    assert value.shape is not None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    rewriter.set_type(value, shape=[sizes[0], count, *sizes[2:]])


def add_inputs(node: ir.Node, more: int, rewriter: Rewriter) -> None:
    """Let a convolution read ``more`` channels, with weights of 0."""
    extend(node, _WEIGHTS[node.op_type], 1, more, 0, rewriter)


def add_outputs(node: ir.Node, more: int, rewriter: Rewriter) -> None:
    """Let a convolution compute ``more`` channels, from weights of 0."""
    extend(node, _WEIGHTS[node.op_type], 0, more, 0, rewriter)
    for place, filler in _PER_OUTPUT[node.op_type]:
        if place < len(node.inputs):
            extend(node, place, 0, more, filler, rewriter)


def extend(
    node: ir.Node, place: int, axis: int, more: int, filler: float, rewriter: Rewriter
) -> None:
    """Add ``more`` numbers along ``axis`` of a constant; one scale for all channels stays."""
    value = node.inputs[place]
    constant = constant_array(value)
    if value is None or constant is None or constant.ndim <= axis:
        return
    # Weights and biases are of one channel where they hold one number, not of all.
    own = (_WEIGHTS.get(node.op_type), _BIAS.get(node.op_type))
    if constant.size == 1 and place not in own:
        return
    widths = [(0, more if each == axis else 0) for each in range(constant.ndim)]
    padded: Array = np.pad(constant, widths, constant_values=filler)
    rewriter.set_input(node, place, rewriter.constant(node, padded, name=value.name or "padded"))
