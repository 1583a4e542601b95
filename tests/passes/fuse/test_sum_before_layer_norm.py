"""sum-before-layer-norm: what ONNX Runtime would fuse into a slower kernel is left apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.runtime.session import Session, SessionConfig

OPTIMIZED = SessionConfig("optimized", optimize=True, threads=1)
WEIGHTS = "float[3] w = {1,2,3}, float[3] b = {0.5,0,-1}"
NORMED = "y = LayerNormalization<axis=-1>(t, w, b)"


def test_the_addition_becomes_a_sum(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    head = f"g (float[N,4,3] x, float[N,4,3] s) => (float[N,4,3] y) <{WEIGHTS}>"
    model = parse(f"{head} {{ t = Add(x, s)  {NORMED} }}")
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=(2, 4, 3)).astype(np.float32) for name in "xs"}
    result = rewrite("sum-before-layer-norm", model, feed, exact=True)
    assert result.rules == {"sum-before-layer-norm": 1}
    assert_text(model, f"{head} {{ t_1 = Sum(x, s)  {NORMED.replace('(t,', '(t_1,')} }}")


@pytest.mark.parametrize(
    "body",
    [
        f"t = Mul(x, s)  {NORMED}",
        "t = Add(x, s)  y = Relu(t)",
        f"t = Identity(x)  {NORMED}",
    ],
)
def test_others_stay(
    parse: Callable[..., ir.Model], rewrite: Callable[..., PassResult], body: str
) -> None:
    model = parse(f"g (float[2,3] x, float[2,3] s) => (float[2,3] y) <{WEIGHTS}> {{ {body} }}")
    feed = {name: np.arange(6, dtype=np.float32).reshape(2, 3) for name in "xs"}
    assert not rewrite("sum-before-layer-norm", model, feed).rules


@pytest.mark.parametrize("separate", [False, True])
def test_onnxruntime_fuses_the_addition_only(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
    tmp_path: Path,
    separate: bool,
) -> None:
    model = parse(
        f"g (float[2,4,3] x, float[2,4,3] s) => (float[2,4,3] y) <{WEIGHTS}> "
        f"{{ t = Add(x, s)  {NORMED} }}"
    )
    feed = {name: np.ones((2, 4, 3), np.float32) for name in "xs"}
    if separate:
        rewrite("sum-before-layer-norm", model, feed)
    path = tmp_path / "optimized.onnx"
    Session(model, OPTIMIZED, optimized_model_path=path)
    kinds = {node.op_type for node in ir.load(path).graph}
    assert ("SkipLayerNormalization" in kinds) is not separate
