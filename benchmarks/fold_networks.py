"""The networks that the fold is measured on: layers written here, fixtures, and real models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.types import DEQUANTIZE, QUANTIZE

_FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
_REAL = (
    "image-classification",
    "keyword-spotting",
    "visual-wake-words",
    "keyword-spotting-mobilenetv2",
    "anomaly-detection",
    "rock-paper-scissors",
    "audio-example1",
)


class Net:
    """A fake-quantized network written node by node; u8 activations, s8 per-channel weights."""

    def __init__(self, shape: Sequence[int], *, signed: bool = False) -> None:
        """Start with one quantized input of ``shape``; int8 activations where ``signed``."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape = list(shape)
        self.dtype = np.int8 if signed else np.uint8
        self.random = np.random.default_rng(0)
        self.value = self.fake("x", 0.02, 0 if signed else 128)

    def constant(self, array: Any) -> str:
        """An initializer."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def fake(self, value: str, scale: float, zero_point: int) -> str:
        """A Q/DQ pair."""
        grid = self.constant(np.float32(scale)), self.constant(self.dtype(zero_point))
        return self.op(DEQUANTIZE, self.op(QUANTIZE, value, *grid), *grid)

    def weights(self, shape: Sequence[int], axis: int) -> str:
        """Dequantized int8 weights, one scale an output channel."""
        codes = self.random.integers(-127, 128, shape).astype(np.int8)
        scale = np.full(shape[axis], 0.01, np.float32)
        zeros = np.zeros(shape[axis], np.int8)
        inputs = self.constant(codes), self.constant(scale), self.constant(zeros)
        return self.op(DEQUANTIZE, *inputs, axis=axis)

    def model(self, output: str) -> onnx.ModelProto:
        """The network as a model with output ``output``."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def conv_relu(*, signed: bool = False) -> onnx.ModelProto:
    """Two 3x3 convolutions, 64 channels at 56x56, with a Relu the range does not imply."""
    net = Net((1, 64, 56, 56), signed=signed)
    value = net.value
    for _ in range(2):
        weights = net.weights((64, 64, 3, 3), 0)
        value = net.op("Relu", net.op("Conv", value, weights, pads=[1, 1, 1, 1]))
        value = net.fake(value, 0.5, 0 if signed else 100)
    return net.model(value)


def residual_pool() -> onnx.ModelProto:
    """Convolution, residual Add, MaxPool, AveragePool: a block of an image classifier."""
    net = Net((1, 32, 48, 48))
    weights = net.weights((32, 32, 3, 3), 0)
    branch = net.fake(net.op("Conv", net.value, weights, pads=[1, 1, 1, 1]), 0.5, 128)
    value = net.fake(net.op("Add", branch, net.value), 0.5, 128)
    value = net.op("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = net.fake(value, 0.5, 128)
    value = net.op("AveragePool", value, kernel_shape=[3, 3], strides=[2, 2])
    return net.model(net.fake(value, 0.5, 128))


def dense() -> onnx.ModelProto:
    """Three 768x768 products with bias, of which the last is not quantized."""
    net = Net((128, 768))
    value = net.value
    for last in (False, False, True):
        value = net.op("MatMul", value, net.weights((768, 768), 1))
        bias = net.constant(net.random.standard_normal(768).astype(np.float32))
        value = net.op("Add", value, bias)
        value = value if last else net.fake(value, 0.5, 128)
    return net.model(value)


def attention() -> onnx.ModelProto:
    """Scores, Softmax and values of one attention layer: 8 heads, 64 tokens."""
    net = Net((8, 64, 64))
    keys = net.op("Transpose", net.value, perm=[0, 2, 1])
    scores = net.fake(net.op("MatMul", net.value, keys), 0.05, 128)
    weights = net.fake(net.op("Softmax", scores), 1 / 255, 0)
    return net.model(net.fake(net.op("MatMul", weights, net.value), 0.02, 128))


def conv_bias() -> onnx.ModelProto:
    """A 3x3 convolution, 64 channels at 56x56, whose bias is added behind it."""
    net = Net((1, 64, 56, 56))
    product = net.op("Conv", net.value, net.weights((64, 64, 3, 3), 0), pads=[1, 1, 1, 1])
    bias = net.constant(net.random.standard_normal((1, 64, 1, 1)).astype(np.float32))
    return net.model(net.fake(net.op("Add", product, bias), 0.5, 128))


def conv_reshaped() -> onnx.ModelProto:
    """A 3x3 convolution, 64 channels at 56x56, whose weights are reshaped to their shape."""
    net = Net((1, 64, 56, 56))
    shape = net.constant(np.array([64, 64, 3, 3]))
    weights = net.op("Reshape", net.weights((64, 576), 0), shape)
    return net.model(net.fake(net.op("Conv", net.value, weights, pads=[1] * 4), 0.5, 128))


def conv_transpose() -> onnx.ModelProto:
    """A 2x2 transposed convolution of stride 2, 64 channels from 56x56 to 112x112."""
    net = Net((1, 64, 56, 56))
    weights = net.weights((64, 64, 2, 2), 1)
    return net.model(
        net.fake(net.op("ConvTranspose", net.value, weights, strides=[2, 2]), 0.5, 128)
    )


def dense_unrounded() -> onnx.ModelProto:
    """A 768x768 product with bias, left as it is."""
    net = Net((128, 768))
    product = net.op("MatMul", net.value, net.weights((768, 768), 1))
    bias = net.constant(net.random.standard_normal(768).astype(np.float32))
    return net.model(net.op("Add", product, bias))


def conv_relu_int8() -> onnx.ModelProto:
    """The convolutions with int8 activations."""
    return conv_relu(signed=True)


def classifier() -> onnx.ModelProto:
    """The fixture: convolutions, residual Add, Concat, pools and a dense layer at 16x16."""
    return onnx.load(_FIXTURES / "qdq_net.onnx")


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv + relu": conv_relu,
    "conv + relu, int8": conv_relu_int8,
    "residual, pools": residual_pool,
    "dense + bias": dense,
    "attention": attention,
    "classifier": classifier,
    "conv + add": conv_bias,
    "conv, reshaped weights": conv_reshaped,
    "transposed conv": conv_transpose,
    "dense, unrounded": dense_unrounded,
}

USEFUL = (
    "conv + relu",
    "conv + relu, int8",
    "conv + add",
    "conv, reshaped weights",
    "dense, unrounded",
)
"""Layers of useful size in patterns that ONNX Runtime leaves in float."""


def to_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float network: activations unrounded, weights dequantized constants."""
    result = ir.from_proto(model)
    for node in [each for each in result.graph if each.op_type == QUANTIZE]:
        _bypass(node, node.inputs[0])
    for node in [each for each in result.graph if each.op_type == DEQUANTIZE]:
        weights = _real_weights(node)
        if weights is not None:
            result.graph.register_initializer(weights)
        _bypass(node, weights or node.inputs[0])
    return ir.to_proto(result)


def _bypass(node: ir.Node, value: ir.Value | None) -> None:
    assert value is not None
    assert node.graph is not None
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def _real_weights(dequantize: ir.Node) -> ir.Value | None:
    """The dequantized constant as an initializer; None for activations."""
    codes, scale = constant_array(dequantize.inputs[0]), constant_array(dequantize.inputs[1])
    if codes is None or scale is None:
        return None
    axis = dequantize.attributes.get_int("axis", 1)
    shape = [-1 if i == axis else 1 for i in range(codes.ndim)]
    name = f"{dequantize.name}_weights"
    tensor = ir.tensor(codes.astype(np.float32) * scale.reshape(shape), name=name)
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        name: What the table calls it.
        quantized: The fake-quantized model.
        real: The float model.
        useful: Whether it is a layer of useful size that ONNX Runtime leaves in float.
    """

    name: str
    quantized: onnx.ModelProto
    real: onnx.ModelProto
    useful: bool = False


def networks(pairs: Path | None, *, real: bool) -> Iterator[Network]:
    """The built-in networks, the fixtures, and the real models asked for."""
    for name, build in NETWORKS.items():
        model = build()
        yield Network(name, model, to_float(model), name in USEFUL)
    for path in sorted(_FIXTURES.glob("tiny_*_float.onnx")):
        name = path.stem.removesuffix("_float")
        quantized = onnx.load(path.with_name(f"{name}.onnx"))
        yield Network(name.replace("_", " "), quantized, onnx.load(path))
    if pairs is not None:
        for path in sorted(pairs.glob("*.int8.onnx")):
            name = path.name.removesuffix(".int8.onnx")
            original = onnx.load(path.with_name(f"{name}.float.onnx"))
            yield Network(name, onnx.load(path), original)
    if real:
        yield from _real_networks()
    elif pairs is None:
        print("SKIPPED int8 TFLite models: --real fetches and converts them", file=sys.stderr)


def _real_networks() -> Iterator[Network]:
    """MLPerf Tiny style int8 TFLite models, fetched, and converted by one process."""
    sys.path.insert(0, str(_FIXTURES.parent))
    convert: Any = importlib.import_module("fixtures.convert_tflite").convert_all
    fetch_error: type[Exception] = importlib.import_module("fixtures.fetch").FetchError
    pairs = {name: (f"silabs-{name}", f"silabs-{name}-float") for name in _REAL}
    try:
        paths = convert([each for pair in pairs.values() for each in pair])
    except fetch_error as error:
        print(f"SKIPPED int8 TFLite models: {error}", file=sys.stderr)
        return
    for name, (quantized, original) in pairs.items():
        yield Network(name, onnx.load(paths[quantized]), onnx.load(paths[original]))
