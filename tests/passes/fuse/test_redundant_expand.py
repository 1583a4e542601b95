"""remove-redundant-expand: bit-identical without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]
CONSTANTS = "int64[2] s = {1,3}, int64[2] t = {2,3}, float[2,3] w = {1,2,3,4,5,6}"


def _model(parse: Parse, body: str, output: str = "float[2,3]") -> ir.Model:
    model = parse(f"g (float[3] x) => ({output} y) <{CONSTANTS}> {{ {body} }}")
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


def _feed() -> dict[str, Any]:
    return {"x": np.arange(3, dtype=np.float32)}


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("r = Reshape(x, s)  e = Expand(r, s)  y = Relu(e)", "float[1,3]"),
        ("e = Expand(x, t)  y = Add(e, w)", "float[2,3]"),
        ("e = Expand(x, t)  a = Sub(w, e)  b = Mul(e, w)  y = Add(a, b)", "float[2,3]"),
        ("e = Expand(x, t)  y = PRelu(w, e)", "float[2,3]"),
    ],
)
def test_removes(parse: Parse, rewrite: Callable[..., PassResult], body: str, output: str) -> None:
    model = _model(parse, body, output)
    assert rewrite("remove-redundant-expand", model, _feed(), exact=True).modified
    assert "Expand" not in [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    "body",
    [
        "e = Expand(x, t)  y = Relu(e)",
        "e = Expand(x, t)  y = Add(e, e)",
        "e = Expand(x, t)  y = Add(e, x)",
        "e = Expand(x, t)  a = Mul(e, w)  b = Relu(e)  y = Add(a, b)",
        "e = Expand(x, t)  y = PRelu(e, w)",
        "r = Reshape(x, s)  e = Expand(r, t)  y = Relu(e)",
    ],
)
def test_keeps(parse: Parse, apply_pass: Callable[..., PassResult], body: str) -> None:
    assert not apply_pass("remove-redundant-expand", _model(parse, body)).modified
