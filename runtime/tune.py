"""Measures what integer and float kernels cost on this machine, for the fold to choose by."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.fold.costs import (
    FAMILIES,
    CostTable,
    Features,
    convolution_features,
    element_features,
    float_family,
    integer_family,
    pool_features,
)
from onnxfold.runtime.profile import NodeTime, execution_profile
from onnxfold.runtime.session import DEPLOYMENT, Session, version
from onnxfold.runtime.specs import Feed

_ONE_THREAD = dataclasses.replace(DEPLOYMENT, name="one thread", threads=1)
_SWEEPS = 5
_RUNS = 25
_CHAIN = 64  # nodes that do nothing, to tell what profiling adds to each
_TINY = 1e-12
_LEAST = 1.0  # microseconds a node takes at least, to be dispatched
_OPSET = 17


@dataclass(frozen=True)
class _Layer:
    """A convolution that is measured: square maps, "same" padding, maybe a MaxPool behind."""

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: int
    size: int
    depthwise: bool = False
    pool: int = 0

    @property
    def group(self) -> int:
        return self.outputs if self.depthwise else 1

    @property
    def result(self) -> int:
        """Height and width of the result, before the pool."""
        return -(-self.size // self.stride)


_LAYERS = (
    _Layer(1, 16, (3, 3), 1, 64, pool=2),
    _Layer(1, 64, (9, 5), 2, 48),
    _Layer(1, 8, (7, 7), 2, 56),
    _Layer(3, 8, (3, 3), 2, 96),
    _Layer(3, 16, (3, 3), 1, 32),
    _Layer(3, 32, (3, 3), 2, 128),
    _Layer(3, 64, (7, 7), 2, 112),
    _Layer(16, 8, (3, 3), 1, 24),
    _Layer(32, 10, (1, 1), 1, 24),
    _Layer(8, 16, (1, 1), 1, 48),
    _Layer(8, 24, (3, 3), 2, 28, pool=2),
    _Layer(16, 16, (3, 3), 1, 32, pool=2),
    _Layer(16, 48, (1, 1), 1, 24),
    _Layer(32, 32, (3, 3), 1, 16, pool=2),
    _Layer(64, 64, (3, 3), 1, 28, pool=3),
    _Layer(64, 64, (1, 1), 1, 12),
    _Layer(128, 128, (1, 1), 1, 6),
    _Layer(64, 128, (3, 3), 2, 8),
    _Layer(8, 8, (3, 3), 1, 48, depthwise=True),
    _Layer(12, 12, (3, 3), 1, 24, depthwise=True),
    _Layer(24, 24, (3, 3), 1, 12, depthwise=True),
    _Layer(40, 40, (5, 5), 1, 12, depthwise=True),
    _Layer(72, 72, (3, 3), 1, 20, depthwise=True),
    _Layer(16, 16, (3, 3), 2, 48, depthwise=True),
    _Layer(32, 32, (3, 3), 1, 24, depthwise=True),
    _Layer(64, 64, (3, 3), 1, 12, depthwise=True),
    _Layer(64, 64, (5, 5), 1, 20, depthwise=True),
    _Layer(128, 128, (3, 3), 1, 6, depthwise=True),
    _Layer(96, 96, (3, 3), 1, 28, depthwise=True),
)

STEPS = _SWEEPS * len(_LAYERS)
"""Steps of a measurement."""

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Sample:
    """One measurement of one family."""

    family: str
    features: Features
    microseconds: float


def measure_costs(advance: Callable[[], None] | None = None, *, sweeps: int = _SWEEPS) -> CostTable:
    """Measure the table of costs on this machine: about ten seconds, on one thread.

    Every network runs ``sweeps`` times, in turns, and the fastest turn of each kernel counts:
    other load only ever adds.

    Args:
        advance: Called after each of ``STEPS`` steps (for the default of ``sweeps``).
        sweeps: Turns.

    Raises:
        ExecutionError: ONNX Runtime fails on one of the networks.
    """
    overhead = _profiling_overhead()
    fastest: dict[tuple[int, str], _Sample] = {}
    for _ in range(sweeps):
        for index, layer in enumerate(_LAYERS):
            for number, sample in enumerate(_samples(layer, overhead)):
                key = (index, f"{sample.family} {number}")
                known = fastest.get(key)
                if known is None or sample.microseconds < known.microseconds:
                    fastest[key] = sample
            if advance is not None:
                advance()
    families: defaultdict[str, list[tuple[Features, float]]] = defaultdict(list)
    for sample in fastest.values():
        families[sample.family].append((sample.features, sample.microseconds))
    return CostTable(
        machine=f"{platform.machine()}, {platform.system()}",
        onnxruntime=version(),
        microseconds={name: fit_costs(FAMILIES[name], families[name]) for name in FAMILIES},
    )


def _profiling_overhead() -> float:
    """Microseconds that profiling adds to a node: it would count against what takes more nodes."""
    nodes = [helper.make_node("Neg", [f"v{index}"], [f"v{index + 1}"]) for index in range(_CHAIN)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("v0", f"v{_CHAIN}")
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    feed = {"v0": np.ones(1, np.float32)}
    reported = [
        statistics.median(each.microseconds for each in _profile(model, feed))
        for _ in range(_SWEEPS)
    ]
    run = Session(model, _ONE_THREAD).prepare(feed)
    taken: list[float] = []
    for _ in range(_SWEEPS * _RUNS):
        started = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started) * 1e6 / _CHAIN)
    return max(min(reported) - min(taken), 0.0)


def _samples(layer: _Layer, overhead: float) -> Iterator[_Sample]:
    yield from _integer_samples(layer, overhead)
    yield from _float_samples(layer, overhead)


def _integer_samples(layer: _Layer, overhead: float) -> Iterator[_Sample]:
    times = _times(_integer_network(layer), layer, overhead)
    yield _convolution_sample("integer", layer, times["QLinearConv"])
    if layer.pool:
        yield _pool_sample("integer", layer, times["NhwcMaxPool"] + times["MaxPool"])


def _float_samples(layer: _Layer, overhead: float) -> Iterator[_Sample]:
    times = _times(_float_network(layer), layer, overhead)
    yield _convolution_sample("float", layer, times["Conv"] + times["FusedConv"])
    size = layer.result // layer.pool if layer.pool else layer.result
    if layer.pool:
        yield _pool_sample("float", layer, times["MaxPool"])
    read = layer.inputs * layer.size**2
    yield _Sample("codes to float", element_features(read), times["Cast"] + times["Sub"])
    written = element_features(layer.outputs * size**2)
    reorder, turn = times["ReorderOutput"], times["Transpose"]
    yield _Sample("float to codes", written, reorder + times["QuantizeLinear"] + turn)
    yield _Sample("rounding", written, 2 * reorder + times["Round"])
    yield _Sample("change of layout", written, turn)


def _convolution_sample(kind: str, layer: _Layer, microseconds: float) -> _Sample:
    each = 1 if layer.depthwise else layer.inputs
    features = convolution_features(layer.kernel, each, layer.outputs, layer.result**2)
    family = (
        float_family(layer.outputs, layer.group)
        if kind == "float"
        else integer_family(each, layer.outputs, layer.group)
    )
    return _Sample(family, features, microseconds)


def _pool_sample(kind: str, layer: _Layer, microseconds: float) -> _Sample:
    pixels = (layer.result // layer.pool) ** 2
    features = pool_features((layer.pool, layer.pool), layer.outputs, pixels)
    return _Sample(f"{kind} max pool", features, microseconds)


def _times(model: onnx.ModelProto, layer: _Layer, overhead: float) -> Mapping[str, float]:
    """Microseconds of each op type; 0 for those that are not executed."""
    shape = (1, layer.inputs, layer.size, layer.size)
    codes = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    found: defaultdict[str, float] = defaultdict(float)
    for each in _profile(model, {"x": codes}):
        found[each.op_type] = max(found[each.op_type], each.microseconds - overhead, _LEAST)
    return found


def _profile(model: onnx.ModelProto, feed: Feed) -> Sequence[NodeTime]:
    return execution_profile(model, [feed], _ONE_THREAD, runs=_RUNS).times


class _Network:
    """A graph with one input ``x`` of codes, written node by node."""

    def __init__(self, layer: _Layer) -> None:
        self.layer = layer
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: _Array | np.generic) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def weights(self) -> npt.NDArray[np.int8]:
        each = 1 if self.layer.depthwise else self.layer.inputs
        shape = (self.layer.outputs, each, *self.layer.kernel)
        return np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8)

    def convolution(self) -> dict[str, Any]:
        height, width = self.layer.kernel
        pads = [height // 2, width // 2, height // 2, width // 2]
        return {"pads": pads, "strides": [self.layer.stride] * 2, "group": self.layer.group}

    def pooled(self, value: str) -> str:
        size = self.layer.pool
        return self.op("MaxPool", value, kernel_shape=[size] * 2, strides=[size] * 2)

    def model(self, *outputs: str) -> onnx.ModelProto:
        shape = [1, self.layer.inputs, self.layer.size, self.layer.size]
        graph = helper.make_graph(
            self.nodes,
            "sample",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self.constants,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def _integer_network(layer: _Layer) -> onnx.ModelProto:
    net = _Network(layer)
    grid = net.constant(np.float32(0.02)), net.constant(np.uint8(128))
    scales = net.constant(np.full(layer.outputs, 0.01, np.float32))
    zeros = net.constant(np.zeros(layer.outputs, np.int8))
    inputs = ("x", *grid, net.constant(net.weights()), scales, zeros, *grid)
    value = net.op("QLinearConv", *inputs, **net.convolution())
    return net.model(net.pooled(value) if layer.pool else value)


def _float_network(layer: _Layer) -> onnx.ModelProto:
    """Two branches: one goes back to codes, one is rounded and stays float."""
    net = _Network(layer)
    zero = net.constant(np.full((1, 1, 1, 1), 128, np.float32))
    real = net.op("Sub", net.op("Cast", "x", to=TensorProto.FLOAT), zero)
    weights = net.constant(net.weights().astype(np.float32) * np.float32(0.001))
    value = net.op("Conv", real, weights, **net.convolution())
    value = net.pooled(value) if layer.pool else value
    ones = net.constant(np.ones(layer.outputs, np.float32))
    zeros = net.constant(np.full(layer.outputs, 128, np.uint8))
    codes = net.op("QuantizeLinear", value, ones, zeros, axis=1)
    turned = net.op("Transpose", codes, perm=[0, 2, 3, 1])
    return net.model(turned, net.op("Round", value))


def fit_costs(names: Sequence[str], samples: Sequence[tuple[Features, float]]) -> dict[str, float]:
    """Costs of the features that fit ``samples`` best, none of them negative.

    Least squares of relative errors; the most negative cost is set to 0 and the rest fitted again
    until none is left.

    Args:
        names: The features that count.
        samples: Features and microseconds of each measurement; at least one.
    """
    rows = np.array([[features[name] for name in names] for features, _ in samples])
    times = np.array([microseconds for _, microseconds in samples])
    rows = rows / times[:, None]
    scale: _Array = np.maximum(np.abs(rows).max(axis=0), _TINY)
    kept = list(range(len(names)))
    while True:
        solution: Any = np.linalg.lstsq(rows[:, kept] / scale[kept], np.ones(len(times)))
        found: list[float] = [float(cost) for cost in solution[0]]
        if len(kept) == 1 or min(found) >= 0:
            break
        del kept[found.index(min(found))]
    costs = dict.fromkeys(names, 0.0)
    for index, cost in zip(kept, found, strict=True):
        costs[names[index]] = float(f"{max(cost / float(scale[index]), 0.0):.4g}")
    return costs
