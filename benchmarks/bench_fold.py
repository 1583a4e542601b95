"""Latency of fake-quantized networks: float, as ONNX Runtime runs the Q/DQ graph, and folded.

For each network the three models take turns in one process, on one thread and as deployed; the
medians are printed, and the gain of the fold over ONNX Runtime's own fusion: the median of the
ratios within each turn. ``--json`` prints the figures for machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.types import DEQUANTIZE, QUANTIZE
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import FOLD, TIDY
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.timing import Timing, measure_interleaved

_FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
_ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)
_CONFIGS = (_ONE_THREAD, DEPLOYMENT)
_ROUNDS = 25
_MOST_SECONDS = 6.0


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
}


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


def measure(model: onnx.ModelProto) -> dict[str, dict[str, Timing]]:
    """Time a fake-quantized network in its three forms, in each configuration."""
    passes = parse_passes(f"{FOLD},fold-qdq,{TIDY}")
    folded = Pipeline(passes).run(ir.from_proto(model)).model
    forms = {"qdq": model, "float": to_float(model), "folded": ir.to_proto(folded)}
    value = model.graph.input[0]
    shape = [dim.dim_value or 8 for dim in value.type.tensor_type.shape.dim]
    numbers = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return {
        config.name: measure_interleaved(
            {name: Session(each, config) for name, each in forms.items()},
            [{value.name: numbers}],
            rounds=_ROUNDS,
            max_seconds=_MOST_SECONDS,
        )
        for config in _CONFIGS
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    options = parser.parse_args(arguments)
    results = {name: measure(build()) for name, build in NETWORKS.items()}
    if options.json:
        rows = {
            name: {
                config: {form: timing.to_json() for form, timing in timings.items()}
                for config, timings in row.items()
            }
            for name, row in results.items()
        }
        print(json.dumps(rows, indent=2))
        return 0
    columns = f"{'float':>9s} {'ORT on QDQ':>11s} {'folded':>9s} {'gain':>6s}   (ms)"
    print(f"{'network':20s} {'threads':>11s} {columns}")
    for name, row in results.items():
        for config, timings in row.items():
            figures = {form: timing.median_ms for form, timing in timings.items()}
            gain = 1 / timings["folded"].relative
            cells = f"{figures['float']:9.3f} {figures['qdq']:11.3f} {figures['folded']:9.3f}"
            print(f"{name:20s} {config:>11s} {cells} {gain:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
