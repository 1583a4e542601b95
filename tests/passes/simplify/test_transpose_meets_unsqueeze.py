"""merge-transposes: a Transpose moves ahead of Unsqueeze; remove-identity: ends beyond memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]


@pytest.mark.parametrize("opset", [12, 21])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("perm", [[0, 2, 1, 3], [3, 1, 0, 2], [1, 2, 3, 0]])
def test_the_same_bits(
    parse: Parse,
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
    perm: list[int],
    axis: int,
    opset: int,
) -> None:
    attribute, operand = (f"<axes = [{axis}]>", "") if opset < 13 else ("", ", a")
    model = parse(
        f"""g (float[2,3,4] x) => (float[?,?,?,?] y) <int64[1] a = {{{axis}}}>
        {{ u = Unsqueeze{attribute}(x{operand})  y = Transpose<perm = {perm}>(u) }}""",
        opset=opset,
    )
    feed = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    unsqueezed = [2, 3, 4]
    unsqueezed.insert(axis % 4, 1)
    model.graph.outputs[0].shape = ir.Shape([unsqueezed[i] for i in perm])
    before = evaluate(model, feed)["y"]
    result = apply_pass("merge-transposes{disable=transpose-to-reshape}", model)
    assert result.rules == {"transpose-before-unsqueeze": 1}
    assert [node.op_type for node in model.graph] == ["Transpose", "Unsqueeze"]
    np.testing.assert_array_equal(evaluate(model, feed)["y"], before)


@pytest.mark.parametrize(
    "body",
    [
        "u = Unsqueeze(x, a)  z = Transpose<perm = [0,2,1,3]>(u)  y = Add(u, z)",
        "u = Unsqueeze(x, two)  v = Transpose<perm = [0,2,1,3,4]>(u)  y = Squeeze(v, a)",
    ],
)
def test_refuses(parse: Parse, apply_pass: Callable[..., PassResult], body: str) -> None:
    model = parse(
        f"""g (float[2,4,4] x) => (float[2,4,4,1] y) <int64[1] a = {{3}}, int64[2] two = {{3,4}}>
        {{ {body} }}"""
    )
    assert not apply_pass("merge-transposes", model).modified


@pytest.mark.parametrize(
    ("dims", "end", "dropped"),
    [
        ("N,512,256", 1_000_000_000, True),  # 5e14 bytes are beyond 2**47
        ("N,512,64", 1_000_000_000, False),
        ("N,512,256", 1_000, False),
        ("N,512,256", 2**31 - 1, True),
    ],
)
def test_slice_of_an_unknown_dimension(
    parse: Parse, apply_pass: Callable[..., PassResult], dims: str, end: int, dropped: bool
) -> None:
    model = parse(
        f"""g (float[{dims}] x) => (float[{dims}] y)
        <int64[2] s = {{0,0}}, int64[2] e = {{{end},512}}, int64[2] a = {{0,1}}>
        {{ t = Slice(x, s, e, a)  y = Relu(t) }}"""
    )
    assert ("drop-slice" in apply_pass("remove-identity", model).rules) == dropped
