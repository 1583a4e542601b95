"""What Conv, ConvTranspose, Gemm and MatMul have in common: constant weights, channels, a bias."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array, constant_tensor

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators of ai.onnx that ``LinearOp.match`` understands."""

FLOAT_TYPES = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
)
"""The element types in which weights can be folded."""


@dataclass(frozen=True, eq=False)
class LinearOp:
    """A linear operator with constant weights, seen without its layout.

    Real outputs are ``alpha * (weights . data) + beta * bias``. Channels are counted over all
    groups: an output channel of a grouped operator is ``group * (out_channels / groups) + i``.

    Attributes:
        node: The operator.
        data_index: Which input of the node is the data.
        weight_index: Which input is the weights.
        weight_shape: Their shape as stored: Conv [M, C/g, k...], ConvTranspose [C, M/g, k...],
            Gemm [K, N] or (transB) [N, K], MatMul [K, N], MatMul with the constant on the
            left [M, K].
        dtype: Element type of weights, data and output.
        output_axis: Axis of the stored weights that counts output channels; inside one group
            for ConvTranspose.
        input_axis: Axis of the stored weights that counts input channels; inside one group
            for Conv.
        groups: 1 for Gemm and MatMul.
        output_channel_axis: Axis of the node's output that holds the output channels; counted
            from the front for Conv and ConvTranspose (1), from the back (negative) otherwise.
        data_channel_axis: Likewise, the axis of the data that holds the input channels.
        alpha: Factor on the product (Gemm), else 1.
        beta: Factor on the bias (Gemm), else 1.
    """

    node: ir.Node
    data_index: int
    weight_index: int
    weight_shape: tuple[int, ...]
    dtype: ir.DataType
    output_axis: int
    input_axis: int
    groups: int = 1
    output_channel_axis: int = 1
    data_channel_axis: int = 1
    alpha: float = 1.0
    beta: float = 1.0

    @classmethod
    def match(cls, node: ir.Node | None) -> LinearOp | None:
        """Describe ``node``; None where it is not linear with constant float weights."""
        if node is None or node.domain:
            return None
        match node.op_type:
            case "Conv":
                return _match_conv(node, transposed=False)
            case "ConvTranspose":
                return _match_conv(node, transposed=True)
            case "Gemm":
                return _match_gemm(node)
            case "MatMul":
                return _match_matmul(node)
            case _:
                return None

    @property
    def data(self) -> ir.Value:
        """The operand that is not constant."""
        value = self.node.inputs[self.data_index]
        assert value is not None
        return value

    @property
    def weight(self) -> ir.Value:
        """The constant operand."""
        value = self.node.inputs[self.weight_index]
        assert value is not None
        return value

    @property
    def weights(self) -> Array:
        """The weights as stored (shared memory: do not write)."""
        array = constant_array(self.weight)
        assert array is not None
        return array

    @property
    def output(self) -> ir.Value:
        """The node's output."""
        return self.node.outputs[0]

    @property
    def bias_index(self) -> int | None:
        """Which input takes a bias; None for MatMul, which has none."""
        return None if self.node.op_type == "MatMul" else 2

    @property
    def bias(self) -> ir.Value | None:
        """The bias operand, constant or not; None where absent."""
        index = self.bias_index
        return None if index is None or index >= len(self.node.inputs) else self.node.inputs[index]

    @property
    def channel_bias(self) -> Array | None:
        """``beta * bias`` in float64, shape [out_channels]; zeros where there is no bias.

        None where the bias is not constant, or differs along another axis (Gemm).
        """
        if self.bias is None:
            return np.zeros(self.out_channels)
        bias = constant_array(self.bias)
        if bias is None or math.prod(bias.shape[:-1]) != 1:
            return None
        bias = self.beta * bias.astype(np.float64).reshape(-1)
        return bias * np.ones(self.out_channels)

    @property
    def out_channels(self) -> int:
        """Number of output channels, over all groups."""
        per_group = self.weight_shape[self.output_axis]
        return per_group * self.groups if self.node.op_type == "ConvTranspose" else per_group

    @property
    def in_channels(self) -> int:
        """Number of input channels, over all groups."""
        per_group = self.weight_shape[self.input_axis]
        return per_group * self.groups if self.node.op_type == "Conv" else per_group

    @property
    def reduction_axes(self) -> tuple[int, ...]:
        """Axes of the stored weights along which the operator sums."""
        return tuple(i for i in range(len(self.weight_shape)) if i != self.output_axis)

    @property
    def output_rank(self) -> int | None:
        """Rank of the output; None where it is not known (MatMul without shapes)."""
        if self.node.op_type != "MatMul":
            return len(self.weight_shape)
        if self.output.shape is not None:
            return len(self.output.shape)
        return None if self.data.shape is None else len(self.data.shape)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial shape of the kernel; empty for Gemm and MatMul."""
        return self.weight_shape[2:]

    def scale_outputs(self, factors: Array) -> Array:
        """Stored weights times one factor per output channel.

        Args:
            factors: [out_channels].

        Returns:
            float64, of ``weight_shape``.
        """
        return self._scale(factors, self.output_axis)

    def scale_inputs(self, factors: Array) -> Array:
        """Stored weights times one factor per input channel.

        Args:
            factors: [in_channels].

        Returns:
            float64, of ``weight_shape``.
        """
        return self._scale(factors, self.input_axis)

    def response_to(self, levels: Array) -> Array:
        """What data that is constant in each channel gives, bias and borders left out.

        Args:
            levels: The data's value in each channel, [in_channels].

        Returns:
            float64, [out_channels]: alpha times the sum over all taps of weights * level.
        """
        weights = self._split(self.scale_inputs(levels))
        kept = {0, self.output_axis + 1}
        axes = tuple(axis for axis in range(weights.ndim) if axis not in kept)
        response: Array = self.alpha * weights.sum(axis=axes).reshape(-1)
        return response

    def _split(self, weights: Array) -> Array:
        """Weights with the groups as an axis of their own, in front."""
        first, *rest = self.weight_shape
        return weights.reshape(self.groups, first // self.groups, *rest)

    def _scale(self, factors: Array, axis: int) -> Array:
        shape = [self.groups] + [1] * len(self.weight_shape)
        shape[axis + 1] = -1
        scaled = self._split(self.weights.astype(np.float64)) * factors.reshape(shape)
        return scaled.reshape(self.weight_shape)


def _float_weights(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    tensor = constant_tensor(node.inputs[index]) if index < len(node.inputs) else None
    return tensor if tensor is not None and tensor.dtype in FLOAT_TYPES else None


def _match_conv(node: ir.Node, *, transposed: bool) -> LinearOp | None:
    tensor = _float_weights(node, 1)
    if tensor is None or node.inputs[0] is None:
        return None
    shape = tuple(tensor.shape.numpy())
    groups = node.attributes.get_int("group", 1)
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        return None
    return LinearOp(
        node=node,
        data_index=0,
        weight_index=1,
        weight_shape=shape,
        dtype=tensor.dtype,
        output_axis=1 if transposed else 0,
        input_axis=0 if transposed else 1,
        groups=groups,
    )


def _match_gemm(node: ir.Node) -> LinearOp | None:
    tensor = _float_weights(node, 1)
    if tensor is None or node.inputs[0] is None or constant_tensor(node.inputs[0]) is not None:
        return None
    if len(tensor.shape) != 2:
        return None
    transposed = node.attributes.get_int("transB", 0) != 0
    return LinearOp(
        node=node,
        data_index=0,
        weight_index=1,
        weight_shape=tuple(tensor.shape.numpy()),
        dtype=tensor.dtype,
        output_axis=0 if transposed else 1,
        input_axis=1 if transposed else 0,
        output_channel_axis=-1,
        data_channel_axis=-2 if node.attributes.get_int("transA", 0) else -1,
        alpha=node.attributes.get_float("alpha", 1.0),
        beta=node.attributes.get_float("beta", 1.0),
    )


def _match_matmul(node: ir.Node) -> LinearOp | None:
    left, right = _float_weights(node, 0), _float_weights(node, 1)
    if (left is None) == (right is None):
        return None
    if right is not None and len(right.shape) == 2:
        return LinearOp(
            node=node,
            data_index=0,
            weight_index=1,
            weight_shape=tuple(right.shape.numpy()),
            dtype=right.dtype,
            output_axis=1,
            input_axis=0,
            output_channel_axis=-1,
            data_channel_axis=-1,
        )
    data = node.inputs[1]
    # Data of rank 1 has no column axis: its channels are the last axis, not the one before.
    if left is None or len(left.shape) != 2 or data is None or data.shape is None:
        return None
    channel_axis = -1 if len(data.shape) == 1 else -2
    return LinearOp(
        node=node,
        data_index=1,
        weight_index=0,
        weight_shape=tuple(left.shape.numpy()),
        dtype=left.dtype,
        output_axis=0,
        input_axis=1,
        output_channel_axis=channel_axis,
        data_channel_axis=channel_axis,
    )
