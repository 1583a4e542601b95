from __future__ import annotations

from typing import Any

import numpy as np
import pytest

GONE = {
    "Identity": "m = Identity(r)",
    "Dropout": "m = Dropout(r)",
    "Dropout-mask": "m, mask = Dropout(r)",
    "Cast": "m = Cast <to = 1> (r)",
    "Concat": "m = Concat <axis = 0> (r)",
    "Sum": "m = Sum(r)",
    "Split": "m = Split <num_outputs = 1> (r)",
    "Transpose": "m = Transpose <perm = [0, 1]> (r)",
    "Reshape": "m = Reshape(r, open)",
    "Reshape-copy": "m = Reshape(r, copy)",
    "Expand": "m = Expand(r, ones)",
    "Tile": "m = Tile(r, ones)",
    "Pad": "m = Pad(r, none)",
    "Slice": "m = Slice(r, zero, far)",
    "Slice-axis": "m = Slice(r, zero, three, last)",
    "Mul-1": "m = Mul(r, one)",
    "1-Mul": "m = Mul(one, r)",
    "Div-1": "m = Div(r, one)",
    "Sub-0": "m = Sub(r, null)",
    "Add--0": "m = Add(r, minus_null)",
    "Squeeze": "u = Unsqueeze(r, last)  m = Squeeze(u, last)",
}
STAYS = {
    "Dropout-mask-used": "m, mask = Dropout(r)  k = Cast <to = 1> (mask)  n = Neg(k)",
    "Cast-other": "i = Cast <to = 7> (r)  m = Cast <to = 1> (i)",
    "Transpose": "m = Transpose <perm = [1, 0]> (r)",
    "Reshape": "m = Reshape(r, other)",
    "Expand": "m = Expand(r, more)",
    "Pad": "m = Pad(r, some)",
    "Slice": "m = Slice(r, zero, one_end)",
    "Slice-step": "m = Slice(r, zero, far, last, two_step)",
    "Slice-reverse": "m = Slice(r, minus, far, last)",
    "Mul-rank": "m = Mul(r, deep_one)",
    "1-Div": "m = Div(one, r)",
    "Add-+0": "m = Add(r, null)",
    "Sub--0": "m = Sub(r, minus_null)",
    "0-Sub": "m = Sub(null, r)",
}
HEADER = """
    g (float[N, 3] x) => (float[?] y)
    <int64[2] open = {-1, 3}, int64[2] copy = {0, 0}, int64[2] ones = {1, 1},
     int64[4] none = {0, 0, 0, 0}, int64[1] zero = {0}, int64[1] far = {9223372036854775807},
     int64[1] three = {3}, int64[1] last = {-1}, float[1] one = {1}, float null = {0},
     float minus_null = {-0.0}, int64[2] other = {3, -1}, int64[3] more = {2, 1, 1},
     int64[4] some = {0, 1, 0, 0}, int64[1] one_end = {1}, int64[1] two_step = {2},
     int64[1] minus = {-2}, float[1, 1, 1] deep_one = {1}>
    { r = Relu(x)  BODY  y = Neg(m) }"""


def model_text(body: str) -> str:
    return HEADER.replace("BODY", body)


@pytest.mark.parametrize("name", GONE)
def test_drops(name: str, parse: Any, apply_pass: Any, evaluate: Any) -> None:
    text = model_text(GONE[name]).replace("float[?]", "float[N, 3]")
    model = parse(text)
    apply_pass("infer-shapes", model)
    feed = {"x": np.array([[1, -2, 3], [0, -0.0, np.inf]], np.float32)}
    before = evaluate(model, feed)["y"]
    result = apply_pass("remove-identity", model)
    assert result.modified
    apply_pass("remove-dead-code", model)
    assert [node.op_type for node in model.graph] == ["Relu", "Neg"]
    assert evaluate(model, feed)["y"].tobytes() == before.tobytes()
    assert not apply_pass("remove-identity", model).modified


@pytest.mark.parametrize("name", STAYS)
def test_keeps(name: str, parse: Any, apply_pass: Any) -> None:
    outputs = {"Dropout-mask-used": "float[A, B] y, float[N, 3] n", "Mul-rank": "float[A, B, C] y"}
    outputs["Expand"] = outputs["Mul-rank"]
    text = model_text(STAYS[name])
    model = parse(text.replace("float[?] y", outputs.get(name, "float[A, B] y")))
    apply_pass("infer-shapes", model)
    assert not apply_pass("remove-identity", model).modified


def test_outputs_keep_their_names(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any
) -> None:
    model = parse("""
        g (float[2] x) => (float[2] x_copy, float[2] y, float[2] y_copy) {
          x_copy = Identity(x)
          r = Relu(x)
          y = Identity(r)
          y_copy = Identity(y)
        }""")
    assert apply_pass("remove-identity", model).rules == {"drop-identity": 1}
    assert_text(
        model,
        """g (float[2] x) => (float[2] x_copy, float[2] y, float[2] y_copy) {
          x_copy = Identity(x)
          y = Relu(x)
          y_copy = Identity(y)
        }""",
    )
    assert set(evaluate(model, {"x": np.array([1, 2], np.float32)})) == {"x_copy", "y", "y_copy"}
    assert not apply_pass("remove-identity", model).modified


def test_bodies_read_captured_values_directly(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        g (bool c, float[2] x) => (float[2] y) {
          i = Identity(x)
          y = If (c) <
            then_branch = a () => (float[2] r) { j = Identity(i)  r = Neg(j) },
            else_branch = b () => (float[2] q) { q = Identity(i) }>
        }""")
    assert apply_pass("remove-identity", model).rules == {"drop-identity": 2}
    for condition in (True, False):
        got = evaluate(model, {"c": np.array(condition), "x": np.array([1, 2], np.float32)})["y"]
        np.testing.assert_array_equal(got, [-1, -2] if condition else [1, 2])


def test_squeeze_of_other_axes_stays(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[1, 3] x) => (float[1, 3] y) <int64[1] first = {0}, int64[1] second = {1}> {
          u = Unsqueeze(x, first)
          s = Squeeze(u, second)
          y = Neg(s)
        }""")
    assert not apply_pass("remove-identity", model).modified


def test_a_rule_can_be_switched_off(parse: Any, apply_pass: Any) -> None:
    model = parse("g (float[2] x) => (float[2] y) { i = Identity(x)  y = Neg(i) }")
    assert not apply_pass("remove-identity{disable=drop-identity}", model).modified


def test_dropout_that_trains_stays(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y) <float half = {0.5}, bool on = {1}> {
          d = Dropout(x, half, on)
          y = Neg(d)
        }""")
    assert not apply_pass("remove-identity", model).modified
