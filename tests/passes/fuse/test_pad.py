"""fold-pad: which pads a Conv or pooling can take over, to the bit where it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]
Rewrite = Callable[..., PassResult]

WIDTHS = "int64[8] p = {0,0,1,0,0,0,0,1}"
KERNEL = "float[1,2,2,2] w = {1,2,3,4,5,6,7,8}"
PADS = "pads: ints = [1, 0, 0, 1]"


def _model(parse: Parse, constants: str, body: str, opset: int = 21) -> ir.Model:
    text = f"g (float[1,2,5,4] x) => (float[?,?,?,?] y) <{constants}> {{ {body} }}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parse(text, opset=opset))))


def _feed() -> dict[str, Any]:
    return {"x": np.random.default_rng(2).normal(size=(1, 2, 5, 4)).astype(np.float32)}


FOLDING = {
    "conv": (
        f"{KERNEL}, {WIDTHS}",
        "t = Pad(x, p)  y = Conv(t, w)",
        "y = Conv<pads=[1,0,0,1]>(x, w)",
    ),
    "conv_with_pads": (
        f"{KERNEL}, {WIDTHS}, float z = {{0}}",
        "t = Pad(x, p, z)  y = Conv<pads = [1,1,1,1]>(t, w)",
        "y = Conv<pads=[2,1,1,2]>(x, w)",
    ),
    "valid": (
        f"{KERNEL}, {WIDTHS}",
        't = Pad(x, p)  y = Conv<auto_pad = "VALID">(t, w)',
        "y = Conv<pads=[1,0,0,1]>(x, w)",
    ),
    "axes": (
        f"{KERNEL}, int64[4] p = {{1,0,0,1}}, int64[2] a = {{-2, 3}}",
        "t = Pad(x, p, , a)  y = Conv(t, w)",
        "y = Conv<pads=[1,0,0,1]>(x, w)",
    ),
    "average": (
        WIDTHS,
        "t = Pad(x, p)  y = AveragePool<kernel_shape = [2,2]>(t)",
        "y = AveragePool<kernel_shape=[2,2], pads=[1,0,0,1], count_include_pad=1>(x)",
    ),
    "average_that_counts": (
        WIDTHS,
        "t = Pad(x, p)  "
        "y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(t)",
        "y = AveragePool<kernel_shape=[3,3], pads=[2,1,1,2], count_include_pad=1>(x)",
    ),
    "max_of_relu": (
        WIDTHS,
        "r = Relu(x)  t = Pad(r, p)  y = MaxPool<kernel_shape = [2,2]>(t)",
        "r = Relu(x)  y = MaxPool<kernel_shape=[2,2], pads=[1,0,0,1]>(r)",
    ),
    "max_of_clip": (
        f"{WIDTHS}, float l = {{-1}}, float h = {{6}}, float z = {{-3}}",
        "r = Clip(x, l, h)  t = Pad(r, p, z)  y = MaxPool<kernel_shape = [2,2]>(t)",
        "r = Clip(x, l, h)  y = MaxPool<kernel_shape=[2,2], pads=[1,0,0,1]>(r)",
    ),
    "shared_pad": (
        f"{KERNEL}, {WIDTHS}",
        "t = Pad(x, p)  a = Conv(t, w)  b = ReduceMax(t)  y = Add(a, b)",
        "t = Pad(x, p)  a = Conv<pads=[1,0,0,1]>(x, w)  b = ReduceMax(t)  y = Add(a, b)",
    ),
}


@pytest.mark.parametrize("name", FOLDING)
def test_folds(
    parse: Parse, rewrite: Rewrite, assert_text: Callable[[ir.Model, str], None], name: str
) -> None:
    constants, body, expected = FOLDING[name]
    model = _model(parse, constants, body)
    result = rewrite("fold-pad", model, _feed(), exact=True)
    assert result.rules == {"fold-pad": 1}
    shape = ",".join(map(str, model.graph.outputs[0].shape or ()))
    assert_text(model, f"g (float[1,2,5,4] x) => (float[{shape}] y) <{constants}> {{ {expected} }}")


def test_max_pool_takes_minus_infinity(parse: Parse, rewrite: Rewrite) -> None:
    model = _model(
        parse,
        f"{WIDTHS}, float z = {{0}}",
        "t = Pad(x, p, z)  y = MaxPool<kernel_shape = [2,2]>(t)",
    )
    infinity = ir.tensor(np.array(-np.inf, np.float32), name="z")
    model.graph.initializers["z"].const_value = infinity
    assert rewrite("fold-pad", model, _feed(), exact=True).modified


def test_pads_as_attributes(parse: Parse, rewrite: Rewrite) -> None:
    body = "t = Pad<pads = [0,0,1,0,0,0,0,1]>(x)  y = Conv(t, w)"
    text = f"""<ir_version: 6, opset_import: ["" : 10]>
        g (float[1,2,5,4] x) => (float[1,1,5,4] y) <{KERNEL}> {{ {body} }}"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parse(text))))
    assert rewrite("fold-pad", model, _feed(), exact=True).rules == {"fold-pad": 1}


REFUSED = {
    "value": (f"{KERNEL}, {WIDTHS}, float z = {{1}}", "t = Pad(x, p, z)  y = Conv(t, w)"),
    "mode": (f"{KERNEL}, {WIDTHS}", 't = Pad<mode = "edge">(x, p)  y = Conv(t, w)'),
    "crop": (f"{KERNEL}, int64[8] p = {{0,0,-1,0,0,0,0,1}}", "t = Pad(x, p)  y = Conv(t, w)"),
    "batch": (f"{KERNEL}, int64[8] p = {{1,0,0,0,0,0,0,0}}", "t = Pad(x, p)  y = Conv(t, w)"),
    "channels": (
        "float[1,3,1,1] w = {1,2,3}, int64[8] p = {0,1,0,0,0,0,0,0}",
        "t = Pad(x, p)  y = Conv(t, w)",
    ),
    "same": (f"{KERNEL}, {WIDTHS}", 't = Pad(x, p)  y = Conv<auto_pad = "SAME_UPPER">(t, w)'),
    "average_that_does_not_count_its_own": (
        WIDTHS,
        "t = Pad(x, p)  y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(t)",
    ),
    "ceil": (WIDTHS, "t = Pad(x, p)  y = AveragePool<kernel_shape = [2,2], ceil_mode = 1>(t)"),
    "wider_than_the_kernel": (WIDTHS, "t = Pad(x, p)  y = AveragePool<kernel_shape = [1,1]>(t)"),
    "max_may_be_negative": (WIDTHS, "t = Pad(x, p)  y = MaxPool<kernel_shape = [2,2]>(t)"),
    "max_of_clip_below": (
        f"{WIDTHS}, float l = {{-1}}, float h = {{6}}",
        "r = Clip(x, l, h)  t = Pad(r, p)  y = MaxPool<kernel_shape = [2,2]>(t)",
    ),
    "indices": (
        WIDTHS,
        "r = Relu(x)  t = Pad(r, p)  m, i = MaxPool<kernel_shape = [2,2]>(t)  "
        "f = Cast<to = 1>(i)  y = Add(m, f)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(parse: Parse, apply_pass: Callable[..., PassResult], name: str) -> None:
    assert not apply_pass("fold-pad", _model(parse, *REFUSED[name])).modified
