"""round-biases: biases of quantized products become multiples of their scales."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array

_HEAD = "g (uint8[B,S,2] x) => (uint8[B,S,2] y)"
_CONSTANTS = (
    "float s = {0.5}, uint8 z = {3}, int8[2,2] w = {1, 2, 3, 4}, float[2] t = {0.25, 0.125},"
    " float[2] b = {1.03, -0.1}, float o = {2.0}, uint8 p = {100}"
)
_READ = "r = DequantizeLinear (x, s, z) v = DequantizeLinear <axis = 1> (w, t)"
_BODY = f"{_READ} m = MatMul (r, v) a = Add (m, b) y = QuantizeLinear (a, o, p)"


def _text(body: str = _BODY, constants: str = _CONSTANTS, head: str = _HEAD) -> str:
    return f"{head} <{constants}> {{ {body} }}"


@pytest.mark.parametrize("operands", ["m, b", "b, m"])
def test_rounds_to_sums(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult], operands: str
) -> None:
    model = parse(_text(_BODY.replace("m, b", operands)))
    assert apply_pass("round-biases", model).rules == {"round-bias": 1}
    add = next(node for node in model.graph if node.op_type == "Add")
    found = constant_array(add.inputs[operands.index("b") // 3])
    assert found is not None
    np.testing.assert_array_equal(found, np.array([1.0, -0.125], np.float32))
    assert not apply_pass("round-biases", model).modified


@pytest.mark.parametrize(
    ("body", "constants", "head"),
    [
        (_BODY, _CONSTANTS.replace("o = {2.0}", "o = {1.0}"), _HEAD),
        (_BODY, _CONSTANTS.replace("1.03, -0.1", "1.0, -0.125"), _HEAD),
        (_BODY.replace("MatMul", "Mul"), _CONSTANTS, _HEAD),
        (_BODY, _CONSTANTS, _HEAD.replace("=> (", "=> (float[B,S,2] a, ")),
        (_BODY, _CONSTANTS, _HEAD.replace("=> (", "=> (float[B,S,2] m, ")),
        (f"{_BODY} c = Relu (a)", _CONSTANTS, _HEAD.replace("=> (", "=> (float[B,S,2] c, ")),
    ],
)
def test_refuses(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    body: str,
    constants: str,
    head: str,
) -> None:
    model = parse(_text(body, constants, head))
    assert not apply_pass("round-biases", model).modified
