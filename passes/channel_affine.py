"""Reading a scale and a shift per channel, and the whole bias of a linear operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.walk import use_count


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """``scale * x + shift``, channel by channel.

    Attributes:
        source: x.
        scale: float64, [channels].
        shift: float64, [channels].
    """

    source: ir.Value
    scale: Array
    shift: Array

    @classmethod
    def match(
        cls, node: ir.Node | None, *, channels: int, axis: int, rank: int | None
    ) -> ChannelAffine | None:
        """Read Mul, Div, Add, Sub or BatchNormalization with constant operands.

        Args:
            node: The operator.
            channels: How many channels the other operand has; more than that is refused, since
                the result would be larger than the operand.
            axis: Where the channels are; negative counts from the back.
            rank: The operand's rank, where known.

        Returns:
            None where ``node`` is something else, is not constant along all other axes, or has a
            scale or shift that is not finite.
        """
        if node is None or node.domain:
            return None
        if node.op_type == "BatchNormalization":
            affine = _match_batch_norm(node, channels, axis, rank)
        else:
            affine = _match_arithmetic(node, channels, axis, rank)
        if affine is None or not np.isfinite(affine.scale).all():
            return None
        return affine if np.isfinite(affine.shift).all() else None

    @property
    def shifts(self) -> bool:
        """Whether any channel is shifted."""
        return bool(np.any(self.shift))


@dataclass(frozen=True, eq=False)
class BiasedLinear:
    """A linear operator with everything that adds a constant to its output channels.

    Attributes:
        linear: The operator.
        add: The Add of a constant that follows it, or None.
        bias: The whole bias, float64, [out_channels].
        output: The biased result.
    """

    linear: LinearOp
    add: ir.Node | None
    bias: Array
    output: ir.Value

    @classmethod
    def ending_in(cls, value: ir.Value) -> BiasedLinear | None:
        """The operator (and Add) that produce ``value``."""
        producer = value.producer()
        linear = LinearOp.match(producer)
        if linear is not None:
            bias = linear.channel_bias
            return None if bias is None else cls(linear, None, bias, value)
        if producer is None or producer.op_type != "Add" or producer.domain:
            return None
        for operand in producer.inputs:
            linear = LinearOp.match(operand.producer()) if operand is not None else None
            if linear is not None:
                return cls._with_add(linear, producer)
        return None

    @classmethod
    def around(cls, linear: LinearOp) -> BiasedLinear | None:
        """``linear`` with the Add that follows it, where it has no bias of its own."""
        consumer = only_consumer(linear.output)
        if linear.bias_index is None and consumer is not None and consumer.op_type == "Add":
            biased = cls._with_add(linear, consumer)
            if biased is not None:
                return biased
        bias = linear.channel_bias
        return None if bias is None else cls(linear, None, bias, linear.output)

    @classmethod
    def _with_add(cls, linear: LinearOp, add: ir.Node) -> BiasedLinear | None:
        bias = linear.channel_bias
        affine = ChannelAffine.match(
            add,
            channels=linear.out_channels,
            axis=linear.output_channel_axis,
            rank=linear.output_rank,
        )
        if bias is None or affine is None or affine.source is not linear.output:
            return None
        if only_consumer(linear.output) is not add:
            return None
        return cls(linear, add, bias + affine.shift, add.outputs[0])


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, once, in the graph that makes it; else None."""
    if use_count(value) != 1 or value.is_graph_output():
        return None
    consumer = next(iter(value.uses())).node
    return consumer if consumer.graph is value.graph else None


def channel_vector(array: Array, channels: int, axis: int, rank: int | None) -> Array | None:
    """A constant that broadcasts along one axis only, as float64 [channels].

    Args:
        array: The constant.
        channels: The size of the axis in the operand that the constant meets.
        axis: The axis; negative counts from the back.
        rank: The operand's rank, where known.

    Returns:
        None where the constant differs along another axis, or makes the operand larger.
    """
    if array.ndim > (1 if rank is None else rank):
        return None
    wide = array.astype(np.float64)
    if array.size == 1:
        return wide.reshape(-1) * np.ones(channels)
    if axis >= 0 and rank is None:
        return None
    position = array.ndim + (axis - (rank or 0) if axis >= 0 else axis)
    others = [size for i, size in enumerate(array.shape) if i != position]
    if position < 0 or array.shape[position] != channels or any(size != 1 for size in others):
        return None
    return wide.reshape(-1)


def _match_arithmetic(
    node: ir.Node, channels: int, axis: int, rank: int | None
) -> ChannelAffine | None:
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    constant_first = constant_array(left) is not None
    source, constant = (right, left) if constant_first else (left, right)
    array = constant_array(constant)
    if source is None or array is None or constant_array(source) is not None:
        return None
    vector = channel_vector(array, channels, axis, rank)
    if vector is None:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Mul":
            return ChannelAffine(source, vector, zeros)
        case "Add":
            return ChannelAffine(source, ones, vector)
        case "Sub" if constant_first:
            return ChannelAffine(source, -ones, vector)
        case "Sub":
            return ChannelAffine(source, ones, -vector)
        case "Div" if not constant_first and np.all(vector != 0):
            return ChannelAffine(source, 1.0 / vector, zeros)
        case _:
            return None


def _match_batch_norm(
    node: ir.Node, channels: int, axis: int, rank: int | None
) -> ChannelAffine | None:
    attributes = node.attributes
    if attributes.get_int("training_mode", 0) or not attributes.get_int("spatial", 1):
        return None
    if any(use_count(output) or output.is_graph_output() for output in node.outputs[1:]):
        return None
    if rank is None or rank < 2 or axis % rank != 1 or len(node.inputs) != 5:
        return None
    source = node.inputs[0]
    parameters = [constant_array(value) for value in node.inputs[1:]]
    if source is None or any(each is None or each.shape != (channels,) for each in parameters):
        return None
    gamma, beta, mean, variance = (
        each.astype(np.float64) for each in parameters if each is not None
    )
    with np.errstate(all="ignore"):
        scale: Array = gamma / np.sqrt(variance + attributes.get_float("epsilon", 1e-5))
        return ChannelAffine(source, scale, beta - mean * scale)
