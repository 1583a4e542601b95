"""equalize: the same function in float, even ranges, and what that gives int8 per tensor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import REFERENCE, Session, SessionConfig

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]

OPTIMIZED = SessionConfig("optimized", optimize=True, threads=1)


def _layers(model: ir.Model) -> list[LinearOp]:
    found = [LinearOp.match(node) for node in model.graph]
    return [each for each in found if each is not None]


def _equal_in_float(before: ir.Model, after: ir.Model, feed: dict[str, Array]) -> None:
    for config in (REFERENCE, OPTIMIZED):
        old, new = Session(before, config).run(feed), Session(after, config).run(feed)
        for name, wanted in old.items():
            assert np.max(np.abs(new[name] - wanted)) <= 1e-5 * np.max(np.abs(wanted))


def _run(model: ir.Model, apply_pass: Apply, feed: dict[str, Array]) -> PassResult:
    before = model.clone()
    result = apply_pass("equalize", model)
    _equal_in_float(before, model, feed)
    return result


def _x(*shape: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(5).normal(size=shape).astype(np.float32)}


def test_the_factor_is_that_of_the_paper(
    parse: Parse, apply_pass: Apply, assert_text: Callable[[ir.Model, str], None]
) -> None:
    model = parse(
        """g (float[1,1,3] x) => (float[1,1,3] y)
        <float[2,1,1] w = {8, 1}, float[2] b = {4, 2}, float[1,2,1] u = {2, -4}>
        { c = Conv(x, w, b)  r = Relu(c)  y = Conv(r, u) }"""
    )
    result = _run(model, apply_pass, _x(1, 1, 3))
    assert result.rules == {"equalize-channels": 1}
    # s = sqrt(8 * 2) / 2 = 2 and sqrt(1 * 4) / 4 = 1/2.
    assert_text(
        model,
        """g (float[1,1,3] x) => (float[1,1,3] y)
        <float[2,1,1] w_1 = {4, 2}, float[2] b_1 = {2, 4}, float[1,2,1] u_1 = {4, -2}>
        { c = Conv(x, w_1, b_1)  r = Relu(c)  y = Conv(r, u_1) }""",
    )


CHAINS = {
    "nothing_between": ("c = Conv(x, w, b)  y = Conv(c, u)", "conv"),
    "leaky": ("c = Conv(x, w, b)  r = LeakyRelu(c)  y = Conv(r, u)", "conv"),
    "prelu": ("c = Conv(x, w, b)  r = PRelu(c, slope)  y = Conv(r, u)", "conv"),
    "clip_at_zero": ("c = Conv(x, w, b)  r = Clip(c, zero)  y = Conv(r, u)", "conv"),
    "pooling": (
        """c = Conv(x, w, b)  e = MaxPool<kernel_shape = [2, 2]>(c)
        p = Pad(e, pads)  a = AveragePool<kernel_shape = [2, 2]>(p)  y = Conv(a, u)""",
        "conv",
    ),
    "reflected": (
        'c = Conv(x, w, b)  p = Pad<mode = "reflect">(c, pads)  y = Conv(p, u)',
        "conv",
    ),
    "depthwise": ("c = Conv(x, w, b)  d = Conv<group = 4>(c, dw)  y = Conv(d, u)", "conv"),
    "transpose": ("c = Conv(x, w, b)  y = ConvTranspose(c, t)", "conv"),
    "classifier": (
        "c = Conv(x, w, b)  p = GlobalAveragePool(c)  f = Flatten(p)  y = Gemm(f, m, n)",
        "conv",
    ),
    "gemm": ("c = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, wt, b)  y = Gemm(c, m)", "matrix"),
    "matmul": ("c = MatMul(x, wm)  d = Add(c, b)  r = Relu(d)  y = MatMul(r, m)", "matrix"),
    "matmul_without_bias": ("c = MatMul(x, wm)  r = Relu(c)  y = MatMul(r, m)", "matrix"),
}


def _chain(body: str, shape: str) -> str:
    def numbers(count: int, seed: int) -> str:
        rng = np.random.default_rng(seed)
        values = rng.normal(size=count) * 10.0 ** rng.uniform(-2, 2, size=count)
        return ", ".join(f"{value:.4f}" for value in values)

    dims = "N,3,6,6" if shape == "conv" else "N,3"
    result = "N,2,P,Q" if _is_image(body) else "N,2"
    return f"""g (float[{dims}] x) => (float[{result}] y)
    <float[4,3,1,1] w = {{{numbers(12, 1)}}}, float[4] b = {{{numbers(4, 2)}}},
     float[2,4,1,1] u = {{{numbers(8, 3)}}}, float[4,1,3,3] dw = {{{numbers(36, 4)}}},
     float[4,2,2,2] t = {{{numbers(32, 5)}}}, float[4,2] m = {{{numbers(8, 6)}}},
     float[2] n = {{1, -2}}, float[4,3] wt = {{{numbers(12, 7)}}},
     float[3,4] wm = {{{numbers(12, 8)}}}, float[4,1,1] slope = {{0.5, 0.25, -0.5, 0.1}},
     float zero = {{0}}, int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}>
    {{ {body} }}""".replace(
        "float[N,M] y", "float[N,2,P,Q] y" if _is_image(body) else "float[N,2] y"
    )


def _is_image(body: str) -> bool:
    return not body.rstrip().endswith(("m)", "m, n)"))


@pytest.mark.parametrize("name", CHAINS)
def test_both_sides_get_the_same_ranges(name: str, parse: Parse, apply_pass: Apply) -> None:
    body, shape = CHAINS[name]
    model = parse(_chain(body, shape))
    Pipeline(parse_passes("remove-dead-code,infer-shapes")).run(model)
    for layer in _layers(model):  # without a bias, which may hold a factor back
        if layer.bias is not None:
            bias = constant_array(layer.bias)
            assert bias is not None
            layer.bias.const_value = ir.tensor(bias * 1e-6, name=layer.bias.name)
    result = _run(model, apply_pass, _x(2, 3, 6, 6) if shape == "conv" else _x(2, 3))
    assert result.rules == {"equalize-channels": 1}
    layers = _layers(model)
    assert len(layers) == (3 if name == "depthwise" else 2)
    for first, second in pairwise(layers):
        r1 = np.abs(first.weights).max(axis=first.reduction_axes)
        others = tuple(i for i in range(second.weights.ndim) if i != second.input_axis)
        r2 = np.abs(second.weights).max(axis=(1, 2, 3) if second.groups > 1 else others)
        np.testing.assert_allclose(r1, r2, rtol=2e-3)
    again = apply_pass("equalize", model)
    assert not again.modified


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "c = Conv(x, w, b)  r = Relu(c)  a = Conv(r, u)  d = Conv(r, u)  y = Add(a, d)",
            "several",
        ),
        ("c = Conv(x, w, b)  r = Clip(c, zero, six)  y = Conv(r, u)", "its limits"),
        ("c = Conv(x, w, b)  r = Sigmoid(c)  y = Conv(r, u)", ""),
        ("c = Conv(x, w, b)  r = Pad(c, channels)  y = Conv(r, v)", ""),
        ("c = Conv(x, w, b)  r = Pad(c, pads, six)  y = Conv(r, u)", ""),
        ("c = Conv(x, w, b)  f = Flatten(c)  y = Gemm(f, flat)", ""),
        ("c = Gemm<transB = 1>(x, wt, full)  y = Gemm(c, m)", ""),
    ],
)
def test_left_alone(body: str, reason: str, parse: Parse, apply_pass: Apply) -> None:
    dims = "1,1,2,2" if "Gemm<" not in body else "2,3"
    out = "1,1,P,Q" if "Gemm" not in body else "P,1"
    model = parse(
        f"""g (float[{dims}] x) => (float[{out}] y)
        <float[2,1,1,1] w = {{8, 1}}, float[2] b = {{4, 2}}, float[1,2,1,1] u = {{2, -4}},
         float[1,3,1,1] v = {{2, -4, 1}}, float zero = {{0}}, float six = {{6}},
         int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}, int64[8] channels = {{0,1,0,0,0,0,0,0}},
         float[8,1] flat = {{1,2,3,4,5,6,7,8}}, float[2,3] wt = {{1,2,3,4,5,6}},
         float[2,2] full = {{1,2,3,4}}, float[2,1] m = {{9, 1}}>
        {{ {body} }}"""
    )
    result = apply_pass("remove-dead-code", model)
    result = apply_pass("equalize", model)
    assert not result.modified
    assert [reason in remark.reason for remark in result.remarks] == [True] * bool(reason)


def test_a_graph_output_between_is_left_alone(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float[1,1,2] x) => (float[1,2,2] r, float[1,1,2] y)
        <float[2,1,1] w = {8, 1}, float[1,2,1] u = {2, -4}>
        { c = Conv(x, w)  r = Relu(c)  y = Conv(r, u) }"""
    )
    assert not apply_pass("equalize", model).modified


def test_dead_channels_and_large_biases_do_not_blow_up(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float[1,1,3] x) => (float[1,1,3] y)
        <float[3,1,1] w = {0, 0.000001, 1}, float[3] b = {1, 3, 2}, float[1,3,1] u = {1, 2, 4}>
        { c = Conv(x, w, b)  r = Relu(c)  y = Conv(r, u) }"""
    )
    _run(model, apply_pass, _x(1, 1, 3))
    bias = constant_array(_layers(model)[0].bias)
    assert bias is not None
    assert np.max(np.abs(bias)) <= 3.0


def test_shared_weights_are_scaled_for_each_reader(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float[1,2,3] x) => (float[1,2,3] y)
        <float[2,2,1] w = {8, 1, 2, 0.5}>
        { a = Conv(x, w)  r = Relu(a)  y = Conv(r, w) }"""
    )
    assert _run(model, apply_pass, _x(1, 2, 3)).modified


def test_weights_that_are_not_finite_stay(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float[1,1,3] x) => (float[1,1,3] y)
        <float[2,1,1] w = {8, 1}, float[1,2,1] u = {2, -4}>
        { c = Conv(x, w)  y = Conv(c, u) }"""
    )
    weights = np.array([8, np.inf], np.float32).reshape(2, 1, 1)
    model.graph.initializers["w"].const_value = ir.tensor(weights, name="w")
    result = apply_pass("equalize", model)
    assert not result.modified
    assert "finite" in result.remarks[0].reason


def _mobile_net(seed: int) -> tuple[ir.Model, list[dict[str, Array]]]:
    """Depthwise separable layers, with channels scaled at random and scaled back behind."""
    rng = np.random.default_rng(seed)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3, 16, 16]))
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []
    value, spread, channels = x, np.ones(3), 3

    def constant(array: Array) -> ir.Value:
        name = f"k{len(constants)}"
        tensor = ir.tensor(array.astype(np.float32), name=name)
        constants.append(ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype)))
        return constants[-1]

    def conv(value: ir.Value, out: int, kernel: int, groups: int, *, relu: bool) -> ir.Value:
        nonlocal spread
        fan_in = kernel**2 * (1 if groups > 1 else channels)
        weights = rng.normal(size=(out, channels // groups, kernel, kernel)) * (2 / fan_in) ** 0.5
        before = spread[:, None, None, None] if groups > 1 else spread[None, :, None, None]
        after = np.exp(rng.normal(size=out) * 1.5) if relu else np.ones(out)
        weights = weights / before * after[:, None, None, None]
        bias = rng.normal(size=out) * 0.1 * after
        spread = after
        pads = [kernel // 2] * 4
        inputs = [value, constant(weights), constant(bias)]
        nodes.append(ir.node("Conv", inputs, {"group": groups, "pads": pads}))
        if relu:
            nodes.append(ir.node("Relu", nodes[-1].outputs))
        return nodes[-1].outputs[0]

    for width in (16, 24, 32):
        value = conv(value, width, 1, 1, relu=True)
        channels = width
        value = conv(value, width, 3, width, relu=True)
    value = conv(value, 8, 1, 1, relu=False)
    value.name, value.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [value], nodes=nodes, initializers=constants, opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    model = Pipeline(parse_passes("infer-shapes")).run(model).model
    feeds = [{"x": rng.normal(size=(2, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
    return model, feeds


def _sqnr_of_int8(model: ir.Model, feeds: list[dict[str, Array]]) -> float:
    tensors = tensors_to_observe(model, PlacementOptions())
    watched = model.clone()
    known = {out.name: out for node in watched.graph for out in node.outputs}
    watched.graph.outputs.extend(
        known[name] for name in tensors if name in known and not known[name].is_graph_output()
    )
    runs = [{**feed, **Session(watched, REFERENCE).run(feed)} for feed in feeds]
    ranges = Ranges(
        {
            name: (
                float(min(run[name].min() for run in runs)),
                float(max(run[name].max() for run in runs)),
            )
            for name in tensors
        }
    )
    quantized = model.clone()
    InsertQdq(ranges, per_channel=False).run(quantized)
    found, wanted = Session(quantized, REFERENCE), Session(model, REFERENCE)
    pairs = [(wanted.run(feed)["y"], found.run(feed)["y"]) for feed in feeds]
    signal = sum(float(np.square(old).sum()) for old, _ in pairs)
    noise = sum(float(np.square(old - new).sum()) for old, new in pairs)
    return float(10 * np.log10(signal / noise))


@pytest.mark.parametrize("seed", [0, 1])
def test_int8_per_tensor_gains_more_than_ten_decibels(seed: int) -> None:
    model, feeds = _mobile_net(seed)
    equalized = Pipeline(parse_passes("equalize")).run(model.clone()).model
    _equal_in_float(model, equalized, feeds[0])
    before, after = _sqnr_of_int8(model, feeds), _sqnr_of_int8(equalized, feeds)
    assert after > before + 10, (before, after)
