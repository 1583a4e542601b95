"""fuse-hard-swish: every way in which exporters scale it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]

CONSTANTS = (
    "float three = {3}, float zero = {0}, float six = {6}, float[1] sixth = {0.16666667}, "
    "float two = {2}, float[1,1,1] cube = {6}"
)
GATE = "a = Add(x, three)  c = Clip(a, zero, six)  "


def _model(parse: Parse, body: str, opset: int = 17) -> ir.Model:
    return parse(f"g (float[2,9] x) => (float[2,9] y) <{CONSTANTS}> {{ {body} }}", opset=opset)


def _feed() -> dict[str, Any]:
    return {"x": np.linspace(-5, 5, 18, dtype=np.float32).reshape(2, 9)}


@pytest.mark.parametrize(
    "body",
    [
        GATE + "m = Mul(x, c)  y = Div(m, six)",
        GATE + "m = Mul(c, x)  y = Mul(sixth, m)",
        GATE + "d = Div(c, six)  y = Mul(x, d)",
        GATE + "d = Mul(c, sixth)  y = Mul(d, x)",
        GATE.replace("x, three", "three, x") + "m = Mul(x, c)  y = Div(m, six)",
        "h = HardSigmoid<alpha = 0.16666667>(x)  y = Mul(x, h)",
    ],
)
def test_fuses(
    parse: Parse,
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
    body: str,
) -> None:
    model = _model(parse, body)
    result = rewrite("fuse-hard-swish,remove-dead-code", model, _feed())
    assert result.rules["fuse-hard-swish"] == 1
    assert_text(model, "g (float[2,9] x) => (float[2,9] y) { y = HardSwish(x) }")


@pytest.mark.parametrize(
    "body",
    [
        GATE + "y = Mul(x, c)",
        GATE + "m = Mul(x, c)  y = Div(m, two)",
        GATE + "m = Mul(x, c)  y = Div(six, m)",
        GATE + "m = Mul(x, c)  d = Div(m, six)  y = Add(d, m)",
        GATE + "r = Relu(x)  m = Mul(r, c)  y = Div(m, six)",
        GATE.replace("zero, six", "zero, two") + "m = Mul(x, c)  y = Div(m, six)",
        GATE.replace("Clip(a, zero, six)", "Clip(a, , six)") + "m = Mul(x, c)  y = Div(m, six)",
        GATE.replace("x, three", "x, two") + "m = Mul(x, c)  y = Div(m, six)",
        "h = HardSigmoid(x)  y = Mul(x, h)",
    ],
)
def test_refuses(parse: Parse, apply_pass: Callable[..., PassResult], body: str) -> None:
    assert not apply_pass("fuse-hard-swish", _model(parse, body)).modified


def test_a_number_that_raises_the_rank(parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    model = _model(parse, GATE + "m = Mul(x, c)  y = Div(m, cube)")
    model.graph.outputs[0].shape = ir.Shape([1, 2, 9])
    assert not apply_pass("fuse-hard-swish", model).modified


def test_old_opset_is_told(parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    model = _model(parse, GATE + "m = Mul(x, c)  y = Div(m, six)", opset=13)
    result = apply_pass("fuse-hard-swish", model)
    assert not result.modified
    assert "opset 14" in result.remarks[0].reason
