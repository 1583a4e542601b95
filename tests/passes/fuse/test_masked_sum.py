"""masked-sum: what a mask leaves of a sequence is summed by a product, where the rows agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

POOLED = (
    "g (float[B,T,64] x, int64[B,T] mask) => (float[B,64] y) <int64[1] axes = {1},"
    " int64[1] last = {2}, int64[1] one = {1}> { t = Identity(x)  u = Unsqueeze(mask, last)"
    "  b = Shape<start=0, end=1>(t)  r = Shape<start=1, end=2>(t)  s = Concat<axis=0>(b, r, one)"
    "  e = Expand(u, s)  w = Cast<to=1>(e)  m = Mul(t, w)  y = ReduceSum<keepdims=0>(m, axes) }"
)


def _feed(rows: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, rows, 64)).astype(np.float32)
    return {"x": vectors, "w": rng.uniform(size=(2, rows, 1)).astype(np.float32)}


def test_the_product_and_the_sum_become_one_product(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(
        "g (float[B,7,64] x, float[B,7,1] w) => (float[B,64] y) <int64[1] axes = {1}>"
        " { m = Mul(w, x)  y = ReduceSum<keepdims=0>(m, axes) }"
    )
    result = rewrite("infer-shapes,masked-sum,remove-dead-code", model, _feed())
    assert result.rules["masked-sum"] == 1
    assert_text(
        model,
        "g (float[B,7,64] x, float[B,7,1] w) => (float[B,64] y) <int64[1] rows = {1}>"
        " { y_transpose = Transpose<perm=[0,2,1]>(w)  y_matmul = MatMul(y_transpose, x)"
        "  y = Squeeze(y_matmul, rows) }",
    )


def test_a_sum_that_keeps_its_axis(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
) -> None:
    model = parse(
        "g (float[B,7,64] x, float[1,7,1] w) => (float[B,1,64] y) <int64[1] axes = {-2}>"
        " { m = Mul(x, w)  y = ReduceSum(m, axes) }"
    )
    feed = _feed()
    result = rewrite("infer-shapes,masked-sum,remove-dead-code", model, feed | {"w": feed["w"][:1]})
    assert result.rules["masked-sum"] == 1
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]


@pytest.mark.parametrize("rows", [7, 1])
def test_a_mask_that_is_expanded_to_the_rows(
    parse: Callable[..., ir.Model], rewrite: Callable[..., PassResult], rows: int
) -> None:
    model = parse(POOLED)
    feed = {"x": _feed(rows)["x"], "mask": np.ones((2, rows), np.int64)}
    feed["mask"][1, rows // 2 :] = 0
    assert rewrite("infer-shapes,masked-sum", model, feed).rules["masked-sum"] == 1


@pytest.mark.parametrize(
    "text",
    [
        POOLED.replace("int64[B,T] mask", "int64[B,S] mask"),
        "g (float[B,T,64] x, float[B,S,1] w) => (float[B,64] y) <int64[1] axes = {1}>"
        " { m = Mul(x, w)  y = ReduceSum<keepdims=0>(m, axes) }",
        "g (float[B,7,64] x, float[B,7,64] w) => (float[B,64] y) <int64[1] axes = {1}>"
        " { m = Mul(x, w)  y = ReduceSum<keepdims=0>(m, axes) }",
        "g (float[B,7,64] x, float[B,7,1] w) => (float[B,7] y) <int64[1] axes = {2}>"
        " { m = Mul(x, w)  y = ReduceSum<keepdims=0>(m, axes) }",
        "g (float[B,7,64] x, float[B,7,1] w) => (float[B,64] y, float[B,7,64] m)"
        " <int64[1] axes = {1}> { m = Mul(x, w)  y = ReduceSum<keepdims=0>(m, axes) }",
        "g (float[B,7,8] x, float[B,7,1] w) => (float[B,8] y) <int64[1] axes = {1}>"
        " { m = Mul(x, w)  y = ReduceSum<keepdims=0>(m, axes) }",
    ],
    ids=["lengths", "rows", "weights", "axis", "read", "small"],
)
def test_others_stay(parse: Callable[..., ir.Model], text: str) -> None:
    results = Pipeline(parse_passes("infer-shapes,masked-sum")).run(parse(text)).results
    assert not any(result.rules["masked-sum"] for _, result in results)
