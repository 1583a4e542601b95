"""capture-invariants: states that no iteration changes are read from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult

Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]
AssertText = Callable[[ir.Model, str], None]
Evaluate = Callable[[ir.Model, Mapping[str, Any]], dict[str, Any]]

LOOP = """
g (float[1,2] x, int64 n) => (float[1,2] y, float[2,2] again)
<float[2,2] w = {1, 2, 3, 4}, bool yes = {1}>
{
  y, last = Loop (n, yes, x, w) <body = b (int64 i, bool c, float[1,2] s, float[2,2] k)
    => (bool d, float[1,2] t, float[2,2] m) {
      d = Identity(c)
      t = MatMul(s, k)
      m = Identity(k)
    }>
  again = Neg(last)
}
"""


def test_weights_that_a_loop_hands_on(
    parse: Parse, apply_pass: Apply, assert_text: AssertText, evaluate: Evaluate
) -> None:
    model = parse(LOOP)
    feed = {"x": np.ones((1, 2), np.float32), "n": np.array(2)}
    expected = evaluate(model, feed)
    result = apply_pass("capture-invariants", model)
    assert result.rules == {"capture-invariants": 1}
    body = next(node for node in model.graph if node.op_type == "Loop").attributes["body"]
    product = next(node for node in body.as_graph() if node.op_type == "MatMul")
    assert [value and value.name for value in product.inputs] == ["s", "w"]
    negation = next(node for node in model.graph if node.op_type == "Neg")
    assert negation.inputs[0] is model.graph.initializers["w"]
    loop = next(node for node in model.graph if node.op_type == "Loop")
    assert loop.inputs[3] is not None
    assert loop.inputs[3].shape == ir.Shape((0,))
    found = evaluate(model, feed)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert not apply_pass("capture-invariants", model).modified


@pytest.mark.parametrize("iterations", [0, 3])
def test_a_state_that_is_an_output_stays(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate, iterations: int
) -> None:
    model = parse(LOOP.replace("again = Neg(last)", "again = Identity(last)"))
    apply_pass("remove-identity", model)
    feed = {"x": np.ones((1, 2), np.float32), "n": np.array(iterations)}
    expected = evaluate(model, feed)
    apply_pass("capture-invariants", model)
    loop = next(node for node in model.graph if node.op_type == "Loop")
    assert loop.inputs[3] is model.graph.initializers["w"]
    found = evaluate(model, feed)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_state_that_is_collected_as_well(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse("""
    g (float[2] x, int64 n) => (float[2] y, float[m,2] all)
    <bool yes = {1}, float[2] w = {3, 4}>
    {
      y, last, all = Loop (n, yes, x, w) <body = b (int64 i, bool c, float[2] s, float[2] k)
        => (bool d, float[2] t, float[2] k2, float[2] k3) {
          d = Identity(c)
          t = Add(s, k)
          k2 = Identity(k)
          k3 = Identity(k2)
        }>
    }""")
    feed = {"x": np.zeros(2, np.float32), "n": np.array(2)}
    expected = evaluate(model, feed)
    apply_pass("capture-invariants", model)
    found = evaluate(model, feed)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_scan(parse: Parse, apply_pass: Apply, evaluate: Evaluate) -> None:
    model = parse("""
    g (float[3,2] x) => (float[2] total, float[3,2] y)
    <float[2] zero = {0, 0}, float[2] w = {3, 4}>
    {
      total, last, y = Scan <num_scan_inputs = 1, body = b (float[2] s, float[2] k, float[2] e)
        => (float[2] t, float[2] k2, float[2] o) {
          o = Mul(e, k)
          t = Add(s, o)
          k2 = Identity(k)
        }> (zero, w, x)
    }""")
    feed = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    expected = evaluate(model, feed)
    assert apply_pass("capture-invariants", model).modified
    body = next(iter(model.graph)).attributes["body"].as_graph()
    product = next(node for node in body if node.op_type == "Mul")
    assert product.inputs[1] is model.graph.initializers["w"]
    found = evaluate(model, feed)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_states_that_change_are_left_alone(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[2] x, float[2] z, int64 n) => (float[2] y, float[2] v)
    <bool yes = {1}>
    {
      y, v = Loop (n, yes, x, z) <body = b (int64 i, bool c, float[2] s, float[2] k)
        => (bool d, float[2] t, float[2] u) {
          d = Identity(c)
          t = Identity(k)
          u = Identity(s)
        }>
    }""")
    assert not apply_pass("capture-invariants", model).modified
