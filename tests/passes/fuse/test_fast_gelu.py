"""fast-gelu: every way in which a Gelu is written, where its result is rounded to codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig

_CONSTANTS = (
    "float root = {1.4142135}, float inverse = {0.70710677}, float one = {1}, float half = {0.5}, "
    "float s = {0.02}, uint8 z = {9}"
)
_ERF = "d = Div (x, root) e = Erf (d) a = Add (e, one) "
_ROUND = " y = QuantizeLinear (g, s, z)"


def _text(body: str, constants: str = _CONSTANTS, result: str = "uint8[2,9] y") -> str:
    return f"agraph (float[2,9] x) => ({result}) <{constants}> {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        f"{_ERF} m = Mul (x, a) g = Mul (m, half)",
        f"{_ERF} m = Mul (half, a) g = Mul (x, m)",
        f"{_ERF} h = Mul (x, half) g = Mul (h, a)",
        "d = Mul (inverse, x) e = Erf (d) a = Add (one, e) m = Mul (a, x) g = Mul (half, m)",
    ],
)
@pytest.mark.parametrize("config", [REFERENCE, DEPLOYMENT], ids=["optimized-off", "optimized-on"])
def test_fuses(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
    body: str,
    config: SessionConfig,
) -> None:
    before, model = parse(_text(body + _ROUND)), parse(_text(body + _ROUND))
    assert apply_pass("fast-gelu", model).rules == {"fast-gelu": 1}
    Pipeline(parse_passes("remove-dead-code")).run(model)
    fast = "g_fast = com.microsoft.FastGelu (x) y = QuantizeLinear (g_fast, s, z)"
    assert_text(model, _text(fast, "float s = {0.02}, uint8 z = {9}"))
    feed = {"x": np.linspace(-5, 4.6, 18, dtype=np.float32).reshape(2, 9)}
    codes = [Session(each, config).run(feed)["y"].astype(int) for each in (before, model)]
    assert np.ptp(codes[0]) > 200
    assert np.max(np.abs(codes[1] - codes[0])) <= 1


def test_the_operator(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(_text("g = Gelu (x)" + _ROUND), opset=20)
    assert apply_pass("fast-gelu", model).rules == {"fast-gelu": 1}
    model = parse(_text('g = Gelu <approximate = "tanh"> (x)' + _ROUND), opset=20)
    assert not apply_pass("fast-gelu", model).modified


_GELU = f"{_ERF} m = Mul (x, a) g = Mul (m, half)"


@pytest.mark.parametrize(
    ("body", "constants", "result"),
    [
        (_GELU + _ROUND, _CONSTANTS.replace("0.02", "0.0018"), "uint8[2,9] y"),
        (_GELU + _ROUND, _CONSTANTS.replace("0.5", "0.4"), "uint8[2,9] y"),
        (_GELU + _ROUND, _CONSTANTS.replace("{1.4142135}", "{1.5}"), "uint8[2,9] y"),
        (_GELU + _ROUND, _CONSTANTS.replace("one = {1}", "one = {2}"), "uint8[2,9] y"),
        (_GELU + _ROUND, _CONSTANTS, "uint8[2,9] y, float[2,9] g"),
        (_GELU + " y = Relu (g)", _CONSTANTS, "float[2,9] y"),
        (
            f"{_ERF} m = Mul (x, a) n = Mul (m, x) g = Mul (n, half)" + _ROUND,
            _CONSTANTS,
            "uint8[2,9] y",
        ),
        (f"{_ERF} g = Mul (a, half)" + _ROUND, _CONSTANTS, "uint8[2,9] y"),
    ],
)
def test_refuses(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    body: str,
    constants: str,
    result: str,
) -> None:
    assert not apply_pass("fast-gelu", parse(_text(body, constants, result))).modified
