"""What absorbs a factor per channel of a value: the constants that make its channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.channel_affine import BiasedLinear, ChannelAffine, only_consumer
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.linear_fold import refold, replace_constant, rounded, sinks
from onnxfold.passes.rewriter import Rewriter

_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity")
_NORMALIZATIONS = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("com.microsoft", "SimplifiedLayerNormalization"): (1,),
    ("", "BatchNormalization"): (1, 2),
}
"""Operators whose output is linear in some of their inputs together, one number a channel each."""

Edit = Callable[[Rewriter], None]


@dataclass(frozen=True)
class Channels:
    """The channels of a value.

    Attributes:
        axis: Where they are, counted from the back.
        rank: The value's rank, where known.
        divisors: What to divide them by, float64.
    """

    axis: int
    rank: int | None
    divisors: Array


def division(value: ir.Value, channels: Channels) -> list[Edit] | None:
    """How to divide the channels of ``value`` by changing constants alone.

    Upwards through what treats channels apart: Relu, LeakyRelu, PRelu, sums with a constant a
    channel; up to what has a factor a channel: a normalization, a product with a constant, a
    linear operator. Each must be read by the next one only.

    Returns:
        The edits, to be done in one step; None where something cannot take part.
    """
    edits: list[Edit] = []
    while True:
        node = value.producer()
        if node is None:
            return None
        edit = _scaling(node, value, channels)
        if edit is not None:
            return [*edits, edit]
        passed = _passing(node, channels)
        if passed is None:
            return None
        value, step = passed
        if only_consumer(value) is not node:
            return None
        edits += [] if step is None else [step]


def _scaling(node: ir.Node, value: ir.Value, channels: Channels) -> Edit | None:
    """The edit that ends the way upwards, where ``node`` has a factor a channel."""
    indices = _NORMALIZATIONS.get((node.domain, node.op_type))
    if indices is not None and node.outputs[0] is value:
        return _of_normalization(node, indices, channels)
    if node.op_type == "Mul" and not node.domain:
        return _of_constant(node, channels)
    biased = BiasedLinear.ending_in(value)
    return None if biased is None else _of_linear(biased, channels)


def _passing(node: ir.Node, channels: Channels) -> tuple[ir.Value, Edit | None] | None:
    """The value to divide instead of the node's output, and the edit that goes with it."""
    source = node.inputs[0] if node.inputs else None
    if node.domain or source is None:
        return None
    if node.op_type in _HOMOGENEOUS:
        return source, None
    if node.op_type != "Add":
        return None
    affine = _affine(node, channels)
    edit = None if affine is None else _of_constant(node, channels)
    if affine is None or edit is None:
        return None
    # A source of one channel, which the constant spreads, cannot be divided by many numbers.
    shape = affine.source.shape
    spread = shape is None or shape[channels.axis] != len(channels.divisors)
    return None if spread else (affine.source, edit)


def _affine(node: ir.Node, channels: Channels) -> ChannelAffine | None:
    return ChannelAffine.match(
        node, channels=len(channels.divisors), axis=channels.axis, rank=channels.rank
    )


def _of_constant(node: ir.Node, channels: Channels) -> Edit | None:
    """Divide the constant that Mul or Add combines each channel with."""
    affine = _affine(node, channels)
    if affine is None:
        return None
    index = 1 if node.inputs[0] is affine.source else 0
    constant = constant_array(node.inputs[index])
    if constant is None:
        return None
    vector = affine.scale if node.op_type == "Mul" else affine.shift
    shape = (len(vector),) + (1,) * (-channels.axis - 1)
    new = _rounded((vector / channels.divisors).reshape(shape), constant.dtype)
    if new is None:
        return None
    return lambda rewriter: replace_constant(rewriter, node, index, new)


def _of_normalization(node: ir.Node, indices: tuple[int, ...], channels: Channels) -> Edit | None:
    if node.op_type == "BatchNormalization":
        if _affine(node, channels) is None:
            return None
    elif channels.axis != -1:
        return None
    new: dict[int, Array] = {}
    for index in indices:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        constant = constant_array(value)
        if constant is None or constant.shape != channels.divisors.shape:
            return None
        divided = _rounded(constant.astype(np.float64) / channels.divisors, constant.dtype)
        if divided is None:
            return None
        new[index] = divided

    def edit(rewriter: Rewriter) -> None:
        for index, array in new.items():
            replace_constant(rewriter, node, index, array)

    return edit


def _of_linear(biased: BiasedLinear, channels: Channels) -> Edit | None:
    linear = biased.linear
    if not _same_axis(linear, channels) or linear.out_channels != len(channels.divisors):
        return None
    weights = linear.scale_outputs(1.0 / channels.divisors)
    bias = biased.bias / channels.divisors
    unfit = any(rounded(each, linear.dtype) is None for each in (weights, bias))
    if unfit or sinks(weights, linear.dtype):
        return None
    return lambda rewriter: _refold(rewriter, biased, weights, bias)


def _refold(rewriter: Rewriter, biased: BiasedLinear, weights: Array, bias: Array) -> None:
    rewriter.add_source(biased.linear.node)
    refold(rewriter, biased, weights, bias)


def _same_axis(linear: LinearOp, channels: Channels) -> bool:
    axis = linear.output_channel_axis
    if axis < 0:
        return axis == channels.axis
    rank = linear.output_rank
    return rank is not None and axis - rank == channels.axis


def _rounded(array: Array, dtype: np.dtype[np.generic]) -> Array | None:
    kind = ir.DataType.from_numpy(dtype)
    return None if sinks(array, kind) else rounded(array, kind)
