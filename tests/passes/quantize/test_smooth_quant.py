"""smooth-quant: the same function in float, outliers moved where it is free, what that gains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.errors import UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.channel_maxima import ChannelMaxima
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.smooth_quant import SmoothQuant
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.spec import print_pass
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.channel_maxima import measure_channel_maxima
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]


def test_the_factor_is_that_of_the_paper(
    parse: Parse, apply_pass: Apply, assert_text: Callable[[ir.Model, str], None]
) -> None:
    model = parse(
        """g (float[N,2] x) => (float[N,1] y, float[N,2] z)
        <float[2] gamma = {8, 1}, float[2] beta = {4, 2}, float[2,1] w = {0.5, 4},
         float[2,2] v = {1, -2, 1, 0}>
        { n = LayerNormalization(x, gamma, beta)  y = MatMul(n, w)  z = MatMul(n, v) }"""
    )
    maxima = ChannelMaxima({"y": (32.0, 1.0), "z": (30.0, 0.5)})
    result = apply_pass(SmoothQuant(maxima), model)
    assert result.rules == {"migrate-outliers": 1}
    assert result.remarks == ()
    # s = sqrt(32 / 2) = 4 and sqrt(1 / 4) = 1/2.
    assert_text(
        model,
        """g (float[N,2] x) => (float[N,1] y, float[N,2] z)
        <float[2] gamma_1 = {2, 2}, float[2] beta_1 = {1, 4}, float[2,1] w_1 = {2, 2},
         float[2,2] v_1 = {4, -8, 0.5, 0}>
        { n = LayerNormalization(x, gamma_1, beta_1)  y = MatMul(n, w_1)  z = MatMul(n, v_1) }""",
    )


def test_alpha_says_how_much_moves(parse: Parse, apply_pass: Apply) -> None:
    for alpha, expected in ((1.0, (32.0, 1.0)), (0.0, (0.5, 0.25))):
        model = parse(
            """g (float[N,2] x) => (float[N,1] y) <float[2] c = {1, 1}, float[2,1] w = {2, 4}>
            { n = Mul(x, c)  y = MatMul(n, w) }"""
        )
        apply_pass(SmoothQuant(ChannelMaxima({"y": (32.0, 1.0)}), alpha), model)
        constant = model.graph.initializers["c_1"].const_value
        assert constant is not None
        np.testing.assert_allclose(1 / constant.numpy(), expected, rtol=1e-6)


def _numbers(count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=count) * 10.0 ** rng.uniform(-1, 1, size=count)
    return ", ".join(f"{value:.4f}" for value in values)


MATRICES = {
    "layer_norm": "n = LayerNormalization(x, g, b)  y = MatMul(n, w)",
    "layer_norm_without_beta": "n = LayerNormalization(x, g)  y = MatMul(n, w)",
    "rms_norm": "n = RMSNormalization(x, g)  y = MatMul(n, w)",
    "product": "a = Tanh(x)  n = Mul(g, a)  y = MatMul(n, w)",
    "product_and_sum": "a = Tanh(x)  m = Mul(a, g)  n = Add(b, m)  y = MatMul(n, w)",
    "scalar": "a = Tanh(x)  n = Mul(a, two)  y = MatMul(n, w)",
    "several": """n = LayerNormalization(x, g, b)  c = MatMul(n, w)  d = MatMul(n, v)
        e = Gemm<transB = 1>(n, u, b)  f = Add(c, d)  y = Add(e, f)""",
    "linear": "c = Gemm(x, v, b)  y = MatMul(c, w)",
    "linear_relu": "c = MatMul(x, v)  d = Add(c, b)  r = Relu(d)  y = Gemm(r, w, b)",
    "chain": "c = MatMul(x, v)  r = LeakyRelu(c)  d = MatMul(r, w)  y = MatMul(d, v)",
    "parallel": "c = MatMul(x, v)  d = MatMul(c, w)  e = MatMul(c, v)  y = Add(d, e)",
}
IMAGES = {
    "batch_norm": "n = BatchNormalization(x, g, b, b, h)  y = Conv(n, k)",
    "convolution": "c = Conv(x, k, b)  r = Relu(c)  y = Conv(r, k)",
    "padded": "c = Conv(x, k, b)  y = Conv<pads = [1, 1, 1, 1]>(c, k)",
    "grouped": "c = Conv<group = 2>(x, kg, b)  r = Relu(c)  y = Conv<group = 2>(r, kg)",
    "depthwise": "c = Conv<group = 4>(x, kd)  y = Conv<group = 4>(c, kd, b)",
    "transposed": "c = ConvTranspose<group = 2>(x, kg)  y = ConvTranspose<group = 2>(c, kg)",
    "images_scaled": "a = Tanh(x)  m = Mul(a, gi)  n = Add(m, bi)  y = Conv(n, k)",
}


def _model(parse: Parse, body: str) -> ir.Model:
    dims, result = ("N,4,5,5", "N,4,P,Q") if body in IMAGES.values() else ("N,3,4", "N,3,4")
    if "Gemm" in body:
        dims = result = "N,4"
    model = parse(
        f"""g (float[{dims}] x) => (float[{result}] y)
        <float[4] g = {{4, -0.5, 0.1, 30}}, float[4] b = {{1, 0.2, 0.3, -4}},
         float[4] h = {{1, 2, 3, 0.5}}, float two = {{2}},
         float[4,4] w = {{{_numbers(16, 1)}}}, float[4,4] v = {{{_numbers(16, 2)}}},
         float[4,4] u = {{{_numbers(16, 3)}}}, float[4,4,1,1] k = {{{_numbers(16, 4)}}},
         float[4,2,1,1] kg = {{{_numbers(8, 5)}}}, float[4,1,1,1] kd = {{{_numbers(4, 6)}}},
         float[4,1,1] gi = {{4, -0.5, 0.1, 30}}, float[1,4,1,1] bi = {{1, 0.2, 0.3, -4}}>
        {{ {body} }}""",
        opset=23 if "RMS" in body else 21,
    )
    return Pipeline(parse_passes("remove-dead-code,infer-shapes")).run(model).model


def _feed(model: ir.Model) -> dict[str, Array]:
    shape = [2 if not isinstance(d, int) else d for d in model.graph.inputs[0].shape or ()]
    return {"x": np.random.default_rng(3).normal(size=shape).astype(np.float32)}


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("name", [*MATRICES, *IMAGES])
def test_the_function_stays(name: str, alpha: float, parse: Parse, apply_pass: Apply) -> None:
    model = _model(parse, {**MATRICES, **IMAGES}[name])
    feed = _feed(model)
    maxima = measure_channel_maxima(model, None, [feed])
    before = model.clone()
    result = apply_pass(SmoothQuant(maxima, alpha), model)
    assert set(result.rules) == {"migrate-outliers"}
    assert [node.op_type for node in model.graph] == [node.op_type for node in before.graph]
    wanted, found = (Session(each, REFERENCE).run(feed)["y"] for each in (before, model))
    assert np.abs(wanted - found).max() <= 5e-6 * np.abs(wanted).max()
    if alpha == 1.0:
        # All that the activations reach has moved into the weights.
        last = list(maxima)[-1]
        after = measure_channel_maxima(model, [last], [feed])[last]
        assert after == pytest.approx([0.0 if each == 0 else 1.0 for each in maxima[last]])


OBSTACLES = {
    "a residual reads it": "n = LayerNormalization(x, g, b)  c = MatMul(n, w)  y = Add(c, n)",
    "it is an input": "y = MatMul(x, w)",
    "gelu": "c = MatMul(x, v)  r = Gelu(c)  y = MatMul(r, w)",
    "a limit": "c = MatMul(x, v)  r = Clip(c, two)  y = MatMul(r, w)",
    "read twice on the way": """c = MatMul(x, v)  r = Relu(c)  d = MatMul(r, w)
        y = Add(c, d)""",
    "not constant": "s = Sigmoid(x)  n = Mul(x, s)  y = MatMul(n, w)",
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_costs_something_at_run_time_is_left_alone(
    name: str, parse: Parse, apply_pass: Apply
) -> None:
    model = _model(parse, OBSTACLES[name])
    maxima = measure_channel_maxima(model, None, [_feed(model)])
    result = apply_pass(SmoothQuant(maxima), model)
    assert not result.modified
    assert result.remarks


def test_dead_channels_and_dead_data_have_no_factor(parse: Parse, apply_pass: Apply) -> None:
    text = """g (float[N,2] x) => (float[N,1] y) <float[2] c = {1, 1}, float[2,1] w = {0, 4}>
        { n = Mul(x, c)  y = MatMul(n, w) }"""
    for largest in ((0.0, 0.0), (3.0, 0.0), (1e30, 1e-30)):
        model = parse(text)
        apply_pass(SmoothQuant(ChannelMaxima({"y": largest})), model)
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            assert np.isfinite(value.const_value.numpy()).all()


def test_maxima_of_another_model_and_bad_options_are_refused(
    parse: Parse, apply_pass: Apply
) -> None:
    model = _model(parse, MATRICES["layer_norm"])
    with pytest.raises(UsageError, match="'y' are another model's"):
        apply_pass(SmoothQuant(ChannelMaxima({"y": (1.0,)})), model)
    with pytest.raises(UsageError, match="none of the nodes"):
        apply_pass(SmoothQuant(ChannelMaxima({"other": (1.0,)})), model)
    with pytest.raises(UsageError, match="between 0 and 1"):
        apply_pass(SmoothQuant(ChannelMaxima({}), alpha=1.5), model)


def test_as_text(tmp_path: Any) -> None:
    maxima = ChannelMaxima({"b": (0.1, 2e-30), "a": (1.0,)})
    for each in (maxima, maxima.save(tmp_path / "maxima.json")):
        (parsed,) = parse_passes(print_pass(SmoothQuant(each, alpha=0.75)))
        assert parsed == SmoothQuant(maxima, alpha=0.75)
    with pytest.raises(UsageError, match="not a file of channel maxima"):
        ChannelMaxima.from_text('{"format": "onnxfold-output-errors", "version": 1, "errors": {}}')


def test_maxima_are_those_of_all_data(parse: Parse) -> None:
    model = _model(parse, IMAGES["convolution"])
    rng = np.random.default_rng(4)
    feeds = [{"x": rng.normal(size=(n, 4, 5, 5)).astype(np.float32)} for n in (1, 0, 3)]
    maxima = measure_channel_maxima(model, ["c"], feeds)
    everything = np.concatenate([feed["x"] for feed in feeds])
    assert maxima == ChannelMaxima({"c": np.abs(everything).max(axis=(0, 2, 3)).tolist()})
    with pytest.raises(UsageError, match="empty"):
        measure_channel_maxima(model, None, [])


def _sqnr(model: ir.Model, prepared: ir.Model, feeds: list[dict[str, Array]]) -> float:
    ranges = calibrate(prepared, tensors_to_observe(prepared, PlacementOptions()), feeds)
    quantized = prepared.clone()
    InsertQdq(ranges).run(quantized)
    old, new = Session(model, REFERENCE), Session(quantized, REFERENCE)
    pairs = [(old.run(feed)["y"], new.run(feed)["y"]) for feed in feeds]
    signal = sum(float(np.square(wanted).sum()) for wanted, _ in pairs)
    noise = sum(float(np.square(wanted - found).sum()) for wanted, found in pairs)
    return 10 * float(np.log10(signal / noise))


def test_a_normalization_with_outliers_gains_more_than_six_decibels(
    parse: Parse, apply_pass: Apply
) -> None:
    rng = np.random.default_rng(5)
    gamma = np.where(np.arange(32) % 16 == 3, 40.0, 1.0)
    weights = rng.normal(size=(32, 24)) / gamma[:, np.newaxis]
    texts = [", ".join(f"{v:.6f}" for v in each.reshape(-1)) for each in (gamma, weights)]
    model = parse(
        f"""g (float[N,32] x) => (float[N,24] y)
        <float[32] g = {{{texts[0]}}}, float[32,24] w = {{{texts[1]}}}>
        {{ n = LayerNormalization(x, g)  y = MatMul(n, w) }}"""
    )
    model = Pipeline(parse_passes("infer-shapes")).run(model).model
    feeds = [{"x": rng.normal(size=(16, 32)).astype(np.float32)} for _ in range(4)]
    smooth = model.clone()
    apply_pass(SmoothQuant(measure_channel_maxima(model, None, feeds)), smooth)
    assert _sqnr(model, smooth, feeds) > _sqnr(model, model, feeds) + 6
