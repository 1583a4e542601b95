"""16-bit activations on targets ``standard`` and ``integer``: sums of halves, moves, functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto

from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.remark import Remark
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.verify.region_gate import check_integer_contract

Array = npt.NDArray[Any]
TARGETS = ("standard", "integer")
TYPES = {
    "int16": ("int16", 0),
    "int16 around 77": ("int16", 77),
    "uint16": ("uint16", 32768),
    "uint16 around 1000": ("uint16", 1000),
}
FLOAT_SCALES = 2.0**-9  # of a code: how far products of float32 scales are off at 16 bits
EDGES = {"QuantizeLinear", "DequantizeLinear"}


def fold(model: ir.Model, target: str) -> tuple[ir.Model, list[Remark]]:
    done = Pipeline(parse_passes(folding(target))).run(model.clone())
    return done.model, [remark for _, each in done.results for remark in each.remarks]


def results(model: ir.Model, feed: dict[str, Array]) -> dict[str, Array]:
    """The outputs with optimizations off, which those with them on must equal."""
    plain = Session(model, REFERENCE).run(feed)
    optimized = Session(model, DEPLOYMENT).run(feed)
    for name, array in plain.items():
        assert np.array_equal(array, optimized[name]), f"{name} depends on optimizations"
    return plain


def corner_codes(numbers: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Random codes, many of them at the ends of the type and of its halves."""
    info = np.iinfo(dtype)
    codes = numbers.integers(info.min, info.max, shape, dtype, endpoint=True)
    ends = [info.min, info.min + 1, info.max, info.max - 1, 255, 256, 257, 0, 127, 128]
    corners = numbers.choice(np.array(ends).astype(dtype), shape)
    return np.where(numbers.random(shape) < 0.4, corners, codes)


def off_rounding(codes: Array, position: Array, zero_point: int) -> float:
    """By how much the worst of ``codes`` is beside what its exact position rounds to."""
    info = np.iinfo(codes.dtype)
    saturated = np.clip(position, info.min - zero_point, info.max - zero_point)
    return float(np.max(np.abs(codes.astype(np.int64) - zero_point - saturated))) - 0.5


CONV = """
agraph (int16[1,1,4] x) => (int16[1,2,4] y)
<float xs = {0.5}, int16 xz = {3}, int8[2,1,3] k = {1, -128, 127, 5, 6, 7}, float ks = {0.25},
 float ys = {4}, int16 yz = {-9}>
{ d = DequantizeLinear (x, xs, xz)  w = DequantizeLinear (k, ks)
  c = Conv <pads = [1, 1]> (d, w)  y = QuantizeLinear (c, ys, yz) }
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_convolution_becomes_two_of_halves(target: str, parse: Callable[..., ir.Model]) -> None:
    folded, remarks = fold(parse(CONV), target)
    counts = Counter(node.op_type for node in folded.graph)
    assert counts["ConvInteger"] == 2
    assert not EDGES & {*counts}
    assert not remarks
    first, second = (node for node in folded.graph if node.op_type == "ConvInteger")
    zeros = [node.inputs[2] for node in (first, second)]
    # Padding 3 is 0x8003 once int16 is raised to uint16.
    assert [int(z.const_value.numpy()) for z in zeros if z and z.const_value] == [128, 3]
    x = np.array([[[-32768, 32767, 255, -1]]], np.int16)
    padded = np.pad(x.astype(np.int64) - 3, ((0, 0), (0, 0), (1, 1)))
    windows = sliding_window_view(padded[0, 0], 3)
    weights = np.array([[1, -128, 127], [5, 6, 7]])
    got = results(folded, {"x": x})["y"][0]
    sums: Array = np.matmul(weights, np.transpose(windows))
    assert off_rounding(got, sums / 32, -9) <= 0


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 3, 11), (5, 3, 4), {"pads": [2, 1], "strides": [2]}),
    "2-D": ((2, 4, 7, 6), (6, 4, 3, 3), {"pads": [1, 0, 2, 1]}),
    "3-D": ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"pads": [1, 1, 0, 0, 1, 1]}),
    "groups": ((1, 4, 6, 6), (6, 2, 3, 3), {"group": 2, "dilations": [2, 1]}),
    "depthwise": ((1, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
}


def accumulated(x: Array, w: Array, attributes: dict[str, Any]) -> Array:
    """A convolution of integers in int64."""
    rank = x.ndim - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    group = attributes.get("group", 1)
    widths = [(0, 0), (0, 0), *((pads[i], pads[i + rank]) for i in range(rank))]
    padded = np.pad(x, widths)
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    windows = sliding_window_view(padded, reach, tuple(range(2, x.ndim)))
    steps = tuple(slice(None, None, each) for each in strides)
    taps = tuple(slice(None, None, each) for each in dilations)
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    axes = tuple(range(windows.ndim - rank, windows.ndim))
    found: list[Array] = []
    for index, part in enumerate(np.split(windows, group, axis=1)):
        weights = np.split(w, group, axis=0)[index]
        found.append(np.tensordot(part, weights, ((1, *axes), tuple(range(1, w.ndim)))))
    return np.moveaxis(np.concatenate(found, -1), -1, 1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_the_exact_numbers(
    name: str, kind: str, target: str, fake_quant: Callable[..., Any]
) -> None:
    shape, kernel, attributes = CONVOLUTIONS[name]
    dtype, zero = TYPES[kind]
    graph = fake_quant(3)
    x = graph.input(shape, TensorProto.INT16 if dtype == "int16" else TensorProto.UINT16)
    codes = graph.numbers.integers(-128, 128, kernel).astype(np.int8)
    codes.reshape(-1)[:4] = -128
    ws = graph.numbers.uniform(0.01, 0.02, kernel[0]).astype(np.float32)
    xs = np.float32(1e-3)
    bias = graph.numbers.integers(-(2**22), 2**22, kernel[0]).astype(np.int32)
    weights = graph.op("DequantizeLinear", graph.constant(codes), graph.constant(ws), axis=0)
    addend = graph.op("DequantizeLinear", graph.constant(bias), graph.constant(xs * ws), axis=0)
    sums = graph.op("Conv", graph.dequantize(x, xs, zero, dtype), weights, addend, **attributes)
    scale = float(np.float32(0.004 * float(np.sqrt(np.prod(kernel[1:])))))
    graph.outputs.append(graph.quantize(sums, scale, zero, dtype))
    graph.outputs.append(graph.quantize(sums, 200 * scale, 100))
    folded, remarks = fold(graph.model(), target)
    assert not remarks
    assert not EDGES & {node.op_type for node in folded.graph}
    data = corner_codes(graph.numbers, shape, dtype)
    wide, narrow = results(folded, {x: data}).values()
    column = [-1] + [1] * (len(shape) - 2)
    total = accumulated(data.astype(np.int64) - zero, codes.astype(np.int64), attributes)
    units: Array = (np.float64(xs) * ws.astype(np.float64)).reshape(column)
    real: Array = (total + bias.reshape(column)) * units
    assert off_rounding(wide, real / scale, zero) <= FLOAT_SCALES
    assert off_rounding(narrow, real / float(np.float32(200 * scale)), 100) <= FLOAT_SCALES
    assert len(np.unique(wide)) > 20


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", TYPES)
def test_products_are_the_exact_numbers(
    kind: str, target: str, fake_quant: Callable[..., Any]
) -> None:
    """Gemm with both attributes, MatMul with a bias behind it, and weights around no zero."""
    dtype, zero = TYPES[kind]
    graph = fake_quant(4)
    onnx_type = TensorProto.INT16 if dtype == "int16" else TensorProto.UINT16
    x = graph.input((7, 5), onnx_type)
    real = graph.dequantize(x, 1e-3, zero, dtype)
    codes = graph.numbers.integers(0, 256, (9, 7)).astype(np.uint8)
    weights = graph.dequantize(graph.constant(codes), 0.02, 200)
    addend = graph.numbers.normal(size=9).astype(np.float32)
    product = graph.op("Gemm", real, weights, graph.constant(addend), transA=1, transB=1, alpha=0.5)
    graph.outputs.append(graph.quantize(product, 0.003, zero, dtype))
    w2 = graph.numbers.integers(-128, 128, (5, 6)).astype(np.int8)
    second = graph.op("MatMul", real, graph.dequantize(graph.constant(w2), 0.02, 0, "int8"))
    shift = graph.numbers.normal(size=6).astype(np.float32)
    graph.outputs.append(
        graph.quantize(graph.op("Add", graph.constant(shift), second), 0.003, zero, dtype)
    )
    folded, remarks = fold(graph.model(), target)
    assert not remarks
    data = corner_codes(graph.numbers, (7, 5), dtype)
    got = list(results(folded, {x: data}).values())
    centred = (data.astype(np.int64) - zero) * float(np.float32(1e-3))
    scale, unit = float(np.float32(0.003)), float(np.float32(0.02))
    turned: Array = np.transpose(codes.astype(np.int64) - 200)
    first: Array = np.matmul(np.transpose(centred), turned) * (unit / 2) + addend
    assert off_rounding(got[0], first / scale, zero) <= FLOAT_SCALES
    other = centred @ w2.astype(np.int64) * unit + shift
    assert off_rounding(got[1], other / scale, zero) <= FLOAT_SCALES


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("left", "right"), [("int16", "uint16"), ("uint8", "int16")])
def test_products_of_two_computed_tensors(
    left: str, right: str, target: str, fake_quant: Callable[..., Any]
) -> None:
    graph = fake_quant(5)
    kinds = {"int16": TensorProto.INT16, "uint16": TensorProto.UINT16, "uint8": TensorProto.UINT8}
    zeros = {"int16": -5, "uint16": 30000, "uint8": 100}
    a, b = graph.input((2, 3, 40), kinds[left]), graph.input((2, 40, 5), kinds[right])
    reals = [graph.dequantize(v, 1e-3, zeros[k], k) for v, k in ((a, left), (b, right))]
    graph.outputs.append(graph.quantize(graph.op("MatMul", *reals), 0.1, 7, "int16"))
    folded, remarks = fold(graph.model(), target)
    assert not remarks
    halves = [1 if kind == "uint8" else 2 for kind in (left, right)]
    counts = Counter(node.op_type for node in folded.graph)
    assert counts["MatMulInteger"] == halves[0] * halves[1]
    feed = {a: corner_codes(graph.numbers, (2, 3, 40), left)}
    feed[b] = corner_codes(graph.numbers, (2, 40, 5), right)
    (got,) = results(folded, feed).values()
    total = (feed[a].astype(np.int64) - zeros[left]) @ (feed[b].astype(np.int64) - zeros[right])
    unit = float(np.float32(1e-3)) ** 2 / float(np.float32(0.1))
    assert off_rounding(got, total * unit, 7) <= FLOAT_SCALES


def _elementwise(graph: Any, x: str, y: str) -> dict[str, tuple[str, float, int]]:
    """Real results with the scale and zero point that they are quantized with."""
    third = graph.constant(np.float32(0.37))
    channel = graph.constant(np.linspace(-1, 1, 4).astype(np.float32).reshape(4, 1, 1))
    sizes = graph.constant(np.array([1, 1, 2, 2], np.float32))
    wider = graph.constant(np.array([1, 4, 9, 11], np.int64))
    pads = graph.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1]))
    fill = graph.constant(np.float32(0.5))
    shape = graph.constant(np.array([1, -1, 3]))
    start, end = graph.constant(np.array([1])), graph.constant(np.array([3]))
    axis = graph.constant(np.array([2]))
    low, high = graph.constant(np.float32(-0.3)), graph.constant(np.float32(0.9))
    return {
        "Add": (graph.op("Add", x, y), 1.5e-4, 11),
        "Sub": (graph.op("Sub", x, y), 1.5e-4, 11),
        "Mul": (graph.op("Mul", x, y), 1.1e-4, 11),
        "Add a number": (graph.op("Add", x, third), 1.1e-4, 11),
        "Add a channel": (graph.op("Add", x, channel), 1.1e-4, 11),
        "Mul a number": (graph.op("Mul", x, third), 1.1e-4, 11),
        "Sigmoid": (graph.op("Sigmoid", x), 2e-5, 0),
        "LeakyRelu": (graph.op("LeakyRelu", x), 1e-4, 3),
        "Relu": (graph.op("Relu", x), 1e-4, 7),
        "Relu, other scale": (graph.op("Relu", x), 1.3e-4, 3),
        "Clip": (graph.op("Clip", x, low, high), 1e-4, 7),
        "Max": (graph.op("Max", x, y), 1.2e-4, 7),
        "Min": (graph.op("Min", x, y), 1e-4, 7),
        "Where": (graph.op("Where", graph.op("Greater", x, y), x, y), 1e-4, 7),
        "Concat": (graph.op("Concat", x, y, axis=1), 1e-4, 7),
        "Pad": (graph.op("Pad", x, pads, fill), 1e-4, 7),
        "Reshape": (graph.op("Reshape", x, shape), 1e-4, 7),
        "Transpose": (graph.op("Transpose", x, perm=[0, 2, 3, 1]), 1e-4, 7),
        "Slice": (graph.op("Slice", x, start, end, axis), 1e-4, 7),
        "Resize, nearest": (graph.op("Resize", x, "", sizes, mode="nearest"), 1e-4, 7),
        "Resize, linear": (graph.op("Resize", x, "", "", wider, mode="linear"), 1e-4, 7),
        "DepthToSpace": (graph.op("DepthToSpace", x, blocksize=2), 1e-4, 7),
        "DepthToSpace, CRD": (graph.op("DepthToSpace", x, blocksize=2, mode="CRD"), 1e-4, 7),
        "SpaceToDepth": (graph.op("SpaceToDepth", x, blocksize=2), 1e-4, 7),
        "MaxPool": (
            graph.op("MaxPool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
            1e-4,
            7,
        ),
        "MaxPool, dilated": (
            graph.op("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 3], ceil_mode=1),
            1e-4,
            7,
        ),
        "GlobalMaxPool": (graph.op("GlobalMaxPool", x), 1e-4, 7),
        "ReduceMin": (graph.op("ReduceMin", x, axis), 1e-4, 7),
        "GlobalAveragePool": (graph.op("GlobalAveragePool", x), 1e-5, 7),
        "AveragePool": (
            graph.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            1e-4,
            7,
        ),
        "ReduceSum": (graph.op("ReduceSum", x, axis), 4e-4, 7),
        "CumSum": (graph.op("CumSum", x, graph.constant(np.array(2))), 4e-4, 7),
        "to 8 bits": (x, 0.02, 128),
        "to another scale": (x, 0.9e-4, 70),
    }


NAMES = (
    "Add",
    "Sub",
    "Mul",
    "Add a number",
    "Add a channel",
    "Mul a number",
    "Sigmoid",
    "LeakyRelu",
    "Relu",
    "Clip",
    "Max",
    "Min",
    "Where",
    "Concat",
    "Pad",
    "Reshape",
    "Transpose",
    "Slice",
    "DepthToSpace",
    "SpaceToDepth",
    "MaxPool",
    "GlobalMaxPool",
    "ReduceMin",
    "GlobalAveragePool",
    "AveragePool",
    "ReduceSum",
    "CumSum",
    "to 8 bits",
    "to another scale",
    "Relu, other scale",
    "Resize, nearest",
    "Resize, linear",
    "DepthToSpace, CRD",
    "MaxPool, dilated",
)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("name", NAMES)
def test_other_ops_are_done_on_codes(name: str, dtype: str, fake_quant: Callable[..., Any]) -> None:
    graph = fake_quant(6)
    raise_by = 0 if dtype == "int16" else 30000
    reals: list[str] = []
    for _ in range(2):
        x = graph.input((1, 4, 6, 6), TensorProto.INT16 if dtype == "int16" else TensorProto.UINT16)
        reals.append(graph.dequantize(x, 1e-4, 7 + raise_by, dtype))
    real, scale, zero = _elementwise(graph, *reals)[name]
    kept = "uint8" if name == "to 8 bits" else dtype
    graph.outputs.append(
        graph.quantize(real, scale, zero + (raise_by if kept == dtype else 0), kept)
    )
    model = graph.model()
    Pipeline(parse_passes("remove-dead-code")).run(model)
    folded, remarks = fold(model, "integer")
    left = {node.op_type for node in folded.graph} & (EDGES | {name})
    assert not (left & EDGES) or name == "Where"
    assert name == "Where" or not remarks
    feed = {
        each: corner_codes(graph.numbers, (1, 4, 6, 6), dtype)
        for each in graph.inputs
        if each in {value.name for value in model.graph.inputs}
    }
    (want,), (got,) = Session(model, REFERENCE).run(feed).values(), results(folded, feed).values()
    off = np.abs(want.astype(np.int64) - got)
    assert off.max() <= 1
    # Where float32 sums and products are rounded themselves, they meet another code now and then.
    assert np.mean(off > 0) <= 0.2
    evidence = check_integer_contract(model, folded, [feed])
    assert not evidence.reasons


@pytest.mark.parametrize("target", TARGETS)
def test_a_chain_of_int16_has_no_float_left(target: str, fake_quant: Callable[..., Any]) -> None:
    """As TensorFlow Lite's 16x8: symmetric int16 data, int8 weights, from a real input to one."""
    graph = fake_quant(8)
    x = graph.fake(graph.input((2, 3, 12, 12)), 1e-4, 0, "int16")
    w, s = graph.weights((8, 3, 3, 3), 0)
    y = graph.op("Conv", x, w, graph.bias(8, s * np.float32(1e-4)), pads=[1] * 4)
    y = graph.fake(graph.op("Relu", y), 3e-4, 0, "int16")
    w, _ = graph.weights((8, 1, 3, 3), 0)
    z = graph.fake(graph.op("Conv", y, w, pads=[1] * 4, group=8), 1e-4, 0, "int16")
    z = graph.fake(graph.op("Add", y, z), 4e-4, 0, "int16")
    z = graph.fake(graph.op("MaxPool", z, kernel_shape=[2, 2], strides=[2, 2]), 4e-4, 0, "int16")
    z = graph.fake(graph.op("GlobalAveragePool", z), 1e-4, 0, "int16")
    w, _ = graph.weights((5, 8), 0)
    z = graph.op("Gemm", graph.op("Flatten", z), w, transB=1)
    graph.outputs.append(graph.fake(z, 1e-4, 0, "int16"))
    model = graph.model()
    folded, remarks = fold(model, target)
    assert not remarks
    counts = Counter(node.op_type for node in folded.graph)
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 1
    assert not {"Conv", "Gemm", "MaxPool", "GlobalAveragePool"} & {*counts}
    assert counts["ConvInteger"] == 4
    feeds = [graph.feed(seed) for seed in range(3)]
    evidence = check_integer_contract(model, folded, feeds)
    assert evidence.checked == evidence.regions >= 6
    assert not evidence.reasons
    (want,), (got,) = (
        Session(model, REFERENCE).run(feeds[0]).values(),
        results(folded, feeds[0]).values(),
    )
    assert np.abs(want - got).max() <= 2e-4


def test_halves_of_one_tensor_are_taken_once(fake_quant: Callable[..., Any]) -> None:
    graph = fake_quant(9)
    x = graph.fake(graph.input((1, 3, 5, 5)), 1e-4, 0, "int16")
    for _ in range(3):
        graph.outputs.append(
            graph.quantize(graph.op("Conv", x, graph.weights((2, 3, 1, 1), 0)[0]), 1e-4, 0, "int16")
        )
    folded, _ = fold(graph.model(), "integer")
    readers = [node.inputs[0] for node in folded.graph if node.op_type == "ConvInteger"]
    assert len(readers) == 6
    assert len(set(readers)) == 2


@pytest.mark.parametrize(
    ("op_type", "reason"),
    [
        ("Softmax", "it has no integer form for codes of 16 bits"),
        ("PRelu", "its table would have 65,536 entries for each channel of "),
    ],
)
def test_what_stays_float_says_why(
    op_type: str, reason: str, fake_quant: Callable[..., Any]
) -> None:
    graph = fake_quant(1)
    x = graph.fake(graph.input((1, 4, 3, 3)), 1e-4, 0, "int16")
    slopes = [graph.constant(np.array([[[0.1]], [[0.2]], [[0.3]], [[0.4]]], np.float32))]
    y = graph.op(op_type, x, *(slopes if op_type == "PRelu" else []))
    graph.outputs.append(graph.quantize(y, 1e-4, 0, "int16"))
    _, remarks = fold(graph.model(), "standard")
    assert any(remark.reason.startswith(reason) for remark in remarks)


UNTYPED = """
<ir_version: 8, opset_import: ["" : 16, "com.microsoft" : 1]>
agraph (float[3] x) => (int8[3] y)
<float xs = {0.25}, int16 xz = {5}, float ys = {64}, int8 yz = {52}>
{ q = com.microsoft.QuantizeLinear (x, xs, xz)  d = com.microsoft.DequantizeLinear (q, xs, xz)
  t = Abs (d)  y = QuantizeLinear (t, ys, yz) }
"""


def test_a_table_starts_at_the_smallest_code_of_a_value_without_known_type(
    parse: Callable[..., ir.Model],
) -> None:
    folded, remarks = fold(parse(UNTYPED), "standard")
    assert "Gather" in {node.op_type for node in folded.graph}
    assert not remarks
    codes = results(folded, {"x": np.array([-1280.0, 0.0, 6400.0], np.float32)})["y"]
    assert codes.tolist() == [72, 52, 127]


def test_other_targets_keep_16_bits_in_float(fake_quant: Callable[..., Any]) -> None:
    graph = fake_quant(1)
    x = graph.fake(graph.input((1, 4, 3, 3)), 1e-4, 0, "int16")
    w, _ = graph.weights((2, 4, 1, 1), 0)
    graph.outputs.append(graph.quantize(graph.op("Conv", x, w), 1e-4, 0, "int16"))
    for target in ("ort", "qdq"):
        folded, remarks = fold(graph.model(), target)
        assert "Conv" in {node.op_type for node in folded.graph}
        assert any("int16" in remark.reason.lower() for remark in remarks)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_keep_the_contract(seed: int, fake_quant: Callable[..., Any]) -> None:
    """Layers drawn at random, of 8 and 16 bits in turn, with shared values."""
    graph = fake_quant(seed)
    draw = graph.numbers

    def fake(value: str, scale: float) -> str:
        dtype = str(draw.choice(["int16", "uint16", "uint8"]))
        if dtype == "uint8":
            return graph.fake(value, scale * 150, int(draw.integers(90, 160)))
        zero = (
            int(draw.integers(20000, 45000)) if dtype == "uint16" else int(draw.integers(-99, 99))
        )
        return graph.fake(value, scale, zero, dtype)

    tensors = [fake(graph.input((1, 4, 6, 6)), 1e-4)]
    for _ in range(6):
        x = str(draw.choice(tensors))
        kind = draw.choice(["Conv", "depthwise", "Add", "Mul", "Relu", "Tanh", "MaxPool", "mean"])
        if kind == "Conv":
            w, s = graph.weights((4, 4, 3, 3), draw.choice([0, None]))
            bias = (
                [graph.bias(4, s * np.float32(1e-4))] if len(s) == 4 and draw.random() < 0.5 else []
            )
            y = graph.op("Conv", x, w, *bias, pads=[1] * 4)
        elif kind == "depthwise":
            y = graph.op("Conv", x, graph.weights((4, 1, 3, 3), 0)[0], pads=[1] * 4, group=4)
        elif kind in ("Add", "Mul"):
            y = graph.op(str(kind), x, str(draw.choice(tensors)))
        elif kind == "MaxPool":
            y = graph.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
        elif kind == "mean":
            y = graph.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
        else:
            y = graph.op(str(kind), x)
        tensors.append(fake(y, 1.5e-4))
    graph.outputs += tensors[-2:]
    model = graph.model()
    feeds = [graph.feed(each) for each in range(2)]
    for target in TARGETS:
        folded, remarks = fold(model, target)
        assert not remarks
        evidence = check_integer_contract(model, folded, feeds)
        assert not evidence.reasons, evidence.reasons
        results(folded, feeds[0])


@pytest.mark.parametrize("target", TARGETS)
def test_sums_that_leave_int32(target: str, fake_quant: Callable[..., Any]) -> None:
    """A product, rounded and left as a real number, and a sum over an axis."""
    graph = fake_quant(2)
    x = graph.input((3, 600), TensorProto.UINT16)
    real = graph.dequantize(x, 1e-4, 9, "uint16")
    codes = graph.numbers.integers(100, 128, (600, 4)).astype(np.int8)
    weights = graph.dequantize(graph.constant(codes), 0.01, 0, "int8")
    graph.outputs.append(graph.quantize(graph.op("MatMul", real, weights), 0.1, 5, "uint16"))
    graph.outputs.append(graph.op("MatMul", real, weights))
    y = graph.input((40000, 2), TensorProto.UINT16)
    total = graph.op(
        "ReduceSum", graph.dequantize(y, 1e-4, 9, "uint16"), graph.constant(np.array([0]))
    )
    graph.outputs.append(graph.quantize(total, 5.0, 5, "uint16"))
    folded, remarks = fold(graph.model(), target)
    assert not {"MatMul", "QuantizeLinear"} & {node.op_type for node in folded.graph}
    assert not remarks
    feed = {x: np.full((3, 600), 65535, np.uint16), y: np.full((40000, 2), 65535, np.uint16)}
    feed[x][1] = corner_codes(graph.numbers, (600,), "uint16")
    rounded, unrounded, summed = results(folded, feed).values()
    sums: Array = np.matmul(feed[x].astype(np.int64) - 9, codes.astype(np.int64))
    assert np.max(sums) > 2**31
    numbers: Array = sums * (float(np.float32(1e-4)) * float(np.float32(0.01)))
    assert np.allclose(unrounded, numbers, rtol=1e-6)
    assert off_rounding(rounded, numbers / float(np.float32(0.1)), 5) <= FLOAT_SCALES
    assert np.all(summed == 5 + round(40000 * 65526 * float(np.float32(1e-4)) / 5))


@pytest.mark.parametrize(
    "move",
    [
        "DepthToSpace <blocksize = 2>",
        'DepthToSpace <blocksize = 2, mode = "CRD">',
        "SpaceToDepth <blocksize = 3>",
    ],
)
def test_blocks_move_where_sizes_are_not_known(move: str, parse: Callable[..., ir.Model]) -> None:
    model = parse(
        f"""agraph (int16[N,8,H,W] x) => (int16[N,C,R,D] y) <float s = {{0.5}}, int16 z = {{3}}>
        {{ d = DequantizeLinear (x, s, z)  m = {move} (d)  y = QuantizeLinear (m, s, z) }}"""
    )
    folded, remarks = fold(model, "integer")
    assert {node.op_type for node in folded.graph} == {"Transpose", "Reshape"}
    assert not remarks
    codes = corner_codes(np.random.default_rng(0), (2, 8, 6, 9), "int16")
    feed = {"x": codes}
    assert np.array_equal(results(folded, feed)["y"], Session(model, REFERENCE).run(feed)["y"])


@pytest.mark.parametrize("target", TARGETS)
def test_codes_whose_type_is_not_inferred(target: str, parse: Callable[..., ir.Model]) -> None:
    """Behind com.microsoft's QuantizeLinear nothing has a type or a shape."""
    weights = ", ".join(str(each) for each in range(-8, 8))
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        agraph (float[1,4,4,4] x) => (int16[1,4,4,4] y, int16[1,4,4,4] v)
        <float s = {{0.0002}}, int16 z = {{-3}}, float t = {{0.00003}}, float u = {{0.04}},
         int8[4,4,1,1] w = {{{weights}}}, int8 zero = {{0}}>
        {{
            q = com.microsoft.QuantizeLinear (x, s, z)
            d = com.microsoft.DequantizeLinear (q, s, z)
            k = DequantizeLinear (w, u, zero)
            c = Conv (d, k)
            r = Sigmoid (d)
            y = com.microsoft.QuantizeLinear (r, t, z)
            v = com.microsoft.QuantizeLinear (c, s, z)
        }}"""
    )
    folded, remarks = fold(model, target)
    assert not {"Conv", "Sigmoid", "DequantizeLinear"} & {node.op_type for node in folded.graph}
    assert not remarks
    feed = {"x": np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)}
    want, got = Session(model, REFERENCE).run(feed), results(folded, feed)
    assert np.array_equal(want["y"], got["y"])
    assert np.max(np.abs(want["v"].astype(np.int64) - got["v"])) <= 1
