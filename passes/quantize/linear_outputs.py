"""The outputs of linear operators, in float and in Q/DQ graphs alike, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.channel_affine import ChannelAffine, only_consumer
from onnxfold.passes.constants import Array, constant_array, constant_tensor
from onnxfold.passes.linear import LINEAR_OPS


@dataclass(frozen=True, eq=False)
class LinearOutput:
    """A linear operator whose second operand is constant, as it stands or dequantized.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        channels: Number of output channels.
        axis: Axis of the output that holds them: 1 for convolutions, else -1.
    """

    node: ir.Node
    channels: int
    axis: int

    @classmethod
    def match(cls, node: ir.Node) -> LinearOutput | None:
        """Describe ``node``; None where it is something else, or its weights are not constant."""
        if node.domain or node.op_type not in LINEAR_OPS or len(node.inputs) < 2:
            return None
        tensor = _weights(node.inputs[1])
        if tensor is None:
            return None
        shape = tuple(tensor.shape.numpy())
        match node.op_type:
            case "Conv" if len(shape) > 2:
                return cls(node, shape[0], 1)
            case "ConvTranspose" if len(shape) > 2:
                return cls(node, shape[1] * node.attributes.get_int("group", 1), 1)
            case "Gemm" if len(shape) == 2:
                return cls(node, shape[0 if node.attributes.get_int("transB", 0) else 1], -1)
            case "MatMul" if len(shape) == 2:
                return cls(node, shape[1], -1)
            case _:
                return None

    @property
    def add(self) -> ir.Node | None:
        """The Add of a constant bias behind a MatMul, which takes none; None for the others."""
        value = self.node.outputs[0]
        add = only_consumer(value) if self.node.op_type == "MatMul" else None
        if add is None or add.op_type != "Add" or add.domain:
            return None
        rank = None if value.shape is None else len(value.shape)
        affine = ChannelAffine.match(add, channels=self.channels, axis=-1, rank=rank)
        return add if affine is not None and affine.source is value else None

    @property
    def value(self) -> ir.Value:
        """The output, its bias included."""
        return (self.add or self.node).outputs[0]


@dataclass(frozen=True, eq=False)
class Dequantized:
    """What a DequantizeLinear with constant parameters reads.

    Attributes:
        node: The DequantizeLinear.
        codes: Its first input, constant or not.
        scale: float, scalar or 1-D.
    """

    node: ir.Node
    codes: ir.Value
    scale: Array

    @classmethod
    def match(cls, value: ir.Value | None) -> Dequantized | None:
        """Describe the DequantizeLinear that makes ``value``."""
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "DequantizeLinear" or node.domain:
            return None
        codes, scale = node.inputs[0], constant_array(node.inputs[1])
        return None if codes is None or scale is None else cls(node, codes, scale)


def _weights(value: ir.Value | None) -> ir.TensorProtocol | None:
    dequantized = Dequantized.match(value)
    return constant_tensor(value if dequantized is None else dequantized.codes)
