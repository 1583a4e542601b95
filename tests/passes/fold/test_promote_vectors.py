"""Vectors in fake-quantized products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.promote_vectors import PromoteVectors
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes

_TYPES = (
    "float sx = {0.03}, uint8 zx = {99}, float sy = {0.11}, uint8 zy = {101}, float sw = {0.07}"
)
_CONSTANT = (
    "agraph (uint8[3] q) => (uint8[2] y) <" + _TYPES + ", int8[3,2] w = {1, -2, 3, 4, -5, 6}> {"
    " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear (w, sw)"
    " c = MatMul (x, v) y = QuantizeLinear (c, sy, zy) }"
)
_RIGHT = (
    "agraph (uint8[4,3] q) => (uint8[4] y) <" + _TYPES + ", int8[3] w = {1, -2, 3}> {"
    " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear (w, sw)"
    " c = MatMul (x, v) y = QuantizeLinear (c, sy, zy) }"
)
_BOTH = (
    "agraph (uint8[5] q, uint8[5] p) => (uint8 y) <" + _TYPES + "> {"
    " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear (p, sx, zx)"
    " c = MatMul (x, v) y = QuantizeLinear (c, sy, zy) }"
)


def test_rewrite(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(_RIGHT)
    assert not PromoteVectors().run(model.clone()).modified, "ranks are not known"
    model = Pipeline(parse_passes("infer-shapes")).run(model).model
    result = apply_pass(PromoteVectors(), model)
    assert result.rules == {"promote-vectors": 1}
    assert_text(
        model,
        "agraph (uint8[4,3] q) => (uint8[4] y) <"
        + _TYPES
        + ", int8[3] w = {1, -2, 3}, int64[1] v_axes = {1}, int64[1] c_axes = {-1}> {"
        " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear (w, sw)"
        " v_unsqueeze = Unsqueeze (v, v_axes) c_matrix = MatMul (x, v_unsqueeze)"
        " c_squeeze = Squeeze (c_matrix, c_axes) y = QuantizeLinear (c_squeeze, sy, zy) }",
    )


@pytest.mark.parametrize("target", ["ort", "standard", "qdq", "integer"])
@pytest.mark.parametrize("text", [_CONSTANT, _RIGHT, _BOTH], ids=["left", "right", "both"])
def test_folds_to_the_same_codes(
    text: str,
    target: str,
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    model = parse(text)
    numbers = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        feed[value.name] = numbers.integers(0, 256, value.shape.numpy()).astype(np.uint8)
    want = evaluate(model, feed)["y"].astype(int)
    folded = Pipeline(parse_passes(folding(target))).run(model).model
    ops = {node.op_type for node in folded.graph}
    assert ("DequantizeLinear" in ops) == (target == "qdq")
    got = evaluate(folded, feed)["y"].astype(int)
    assert got.shape == want.shape
    assert np.max(np.abs(got - want), initial=0) <= 1
