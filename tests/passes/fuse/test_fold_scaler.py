"""fold-scaler: the Scaler that converters of scikit-learn write goes into the product behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]
Rewrite = Callable[..., PassResult]

NET = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1]>
g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {{1,2,3,4}}, float[2] b = {{5,6}}>
{{ s = ai.onnx.ml.Scaler <offset = [{offset}], scale = [{scale}]> (x)
   {cast} p = MatMul({name}, w)  {more} y = Add(p, b) }}"""


def net(
    offset: str = "1.0, 2.0", scale: str = "0.5, 4.0", cast: str = "", more: str = ""
) -> ir.Model:
    text = NET.format(offset=offset, scale=scale, cast=cast, more=more, name="c" if cast else "s")
    return ir.from_onnx_text(text)


@pytest.mark.parametrize("cast", ["", "c = Cast <to = 1> (s)"])
def test_it_becomes_part_of_the_product(cast: str) -> None:
    model = net(cast=cast)
    result = Pipeline(parse_passes("infer-shapes,fold-scaler,fold-scale-bias")).run(model)
    rules = [dict(each.rules) for _, each in result.results[1:]]
    assert rules == [{"scaler-to-arithmetic": 1}, {"fold-arithmetic-into-consumer": 2}]
    # 5 - 1 * 0.5 * 1 - 2 * 4 * 3, 6 - 1 * 0.5 * 2 - 2 * 4 * 4
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    constants = {
        len(each.shape or ()): each.const_value.numpy().tolist()
        for each in model.graph.initializers.values()
        if each.const_value is not None
    }
    assert constants == {2: [[0.5, 1.0], [12.0, 16.0]], 1: [-19.5, -27.0]}


@pytest.mark.parametrize(
    "model",
    [
        {"more": "q = Neg(s)"},
        {"offset": "1.0, 2.0, 3.0"},
        {"cast": "c = Cast <to = 1> (s) r = Neg(s)"},
    ],
)
def test_what_it_leaves_alone(apply_pass: Apply, model: Mapping[str, Any]) -> None:
    assert not apply_pass("fold-scaler", net(**model)).modified


def test_factors_of_a_wide_spread_stay_where_they_are(parse: Parse, apply_pass: Apply) -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2] f = {%s}, float[2,2] w = {1,2,3,4}>
    { s = Mul(x, f)  y = MatMul(s, w) }"""
    assert not apply_pass("fold-scale-bias{spread=16}", parse(text % "1, 17")).modified
    assert apply_pass("fold-scale-bias{spread=16}", parse(text % "-1, 15")).modified
    assert apply_pass("fold-scale-bias{spread=16}", parse(text % "0, 15")).modified
    assert apply_pass("fold-scale-bias", parse(text % "1, 17")).modified


def test_it_computes_the_same(rewrite: Rewrite) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    result = rewrite("infer-shapes,fold-scaler,fold-scale-bias", net(), {"x": x})
    assert result.modified
