"""fuse-depth-to-space: transposed convolutions that only move pixels, and those that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]
Evaluate = Callable[[ir.Model, Mapping[str, Array]], dict[str, Any]]

ONES = "1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1"
PLAIN = "strides = [2, 2], group = 2"


def _model(
    parse: Parse, attributes: str = PLAIN, second: str = ONES, between: str = ""
) -> ir.Model:
    name = "r" if between else "h"
    return parse(
        f"""g (float[1,1,3,2] x) => (float[1,2,H,W] y)
        <float[8,1,1,1] w = {{1,2,3,4,5,6,7,8}}, float[8] b = {{8,7,6,5,4,3,2,1}},
         float[8,1,2,2] u = {{{ONES}, {second}}}, float[2] c = {{10, 20}}>
        {{ h = Conv(x, w, b)  {between}  y = ConvTranspose<{attributes}>({name}, u, c) }}"""
    )


def test_pixels_move_and_the_bias_goes_before(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = _model(parse)
    feed = {"x": np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2)}
    wanted = evaluate(model, feed)["y"]
    assert apply_pass("fuse-depth-to-space", model).rules == {"shuffle-pixels": 1}
    assert [node.op_type for node in model.graph] == ["Conv", "DepthToSpace"]
    bias = model.graph[0].inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    assert bias.const_value.numpy().tolist() == [18, 17, 16, 15, 24, 23, 22, 21]
    np.testing.assert_array_equal(evaluate(model, feed)["y"], wanted)


@pytest.mark.parametrize(
    "changed",
    [
        {"second": ONES.replace("1", "2")},
        {"second": "0,1,0,0, 1,0,0,0, 0,0,1,0, 0,0,0,1"},
        {"attributes": "strides = [1, 1], group = 2"},
        {"attributes": f"{PLAIN}, pads = [1, 0, 0, 0]"},
        {"attributes": f"{PLAIN}, output_padding = [1, 1]"},
        {"between": "r = Relu(h)"},
    ],
)
def test_what_stays(parse: Parse, apply_pass: Apply, changed: dict[str, str]) -> None:
    assert not apply_pass("fuse-depth-to-space", _model(parse, **changed)).modified
