"""fuse-matmul-add: MatMul and its bias become Gemm, for matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

DENSE = "float[3,2] w = {1,2,3,4,5,6}"


@pytest.mark.parametrize("bias", ["float[2] b = {1,2}", "float[1,2] b = {1,2}", "float b = {3}"])
def test_fuses(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
    bias: str,
) -> None:
    model = parse(
        f"g (float[N,3] x) => (float[N,2] y) <{DENSE}, {bias}> "
        "{ t = MatMul(x, w)  y = Add(b, t) }"
    )
    feed = {"x": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    assert rewrite("fuse-matmul-add", model, feed).rules == {"fuse-matmul-add": 1}
    assert_text(
        model, f"g (float[N,3] x) => (float[N,2] y) <{DENSE}, {bias}> {{ y = Gemm(x, w, b) }}"
    )


@pytest.mark.parametrize(
    "text",
    [
        f"g (float[N,4,3] x) => (float[N,4,2] y) <{DENSE}, float[2] b = {{1,2}}> "
        "{ t = MatMul(x, w)  y = Add(t, b) }",
        f"g (float[4,3] x) => (float[4,2] y) <{DENSE}, float[4,1] b = {{1,2,3,4}}> "
        "{ t = MatMul(x, w)  y = Add(t, b) }",
        f"g (float[4,3] x) => (float[1,4,2] y) <{DENSE}, float[1,1,2] b = {{1,2}}> "
        "{ t = MatMul(x, w)  y = Add(t, b) }",
        f"g (float[4,3] x) => (float[4,2] y, float[4,2] t) <{DENSE}, float[2] b = {{1,2}}> "
        "{ t = MatMul(x, w)  y = Add(t, b) }",
        f"g (float[2,4] x) => (float[3,4] y) <{DENSE}, float[3,1] b = {{1,2,3}}> "
        "{ t = MatMul(w, x)  y = Add(t, b) }",
    ],
)
def test_refuses(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], text: str
) -> None:
    assert not apply_pass("fuse-matmul-add", parse(text)).modified
