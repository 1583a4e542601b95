"""Pairs of linear operators between which channels may be scaled at one end and back at the other.

What lies between must commute with a positive factor per channel: Relu, LeakyRelu and PRelu are
positively homogeneous, pooling and zero padding treat channels apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.channel_affine import BiasedLinear, only_consumer
from onnxfold.passes.constants import constant_ints, constant_scalar
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.walk import use_count

_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity")
_POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_VIEWS = ("Flatten", "Reshape", "Squeeze")
_CHANNEL_AXES = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}


@dataclass(frozen=True, eq=False)
class ChannelPath:
    """The output channels of ``first`` are the input channels of ``second``, up to activations."""

    first: BiasedLinear
    second: LinearOp


@dataclass(frozen=True)
class Obstacle:
    """Why the output channels of a linear operator cannot be scaled."""

    node: ir.Node
    reason: str
    advice: str = ""


def channel_paths(graph: ir.Graph) -> Iterator[ChannelPath | Obstacle]:
    """The pairs of ``graph``, in its order; an obstacle where a pair might have been."""
    for node in graph:
        linear = LinearOp.match(node)
        biased = None if linear is None else BiasedLinear.around(linear)
        if biased is None or biased.linear.weight_index != 1:
            continue
        found = _follow(biased)
        if found is not None:
            yield found


def _follow(first: BiasedLinear) -> ChannelPath | Obstacle | None:
    """Walk from ``first`` to the next linear operator."""
    value, axis = first.output, _CHANNEL_AXES[first.linear.node.op_type]
    while True:
        if use_count(value) > 1:
            reason = "several nodes read its output, and each would have to undo the scaling"
            return Obstacle(first.linear.node, reason)
        reader = only_consumer(value)
        if reader is None or reader.domain:
            return None
        second = LinearOp.match(reader)
        if second is not None:
            return _pair(first, second, value, axis)
        if reader.op_type == "Clip" and not _is_relu(reader):
            return Obstacle(
                reader,
                "its limits are the same for all channels, which scaling would tell apart",
                "train or fine-tune with Relu where the limit is not needed",
            )
        if reader.op_type in _VIEWS and axis == 1 and _drops_ones(reader, first):
            axis = -1
        elif not _keeps_channels(reader, value, axis):
            return None
        value = reader.outputs[0]


def _pair(first: BiasedLinear, second: LinearOp, value: ir.Value, axis: int) -> ChannelPath | None:
    fits = (
        second.data is value
        and second.weight_index == 1
        and second.data_channel_axis == axis
        and second.in_channels == first.linear.out_channels
        and second.dtype == first.linear.dtype
    )
    return ChannelPath(first, second) if fits else None


def _keeps_channels(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """Whether scaling a channel of ``value`` scales the same channel of the node's output."""
    if node.inputs[0] is not value:
        return False
    if node.op_type in _HOMOGENEOUS or node.op_type == "Clip":
        return True
    if axis != 1:
        return False
    if node.op_type in _POOLING:
        return not any(use_count(output) or output.is_graph_output() for output in node.outputs[1:])
    return node.op_type == "Pad" and _pads_with_zeros(node)


def _is_relu(clip: ir.Node) -> bool:
    """Whether a Clip has no limit but 0."""
    limits: list[float | None] = []
    for index, (name, open_end) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        value = clip.inputs[index] if index < len(clip.inputs) else None
        # Before opset 11 the limits are attributes.
        limits.append(
            clip.attributes.get_float(name, open_end) if value is None else constant_scalar(value)
        )
    low, high = limits
    if low is None or high is None:
        return False
    return low in (0.0, -math.inf) and high >= 3.4e38


def _pads_with_zeros(node: ir.Node) -> bool:
    """Whether a Pad leaves batch and channels alone and adds nothing but zeros and copies."""
    pads = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return False
    rank = len(pads) // 2
    if any(pads[index] for index in (0, 1, rank, rank + 1)):
        return False
    if node.attributes.get_string("mode", "constant") != "constant" or len(node.inputs) < 3:
        return True
    return node.inputs[2] is None or constant_scalar(node.inputs[2]) == 0


def _drops_ones(node: ir.Node, first: BiasedLinear) -> bool:
    """Whether a Reshape, Flatten or Squeeze makes [N, C] of [N, C, 1, 1]."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return False
    channels = first.linear.out_channels
    spatial = [source.shape[axis] for axis in range(2, len(source.shape))]
    if not all(size == 1 for size in spatial) or source.shape[1] != channels:
        return False
    return len(result.shape) == 2 and result.shape[1] == channels
