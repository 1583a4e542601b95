"""scale-factor: what scales a product of two tensors moves to a linear operator before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.presets import FUSE

_CONSTANTS = (
    "float[4,4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}, float[4] b = {1,-2,3,-4}, float s = {8.0}, "
    "int64[4] shape = {0,0,2,2}"
)
_HEAD = "g (float[1,N,4] x, float[1,2,2,N] k) => (float[1,2,N,N] y)"
_QUERIES = "m = MatMul (x, w) q = Add (m, b) "
_HEADS = "r = Reshape (q, shape) t = Transpose <perm = [0,2,1,3]> (r) "


def _text(body: str, head: str = _HEAD, constants: str = _CONSTANTS) -> str:
    return f"{head} <{constants}> {{ {body} }}"


def _feed() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    random = np.random.default_rng(0)
    shapes = {"x": (1, 3, 4), "k": (1, 2, 2, 3)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_scores_are_scaled_as_queries(
    parse: Callable[..., ir.Model],
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(_text(f"{_QUERIES} {_HEADS} p = MatMul (t, k) y = Div (p, s)"))
    assert rewrite("scale-factor", model, _feed()).rules == {"scale-factor": 1}
    scaled = "q_scaled = Div (q, s) r = Reshape (q_scaled, shape) "
    moved = f"{_QUERIES} {scaled} t = Transpose <perm = [0,2,1,3]> (r) y = MatMul (t, k)"
    assert_text(model, _text(moved))


@pytest.mark.parametrize(
    "body",
    [
        f"{_QUERIES} {_HEADS} p = MatMul (t, k) y = Mul (s, p)",
        f"{_QUERIES} {_HEADS} u = Mul (t, s) y = MatMul (u, k)",
        "m = MatMul (x, w) r = Reshape (m, shape) t = Transpose <perm = [0,2,1,3]> (r) "
        "p = MatMul (t, k) y = Div (p, s)",
    ],
)
def test_nothing_scales_after_all_fusions(
    parse: Callable[..., ir.Model], rewrite: Callable[..., PassResult], body: str
) -> None:
    model = parse(_text(body))
    rewrite(FUSE, model, _feed())
    assert {"Mul", "Div"}.isdisjoint(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    "body",
    [
        f"{_QUERIES} {_HEADS} p = MatMul (t, k) y = Div (s, p)",
        f"{_QUERIES} r = Reshape (q, shape) e = Exp (r) t = Transpose <perm = [0,2,1,3]> (e) "
        "p = MatMul (t, k) y = Div (p, s)",
        f"{_QUERIES} {_HEADS} p = MatMul (t, k) d = Div (p, s) y = Add (d, p)",
        f"{_QUERIES} {_HEADS} p = MatMul (t, k) d = Div (p, s) i = Identity (t) z = MatMul (i, k) "
        "y = Add (d, z)",
        f"{_QUERIES} y = Div (q, s)",
    ],
)
def test_refuses(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], body: str
) -> None:
    assert not apply_pass("scale-factor", parse(_text(body))).modified


@pytest.mark.parametrize("number", ["float[1,1,1,1,1] s = {8.0}", "float s = {0.0}"])
def test_refuses_what_is_no_finite_number_of_rank_0(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], number: str
) -> None:
    constants = _CONSTANTS.replace("float s = {8.0}", number)
    body = f"{_QUERIES} {_HEADS} p = MatMul (t, k) y = Mul (p, s)"
    assert not apply_pass("scale-factor", parse(_text(body, constants=constants))).modified
