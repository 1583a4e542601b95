"""Learning the rounding of whole models: every layout of weights, in order, and end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.round_weights import RoundWeights
from onnxfold.passes.quantize.weight_rounding import WeightRounding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.adaround import RoundingOptions
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.learned_rounding import measure_rounding
from onnxfold.runtime.calibrate.limits import activation_limits
from onnxfold.runtime.session import REFERENCE, Session

Feed = dict[str, npt.NDArray[Any]]
Parse = Callable[..., ir.Model]

OPTIONS = RoundingOptions(steps=200, batch=64)


def _sqnr(original: ir.Model, candidate: ir.Model, feeds: list[Feed]) -> float:
    old, new = Session(original, REFERENCE), Session(candidate, REFERENCE)
    signal = noise = 0.0
    for feed in feeds:
        wanted, found = old.run(feed), new.run(feed)
        for name, values in wanted.items():
            signal += float(np.square(values.astype(np.float64)).sum())
            noise += float(np.square(values.astype(np.float64) - found[name]).sum())
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def _quantized(model: ir.Model, feeds: list[Feed]) -> ir.Model:
    """With weights of 4 bits, in int8: their rounding is what counts."""
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    quantized = Pipeline((InsertQdq(ranges),)).run(model.clone()).model
    for node in quantized.graph:
        codes = constant_array(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        scale = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        if codes is None or scale is None or codes.dtype != np.int8 or codes.ndim < 2:
            continue
        narrow = np.rint(codes / (127 / 7)).astype(np.int8)
        for index, array in ((0, narrow), (1, np.asarray(scale * (127 / 7), np.float32))):
            name = f"{node.outputs[0].name}_{index}"
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            quantized.graph.initializers.add(value)
            node.replace_input_with(index, value)
    return quantized


def _rounded(quantized: ir.Model, rounding: WeightRounding) -> ir.Model:
    return Pipeline((RoundWeights(rounding),)).run(quantized.clone()).model


def _numbers(rng: np.random.Generator, count: int, mean: float = 0.0) -> str:
    return ", ".join(f"{v:.4f}" for v in rng.normal(mean, 1, size=count))


LAYERS = {
    "conv": ("float[6,4,3,3] w", "y = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w, b)"),
    "dilated": ("float[6,4,3,3] w", "y = Conv<dilations=[1,2], pads=[0,1,1,2]>(x, w, b)"),
    "depthwise": ("float[4,1,3,3] w", "y = Conv<group=4, pads=[1,0,2,1]>(x, w)"),
    "grouped": ("float[6,2,2,2] w", "y = Conv<group=2>(x, w, b)"),
    "gemm": ("float[6,8] w", "f = Reshape(x, rows) y = Gemm<transB=1>(f, w, b)"),
    "gemm-columns": (
        "float[8,6] w",
        "f = Reshape(x, rows) t = Transpose(f) y = Gemm<transA=1>(t, w, b)",
    ),
    "matmul": ("float[8,6] w", "h = MatMul(x, w) y = Add(h, b)"),
    "matmul-relu": ("float[8,6] w", "h = MatMul(x, w) a = Add(h, b) y = Relu(a)"),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layout_of_weights(kind: str, parse: Parse) -> None:
    rng = np.random.default_rng(1)
    weights, body = LAYERS[kind]
    size = int(np.prod([int(each) for each in weights[6 : weights.index("]")].split(",")]))
    model = parse(
        f"""g (float[N,4,6,8] x) => (float y) <{weights} = {{{_numbers(rng, size)}}},
        float[6] b = {{{_numbers(rng, 6)}}}, int64[2] rows = {{-1, 8}}> {{ {body} }}"""
    )
    model = Pipeline(parse_passes("infer-shapes")).run(model).model
    feeds, fresh = ([{"x": _smooth(rng, body)} for _ in range(8)] for _ in range(2))
    quantized = _quantized(model, feeds)
    rounding = measure_rounding(model, quantized, feeds, options=OPTIONS)
    assert len(rounding) == 1
    gain = _sqnr(model, _rounded(quantized, rounding), fresh) - _sqnr(model, quantized, fresh)
    # A row of 8 or 9 weights leaves little to choose from.
    assert gain > (0.3 if "group=" in body else 3)


def test_a_whole_network_gains(fixtures_dir: Path) -> None:
    model = Pipeline(parse_passes(OPTIMIZE)).run(ir.load(fixtures_dir / "mobile_net.onnx")).model
    rng = np.random.default_rng(2)
    feeds, fresh = (
        [{"image": rng.uniform(-1, 2, (1, 3, 32, 32)).astype(np.float32)} for _ in range(5)]
        for _ in range(2)
    )
    quantized = _quantized(model, feeds)
    rounding = measure_rounding(model, quantized, feeds, options=OPTIONS)
    rounded = _rounded(quantized, rounding)
    assert _sqnr(model, rounded, fresh) > _sqnr(model, quantized, fresh) + 3


def test_feeds_are_read_once_and_the_result_repeats(parse: Parse) -> None:
    model, feeds = _small(parse)
    quantized = _quantized(model, feeds)

    def once() -> Iterator[Feed]:
        yield from feeds

    first = measure_rounding(model, quantized, once(), options=OPTIONS)
    assert first == measure_rounding(model, quantized, feeds, options=OPTIONS)
    assert len(first) == 1


def test_shared_weights_keep_their_codes(parse: Parse) -> None:
    model, feeds = _small(parse, "h = MatMul(x, w) y = MatMul(h, w)")
    quantized = _quantized(model, feeds)
    assert not measure_rounding(model, quantized, feeds, options=OPTIONS)


def test_no_data_is_refused(parse: Parse) -> None:
    model, feeds = _small(parse)
    with pytest.raises(UsageError, match="empty"):
        measure_rounding(model, _quantized(model, feeds), [])


def _small(parse: Parse, body: str = "y = MatMul(x, w)") -> tuple[ir.Model, list[Feed]]:
    rng = np.random.default_rng(3)
    model = parse(
        f"g (float[N,6] x) => (float[N,6] y) <float[6,6] w = {{{_numbers(rng, 36)}}}> {{ {body} }}"
    )
    mixing = rng.normal(size=(2, 6))
    feeds: list[Feed] = [
        {"x": (rng.normal(size=(9, 2)) @ mixing).astype(np.float32)} for _ in range(6)
    ]
    return Pipeline(parse_passes("infer-shapes")).run(model).model, feeds


def _smooth(rng: np.random.Generator, body: str) -> npt.NDArray[np.float32]:
    """[2, 4, 6, 8], nearly the same along what a row of weights is multiplied by."""
    places = (2, 4, 1, 1) if "Conv" in body else (2, 4, 6, 1)
    noise = rng.normal(0, 0.1, (2, 4, 6, 8))
    return (rng.normal(1, 1, places) + noise).astype(np.float32)


LIMITS = {
    "y = Identity(v)": (-np.inf, np.inf),
    "y = Relu(v)": (0, np.inf),
    "y = Clip(v, one, six)": (1, 6),
    "a = Clip(v, , six) y = Relu(a)": (0, 6),
    "a = Relu(v) y = QuantizeLinear(a, half, z)": (0, 102.5),
    "y = QuantizeLinear(v, half, z)": (-25, 102.5),
    "y = QuantizeLinear(v, half)": (0, 127.5),
    "y = QuantizeLinear(v, scales, zeros)": (-np.inf, np.inf),
    "a = Relu(v) y = Add(a, v)": (-np.inf, np.inf),
    "a = Relu(v) b = Tanh(a) y = Clip(b, one, six)": (0, np.inf),
}


@pytest.mark.parametrize(("body", "limits"), LIMITS.items())
def test_activation_limits(body: str, limits: tuple[float, float], parse: Parse) -> None:
    model = parse(
        f"""g (float[2] x) => (y) <float one = {{1}}, float six = {{6}}, float half = {{0.5}},
        uint8 z = {{50}}, float[2] scales = {{1, 2}}, uint8[2] zeros = {{0, 0}}>
        {{ v = Neg(x) {body} }}"""
    )
    assert activation_limits(next(iter(model.graph)).outputs[0]) == limits
