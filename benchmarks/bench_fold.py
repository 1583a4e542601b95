"""Latency of fake-quantized networks: float, as ONNX Runtime runs the Q/DQ graph, and folded.

For each network the four models take turns in one process, on one thread and as deployed: (a)
float, (b) ONNX Runtime on the Q/DQ graph, (c) folded for ort, (d) folded for standard. Printed are
medians (on one thread: of its processor time) and two ratios, each the median of the ratios within
a turn: b/c, the gain of the fold, and c over the better of a and b, which should never be above
1.05. The rows marked * are layers of useful size in patterns that ONNX Runtime leaves in float:
there b/c should be at least 3. Last come the seconds that folding takes, by the number of nodes.

A row above 1.05 is told apart where nothing can be done about it: where the calls of its executed
nodes alone, each with one element, take longer than that ("calls alone").

``--pairs DIR`` measures NAME.int8.onnx against NAME.float.onnx in DIR as well; ``--real`` fetches
and converts int8 TFLite models for that. ``--json`` prints the figures for machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.types import DEQUANTIZE, QUANTIZE
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, Session, SessionConfig
from onnxfold.runtime.timing import Timing, measure_runs

_FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
_ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)
_CONFIGS = (_ONE_THREAD, DEPLOYMENT)
_ROUNDS = 25
_MOST_SECONDS = 4.0
_SAMPLE_SECONDS = 0.004
_WARM_UP = 5
_LIMIT = 1.05
_USEFUL_GAIN = 3.0
_SPEED_NODES = (1_000, 2_000, 5_000, 10_000)
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


def fold(model: onnx.ModelProto, target: str) -> onnx.ModelProto:
    """The model, folded for ``target``."""
    passes = parse_passes(folding(target))
    return ir.to_proto(Pipeline(passes).run(ir.from_proto(model)).model)


def measure(network: Network) -> dict[str, dict[str, Timing]]:
    """Time a network in its four forms, in each configuration; ratios are to the folded one."""
    models = {
        "ort": fold(network.quantized, "ort"),
        "float": network.real,
        "qdq": network.quantized,
        "standard": fold(network.quantized, "standard"),
    }
    return {config.name: _race(models, config) for config in _CONFIGS}


def _race(models: Mapping[str, onnx.ModelProto], config: SessionConfig) -> dict[str, Timing]:
    runs = {name: _prepared(Session(model, config)) for name, model in models.items()}
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        started = time.perf_counter()
        for _ in range(_WARM_UP):
            run()
        seconds = (time.perf_counter() - started) / _WARM_UP
        repeats[name] = max(1, int(_SAMPLE_SECONDS / seconds))
    # The time of one thread does not count what other processes take.
    clock = time.thread_time if config.threads == 1 else time.perf_counter
    return measure_runs([runs], repeats, _ROUNDS, 0.0, _MOST_SECONDS, clock)


def _prepared(session: Session) -> Callable[[], object]:
    """The session on random inputs: a float model and its int8 form take different ones."""
    numbers = np.random.default_rng(1)
    feed: dict[str, Any] = {}
    for spec in session.inputs:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
        if np.dtype(spec.dtype).kind == "f":
            feed[spec.name] = numbers.standard_normal(shape).astype(spec.dtype)
        else:
            limits = np.iinfo(spec.dtype)
            feed[spec.name] = numbers.integers(limits.min, limits.max, shape).astype(spec.dtype)
    return session.prepare(feed)


def folding_seconds(nodes: int) -> float:
    """Processor seconds to fold a chain of about ``nodes`` nodes for ort."""
    net = Net((1, 8, 8, 8))
    value = net.value
    while len(net.nodes) < nodes:
        value = net.op("Relu", net.op("Conv", value, net.weights((8, 8, 1, 1), 0)))
        value = net.fake(value, 0.5, 100)
    model = ir.from_proto(net.model(value))
    started = time.process_time()
    Pipeline(parse_passes("fold-qdq")).run(model)
    return time.process_time() - started


_CHAIN = 32
_SMALLEST: dict[str, tuple[str, list[Any]]] = {
    "Neg": ("", []),
    "QGemm": (
        "com.microsoft",
        [
            *(np.float32(0.1), np.uint8(1), np.ones((1, 1), np.int8)),
            *(np.float32(0.1), np.int8(0), np.zeros(1, np.int32), np.float32(0.1), np.uint8(1)),
        ],
    ),
    "QLinearConv": (
        "",
        [
            *(np.float32(0.1), np.uint8(1), np.ones((1, 1, 1, 1), np.int8)),
            *(np.float32(0.1), np.int8(0), np.float32(0.1), np.uint8(1), np.zeros(1, np.int32)),
        ],
    ),
}
"""Operators with the inputs of their smallest call; Neg stands for every other."""


def smallest_calls() -> dict[str, float]:
    """Milliseconds of a call with one element, by operator; "" is a run of no nodes. One thread."""
    calls: dict[str, float] = {}
    for op_type in _SMALLEST:
        few, many = (_chain_ms(op_type, count) for count in (1, _CHAIN + 1))
        calls[op_type] = max((many - few) / _CHAIN, 0.0)
        calls.setdefault("", few - calls[op_type])
    return calls


def _chain_ms(op_type: str, count: int) -> float:
    """Milliseconds of ``count`` smallest calls, one after the other; the least of many runs."""
    domain, constants = _SMALLEST[op_type]
    dtype = TensorProto.UINT8 if constants else TensorProto.FLOAT
    shape = [1] * (4 if op_type == "QLinearConv" else 2)
    names = [f"c{index}" for index in range(len(constants))]
    nodes = [
        helper.make_node(op_type, [f"v{index}", *names], [f"v{index + 1}"], domain=domain)
        for index in range(count)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", dtype, shape)],
        [helper.make_tensor_value_info(f"v{count}", dtype, shape)],
        [numpy_helper.from_array(np.asarray(c), n) for c, n in zip(constants, names, strict=True)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    run = _prepared(Session(model, _ONE_THREAD))
    taken: list[float] = []
    for _ in range(_CHAIN):
        started = time.thread_time()
        for _ in range(_CHAIN):
            run()
        taken.append((time.thread_time() - started) * 1e3 / _CHAIN)
    return min(taken)


def calls_alone(folded: onnx.ModelProto, calls: Mapping[str, float]) -> float:
    """Milliseconds that the executed nodes of ``folded`` take without any arithmetic."""
    counts = optimized_op_census(folded, _ONE_THREAD)
    each = {name: calls.get(name.rpartition(".")[2], calls["Neg"]) for name in counts}
    return calls[""] + sum(each[name] * count for name, count in counts.items())


def ratios(timings: Mapping[str, Timing]) -> tuple[float, float]:
    """b/c, and c over the better of a and b."""
    over_float, over_qdq = timings["float"].relative, timings["qdq"].relative
    return over_qdq, 1 / min(over_float, over_qdq)


def _print_table(
    results: Mapping[str, Mapping[str, Mapping[str, Timing]]], least: Mapping[str, float]
) -> None:
    columns = f"{'a float':>9s} {'b ORT':>9s} {'c ort':>9s} {'d standard':>11s}"
    print(f"{'network (ms)':34s} {'threads':>11s} {columns} {'b/c':>6s} {'c/min(a,b)':>11s}")
    gains: list[float] = []
    for name, row in results.items():
        for config, timings in row.items():
            cells = " ".join(
                f"{timings[form].median_ms:{width}.3f}"
                for form, width in (("float", 9), ("qdq", 9), ("ort", 9), ("standard", 11))
            )
            gain, worst = ratios(timings)
            gains.append(gain)
            mark = "  above 1.05" if worst > _LIMIT else ""
            alone = least[name] / min(timings["float"].median_ms, timings["qdq"].median_ms)
            if mark and config == _ONE_THREAD.name and alone > _LIMIT:
                mark += f", calls alone {alone:.2f}"
            mark += "  below 3" if name in USEFUL and gain < _USEFUL_GAIN else ""
            title = f"{name} *" if name in USEFUL else name
            print(f"{title:34s} {config:>11s} {cells} {gain:6.2f} {worst:11.2f}{mark}")
    print(f"geometric mean of b/c: {float(np.exp(np.mean(np.log(gains)))):.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--pairs", type=Path, help="a folder of NAME.int8.onnx, NAME.float.onnx")
    parser.add_argument("--real", action="store_true", help="fetch and convert TFLite models")
    options = parser.parse_args(arguments)
    calls = smallest_calls()
    results: dict[str, dict[str, dict[str, Timing]]] = {}
    least: dict[str, float] = {}
    for network in networks(options.pairs, real=options.real):
        results[network.name] = measure(network)
        least[network.name] = calls_alone(fold(network.quantized, "ort"), calls)
    speed = {nodes: folding_seconds(nodes) for nodes in _SPEED_NODES}
    if options.json:
        rows = {
            name: {
                config: {form: timing.to_json() for form, timing in timings.items()}
                for config, timings in row.items()
            }
            for name, row in results.items()
        }
        found = {"latency": rows, "calls_alone_ms": least, "folding_seconds": speed}
        print(json.dumps(found, indent=2))
        return 0
    _print_table(results, least)
    for nodes, seconds in speed.items():
        print(f"folding {nodes:6d} nodes: {seconds:6.2f} s of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
