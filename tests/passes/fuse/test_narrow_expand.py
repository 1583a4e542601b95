"""narrow-expand: masks that are expanded over the features they are multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

_CONSTANTS = (
    "int64[1] features = {4}, int64[1] tokens = {1}, int64[1] last = {2}, float least = {0.001}"
)
_HEAD = "g (float[B,S,4] x, int64[B,S,1] m) => (float[B,4] y)"
_SIZES = "p = Shape <start = 0, end = 1> (x) q = Shape <start = 1, end = 2> (x) "
_TARGET = f"{_SIZES} t = Concat <axis = 0> (p, q, features) "
_MASK = "e = Expand (m, t) c = Cast <to = 1> (e) "
_SUM = "w = Mul (x, c) s = ReduceSum <keepdims = 0> (w, tokens) "
_COUNT = "n = ReduceSum <keepdims = 0> (c, tokens) l = Clip (n, least) "
_POOLING = f"{_TARGET} {_MASK} {_SUM} {_COUNT} y = Div (s, l)"


def _text(body: str, head: str = _HEAD) -> str:
    return f"{head} <{_CONSTANTS}> {{ {body} }}"


def _feed() -> dict[str, Any]:
    random = np.random.default_rng(0)
    ones = random.integers(0, 2, (3, 5, 1))
    return {"x": random.normal(size=(3, 5, 4)).astype(np.float32), "m": ones}


def test_mean_of_masked_tokens(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = Pipeline(parse_passes("infer-shapes")).run(parse(_text(_POOLING))).model
    assert rewrite("narrow-expand", model, _feed()).rules == {"narrow-expand": 1}
    Pipeline(parse_passes("remove-dead-code")).run(model)
    target = f"{_SIZES} t_narrow = Concat <axis = 0> (p, q, one) e = Expand (m, t_narrow) "
    body = f"{target} c = Cast <to = 1> (e) {_SUM} {_COUNT} y = Div (s, l)"
    constants = "int64[1] tokens = {1}, float least = {0.001}, int64[1] one = {1}"
    assert_text(model, f"{_HEAD} <{constants}> {{ {body} }}")


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (f"{_TARGET} {_MASK} y = ReduceSum <keepdims = 0> (c, tokens)", _HEAD),
        (
            f"{_TARGET} {_MASK} y = ReduceSum <keepdims = 0> (c, last)",
            _HEAD.replace("[B,4] y", "[B,S] y"),
        ),
        (f"{_TARGET} {_MASK} y = Mul (c, c)", _HEAD.replace("[B,4] y", "[B,S,4] y")),
        (f"{_TARGET} {_MASK} y = MatMul (x, c)", _HEAD.replace("[B,4] y", "[B,S,4] y")),
        (
            f"{_TARGET} {_MASK} {_SUM} y = Identity (s)",
            _HEAD.replace("=> (", "=> (float[B,S,4] c, "),
        ),
        (f"{_SIZES} t = Concat <axis = 0> (p, q, p) {_MASK} {_SUM} y = Identity (s)", _HEAD),
    ],
)
def test_refuses(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], body: str, head: str
) -> None:
    model = Pipeline(parse_passes("infer-shapes")).run(parse(_text(body, head))).model
    assert not apply_pass("narrow-expand", model).modified


def test_keeps_the_place_of_an_axis_behind_reductions(
    parse: Callable[..., ir.Model], rewrite: Callable[..., PassResult]
) -> None:
    body = f"{_TARGET} {_MASK} n = ReduceSum <keepdims = 1> (c, tokens) y = Mul (x, n)"
    text = _text(body, _HEAD.replace("[B,4] y", "[B,S,4] y"))
    model = Pipeline(parse_passes("infer-shapes")).run(parse(text)).model
    assert rewrite("narrow-expand", model, _feed()).rules == {"narrow-expand": 1}
