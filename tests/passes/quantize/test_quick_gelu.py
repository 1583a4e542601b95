"""quick-gelu and scale-quick-gelu: a Gelu by a logistic function, and its slope in the products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.quantize.gelu_slopes import GeluSlopes
from onnxfold.passes.quantize.quick_gelu import QuickGelu
from onnxfold.runtime.calibrate.gelu_slopes import measure_gelu_slopes
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig
from onnxfold.runtime.trial import feeds_for

HEAD = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
WRITTEN_OUT = (
    "g (float[2,9] x) => (float[2,9] y) <float root = {1.4142135}, float one = {1},"
    " float half = {0.5}> { d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a)"
    " y = Mul (m, half) }"
)
PRODUCT = (
    HEAD + " g (uint8[5,2] x) => (uint8[5,3] y) <int8[2,3] w = {90,-70,60,80,50,-40},"
    " float s = {0.02}, float[3] sw = {%s}, uint8 z = {128}, int8[3] zw = {0,0,0},"
    " float[3] b = {%s}, float sy = {%s}, uint8 zy = {20}, float[5,3] p, float[5,3] q> {"
    " p = com.microsoft.MatMulIntegerToFloat (x, w, s, sw, z, zw, b)"
    " q = com.microsoft.QuickGelu <alpha = %s> (p)  y = QuantizeLinear (q, sy, zy) }"
)
BEFORE = PRODUCT % ("0.01, 0.02, 0.015", "0.1, -0.2, 0.3", "0.03", "1.6")


def test_a_gelu_written_out(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(WRITTEN_OUT)
    model.graph[-1].name = "last"
    result = apply_pass(QuickGelu(GeluSlopes({"last": (1.5,), "another": (1.7,)})), model)
    assert result.rules == {"quick-gelu": 1}
    x = np.linspace(-4, 4, 18, dtype=np.float32).reshape(2, 9)
    wanted = x / (1 + np.exp(-1.5 * x))
    assert np.allclose(Session(model, REFERENCE).run({"x": x})["y"], wanted, atol=1e-6)
    assert [node.op_type for node in model.graph][-1] == "QuickGelu"


@pytest.mark.parametrize("config", [REFERENCE, DEPLOYMENT], ids=["optimized-off", "optimized-on"])
def test_the_slope_goes_into_the_product_and_the_rounding(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    config: SessionConfig,
) -> None:
    before, model = parse(BEFORE), parse(BEFORE)
    assert apply_pass("scale-quick-gelu", model).rules == {"scale-quick-gelu": 1}
    assert not apply_pass("scale-quick-gelu", model).rules
    nodes = list(model.graph)
    assert nodes[1].attributes["alpha"].as_float() == 1.0
    feed = {"x": np.random.default_rng(0).integers(0, 256, (5, 2)).astype(np.uint8)}
    codes = [Session(each, config).run(feed)["y"].astype(int) for each in (before, model)]
    assert np.ptp(codes[0]) > 60
    assert np.max(np.abs(codes[1] - codes[0])) <= 1
    assert np.mean(codes[1] != codes[0]) < 0.1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y = QuantizeLinear (q, sy, zy)", "o = Neg (q)  y = QuantizeLinear (o, sy, zy)"),
        ("y = QuantizeLinear (q, sy, zy)", "o = Add (q, p)  y = QuantizeLinear (o, sy, zy)"),
        ("alpha = 1.6", "alpha = 1.0"),
    ],
)
def test_other_readers_keep_the_slope(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], old: str, new: str
) -> None:
    model = parse(BEFORE.replace(old, new))
    assert not apply_pass("scale-quick-gelu", model).rules


def _feeds(model: ir.Model, scale: float) -> FeedSource:
    rng = np.random.default_rng(0)
    samples = [{"x": (scale * rng.normal(size=(2, 9))).astype(np.float32)} for _ in range(12)]
    return feeds_for(model, samples)


@pytest.mark.parametrize(("scale", "least", "most"), [(0.3, 1.58, 1.65), (1.5, 1.68, 1.75)])
def test_the_slope_is_that_of_least_error_on_the_data(
    parse: Callable[..., ir.Model], scale: float, least: float, most: float
) -> None:
    model = parse(WRITTEN_OUT)
    model.graph[-1].name = "last"
    ((slope,),) = measure_gelu_slopes(model, _feeds(model, scale)).values()
    assert least < slope < most


def test_what_makes_too_much_noise_at_the_outputs_stays(parse: Callable[..., ir.Model]) -> None:
    small = "r = Relu (x) y = Sub (g, r)"
    model = parse(WRITTEN_OUT.replace("y = Mul (m, half)", f"g = Mul (m, half) {small}"))
    assert not measure_gelu_slopes(model, _feeds(model, 1.5))
