"""fuse-one-hot-matmul: the same bits, for every id there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]

WEIGHTS = "float[3,2] w = {1.5,-2,-0.0,4,5,-6}"
INT_LIMITS = [-(2**31), -4, -3, -1, 0, 1, 2, 3, 4, 2**31 - 1]


def _inferred(model: ir.Model) -> ir.Model:
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    return ir.from_proto(proto)


def _ids(dtype: Any = np.int32, shape: tuple[int, ...] = (2, 5)) -> dict[str, Any]:
    return {"x": np.array(INT_LIMITS, dtype).reshape(shape)}


COMPARED = {
    "unsqueezed": "int64[1] a = {2}, int32[3] k = {0,1,2}|u = Unsqueeze(x, a)  e = Equal(u, k)",
    "reversed": "int64[1] a = {2}, int32[1,1,3] k = {0,1,2}|u = Unsqueeze(x, a)  e = Equal(k, u)",
    "expanded": "int64[3] s = {2,5,1}, int32[1,1,3] k = {0,1,2}|"
    "r = Reshape(x, s)  u = Expand(r, s)  e = Equal(u, k)",
}


@pytest.mark.parametrize("name", COMPARED)
def test_compared_ids(parse: Parse, rewrite: Callable[..., PassResult], name: str) -> None:
    constants, body = COMPARED[name].split("|")
    model = _inferred(
        parse(
            f"""g (int32[2,5] x) => (float[2,5,2] y) <{WEIGHTS}, {constants}>
            {{ {body}  h = Cast<to = 1>(e)  y = MatMul(h, w) }}"""
        )
    )
    result = rewrite("fuse-one-hot-matmul", model, _ids(), exact=True)
    assert result.rules == {"fuse-one-hot-matmul": 1}
    assert "Gather" in [node.op_type for node in model.graph]


def test_text(parse: Parse, rewrite: Callable[..., PassResult], assert_text: Any) -> None:
    text = f"""g (int32[2,5,1] x) => (float[2,5,2] y) <{WEIGHTS}, int32[3] k = {{0,1,2}}>
        {{ e = Equal(x, k)  h = Cast<to = 1>(e)  y = MatMul(h, w) }}"""
    model = parse(text)
    rewrite("fuse-one-hot-matmul,remove-dead-code", model, _ids(shape=(2, 5, 1)), exact=True)
    assert_text(
        model,
        """g (int32[2,5,1] x) => (float[2,5,2] y)
        <float[4,2] w_rows = {1.5,-2,0,4,5,-6,0,0}, int64[1] x_axis = {2}, int32 x_low = {-1},
         int32 x_high = {3}>
        {
          x_squeezed = Squeeze(x, x_axis)
          x_row = Clip(x_squeezed, x_low, x_high)
          y = Gather(w_rows, x_row)
        }""",
    )


@pytest.mark.parametrize("opset", [12, 21])
def test_operator_wraps_negative_ids(
    parse: Parse, rewrite: Callable[..., PassResult], opset: int
) -> None:
    model = parse(
        f"""g (int64[2,5] x) => (float[2,5,2] y)
        <{WEIGHTS}, int64 d = {{3}}, float[2] v = {{0,1}}>
        {{ h = OneHot(x, d, v)  y = MatMul(h, w) }}""",
        opset=opset,
    )
    assert rewrite("fuse-one-hot-matmul", model, _ids(np.int64), exact=True).modified


def test_squeeze_takes_an_attribute_before_opset_13(
    parse: Parse, rewrite: Callable[..., PassResult]
) -> None:
    model = parse(
        f"""g (int32[10,1] x) => (float[10,2] y) <{WEIGHTS}, int32[3] k = {{0,1,2}}>
        {{ e = Equal(x, k)  h = Cast<to = 1>(e)  y = MatMul(h, w) }}""",
        opset=12,
    )
    assert rewrite("fuse-one-hot-matmul", model, _ids(shape=(10, 1)), exact=True).modified


def test_other_readers_of_the_encoding(parse: Parse, rewrite: Callable[..., PassResult]) -> None:
    model = parse(
        f"""g (int32[10,1] x) => (float[10,2] y, float[10,3] h) <{WEIGHTS}, int32[3] k = {{0,1,2}}>
        {{ e = Equal(x, k)  h = Cast<to = 1>(e)  y = MatMul(h, w) }}"""
    )
    assert rewrite("fuse-one-hot-matmul", model, _ids(shape=(10, 1)), exact=True).modified


REFUSED = {
    "not_counting": (f"{WEIGHTS}, int32[3] k = {{0,2,1}}", "e = Equal(x, k)", 21),
    "not_a_column": (f"{WEIGHTS}, int32[1,3] k = {{0,1,2}}", "t = Tile(x, n)  e = Equal(t, k)", 21),
    "infinite_weights": (
        f"{WEIGHTS}, int32[3] k = {{0,1,2}}",
        "e = Equal(x, k)",
        21,
    ),
    "higher_rank": (f"{WEIGHTS}, int32[1,1,3] k = {{0,1,2}}", "e = Equal(x, k)", 21),
    "old_opset": (f"{WEIGHTS}, int32[3] k = {{0,1,2}}", "e = Equal(x, k)", 11),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(parse: Parse, apply_pass: Callable[..., PassResult], name: str) -> None:
    constants, body, opset = REFUSED[name]
    output = "float[1,10,2]" if name == "higher_rank" else "float[10,2]"
    model = parse(
        f"""g (int32[10,1] x) => ({output} y) <{constants}, int64[2] n = {{1,3}}>
        {{ {body}  h = Cast<to = 1>(e)  y = MatMul(h, w) }}""",
        opset=opset,
    )
    if name == "infinite_weights":
        data = np.full((3, 2), np.inf, np.float32)
        model.graph.initializers["w"].const_value = ir.tensor(data, name="w")
    assert not apply_pass("fuse-one-hot-matmul", model).modified


@pytest.mark.parametrize("values", ["{1,0}", "{0,2}"])
def test_other_levels_are_left_alone(
    parse: Parse, apply_pass: Callable[..., PassResult], values: str
) -> None:
    model = parse(
        f"""g (int64[4] x) => (float[4,2] y) <{WEIGHTS}, int64 d = {{3}}, float[2] v = {values}>
        {{ h = OneHot(x, d, v)  y = MatMul(h, w) }}"""
    )
    assert not apply_pass("fuse-one-hot-matmul", model).modified
