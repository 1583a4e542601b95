"""Products beyond the plain ones: negative factors, stacks of matrices, great depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.simplify.infer_shapes import InferShapes

Target = Literal["ort", "standard", "qdq", "integer"]
_TYPES = "float sx = {0.031}, uint8 zx = {99}, float sy = {0.073}, uint8 zy = {101}"

_NEGATIVE = (
    "agraph (uint8[3,2] q) => (uint8[3,2] y) <" + _TYPES + ", int8[2,2] w = {1, -20, 30, 4},"
    " float[2] sw = {0.07, 0.09}, float[2] b = {0.5, -0.25}> {"
    " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear <axis = 1> (w, sw)"
    " c = Gemm <alpha = -0.5, beta = -2.0> (x, v, b) y = QuantizeLinear (c, sy, zy) }"
)

_STACK = (
    "agraph (uint8[2,3,2] q) => (uint8[2,3,2] y) <" + _TYPES + ","
    " int8[2,2,2] w = {1, -20, 30, 4, 50, -60, 7, 8}, float[2] sw = {0.07, 0.09}> {"
    " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear <axis = 2> (w, sw)"
    " c = MatMul (x, v) y = QuantizeLinear (c, sy, zy) }"
)


def _check(
    text: str,
    target: Target,
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> list[str]:
    """The ops after folding, once the codes are known to be those of before."""
    model = parse(text)
    InferShapes().run(model)
    source = model.graph.inputs[0]
    assert source.shape is not None
    shape = source.shape.numpy()
    feed = {"q": np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)}
    want = evaluate(model, feed)["y"]
    FoldQdq(target=target).run(model)
    np.testing.assert_array_equal(evaluate(model, feed)["y"], want)
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("target", ["ort", "standard", "integer"])
def test_negative_alpha_turns_the_weights(
    target: Target, parse: Callable[..., ir.Model], evaluate: Callable[..., dict[str, Any]]
) -> None:
    ops = _check(_NEGATIVE, target, parse, evaluate)
    assert "Gemm" not in ops
    assert "DequantizeLinear" not in ops


def test_weights_without_opposites_are_refused(parse: Callable[..., ir.Model]) -> None:
    model = parse(_NEGATIVE.replace("{1, -20, 30, 4}", "{1, -128, 30, 4}"))
    result = FoldQdq().run(model)
    assert [remark.reason for remark in result.remarks if remark.op_type == "Gemm"] == [
        "its weights have no opposites in int8"
    ]


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_stacked_matrices_keep_a_scale_a_column(
    target: Target, parse: Callable[..., ir.Model], evaluate: Callable[..., dict[str, Any]]
) -> None:
    assert "MatMulInteger" in _check(_STACK, target, parse, evaluate)


def test_ort_leaves_stacked_matrices_in_float(
    parse: Callable[..., ir.Model], evaluate: Callable[..., dict[str, Any]]
) -> None:
    assert "MatMul" in _check(_STACK, "ort", parse, evaluate)


@pytest.mark.parametrize(("depth", "folds"), [(33025, True), (33026, False)])
def test_products_of_activations_deeper_than_int32_holds_are_refused(
    depth: int, folds: bool, parse: Callable[..., ir.Model]
) -> None:
    text = (
        f"agraph (uint8[1,{depth}] q, uint8[{depth},1] p) => (uint8[1,1] y) <"
        "float s = {0.1}, uint8 z = {0}> { x = DequantizeLinear (q, s, z)"
        " v = DequantizeLinear (p, s, z) c = MatMul (x, v) y = QuantizeLinear (c, s, z) }"
    )
    model = parse(text)
    InferShapes().run(model)
    result = FoldQdq().run(model)
    assert ("QLinearMatMul" in {node.op_type for node in model.graph}) == folds
    assert any("overflow" in remark.reason for remark in result.remarks) != folds


@pytest.mark.parametrize("target", ["ort", "standard", "integer"])
def test_gemm_of_activations_is_their_product(
    target: Target, parse: Callable[..., ir.Model], evaluate: Callable[..., dict[str, Any]]
) -> None:
    text = (
        "agraph (uint8[3,4] q, uint8[4,2] p) => (uint8[3,2] y) <" + _TYPES + "> {"
        " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear (p, sx, zx)"
        " c = Gemm <alpha = 0.5> (x, v) y = QuantizeLinear (c, sy, zy) }"
    )
    model = parse(text)
    numbers = np.random.default_rng(0)
    feed = {
        "q": numbers.integers(0, 256, (3, 4)).astype(np.uint8),
        "p": numbers.integers(0, 256, (4, 2)).astype(np.uint8),
    }
    want = evaluate(model, feed)["y"]
    FoldQdq(target=target).run(model)
    assert {node.op_type for node in model.graph}.isdisjoint({"Gemm", "DequantizeLinear"})
    np.testing.assert_array_equal(evaluate(model, feed)["y"], want)


def test_gemm_of_activations_with_more_to_it_stays(parse: Callable[..., ir.Model]) -> None:
    text = (
        "agraph (uint8[4,3] q, uint8[4,2] p) => (uint8[3,2] y) <" + _TYPES + "> {"
        " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear (p, sx, zx)"
        " c = Gemm <transA = 1> (x, v) y = QuantizeLinear (c, sy, zy) }"
    )
    reasons = [remark.reason for remark in FoldQdq().run(parse(text)).remarks]
    assert "a Gemm of two activations is more than their product" in reasons


def test_canonical_movement_to_another_scale_is_one_pair(
    parse: Callable[..., ir.Model],
) -> None:
    text = (
        "agraph (uint8[3,4] q) => (uint8[4,3] y) <" + _TYPES + ", int64[2] h = {4, 3}> {"
        " x = DequantizeLinear (q, sx, zx) c = Reshape (x, h) y = QuantizeLinear (c, sy, zy) }"
    )
    model = parse(text)
    FoldQdq(target="qdq").run(model)
    assert [node.op_type for node in model.graph] == [
        "DequantizeLinear",
        "Reshape",
        "QuantizeLinear",
    ]


def test_batch_norm_with_dequantized_parameters_folds(
    parse: Callable[..., ir.Model], evaluate: Callable[..., dict[str, Any]]
) -> None:
    """onnxruntime's quantize_static quantizes the scale and the shift of a BatchNormalization."""
    text = (
        "agraph (uint8[1,2,3,3] q) => (uint8[1,2,3,3] y) <" + _TYPES + ","
        " int8[2,2,1,1] w = {1, -20, 30, 4}, float sw = {0.07}, uint8[2] g = {90, 200},"
        " float sg = {0.01}, uint8 zg = {10}, int8[2] h = {5, -9}, float sh = {0.02},"
        " int8 zh = {1}, float[2] mean = {0.1, -0.2}, float[2] var = {0.9, 1.3}> {"
        " x = DequantizeLinear (q, sx, zx) v = DequantizeLinear (w, sw)"
        " gf = DequantizeLinear (g, sg, zg) hf = DequantizeLinear (h, sh, zh)"
        " c = Conv (x, v) n = BatchNormalization (c, gf, hf, mean, var)"
        " y = QuantizeLinear (n, sy, zy) }"
    )
    ops = _check(text, "integer", parse, evaluate)
    assert "BatchNormalization" not in ops
    assert "DequantizeLinear" not in ops
