from __future__ import annotations

from typing import Any

import numpy as np


def test_lifts_constants_under_their_names(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y, float[1] c) {
          w = Constant <value_floats = [1.0, 2.0]> ()
          c = Constant <value = float[1] {3}> ()
          s = Add(x, w)
          y = Mul(s, c)
        }""")
    assert apply_pass("lift-constants", model).rules == {"lift-constant": 1}
    assert_text(
        model,
        """g (float[2] x) => (float[2] y, float[1] c) <float[2] w = {1, 2}> {
          c = Constant <value = float[1] {3}> ()
          s = Add(x, w)
          y = Mul(s, c)
        }""",
    )


def test_lifts_in_bodies_but_not_in_functions(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (bool c, float[1] x) => (float[1] y) {
          t = local.f(x)
          y = If (c) <
            then_branch = a () => (float[1] r) {
              k = Constant <value_float = 4.0> ()
              r = Add(t, k) },
            else_branch = b () => (float[1] q) {
              k = Constant <value_float = 5.0> ()
              q = Add(t, k) }>
        }
        <domain: "local", opset_import: ["" : 21]>
        f (v) => (w) { two = Constant <value = float[1] {2}> ()  w = Add(v, two) }""")
    assert apply_pass("lift-constants", model).rules == {"lift-constant": 2}
    for condition, wanted in ((True, 7), (False, 8)):
        feed = {"c": np.array(condition), "x": np.array([1], np.float32)}
        assert evaluate(model, feed)["y"] == wanted


def test_equal_initializers_are_shared(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[2] x, float[2] over) => (float[2] y)
        <float[2] a = {1, 0}, float[2] b = {1, 0}, float[2] minus = {1, -0.0},
         float[2] over = {1, 0}, int32[2] ints = {1065353216, 0}, float[2, 1] tall = {1, 0}> {
          p = Add(x, a)
          q = Add(p, b)
          r = Add(q, over)
          s = Add(r, minus)
          i = Cast <to = 1> (ints)
          t = Add(s, i)
          u = Squeeze(tall)
          y = Add(t, u)
        }""")
    assert apply_pass("deduplicate-initializers", model).rules == {"share-initializer": 1}
    assert set(model.graph.initializers) == {"a", "minus", "over", "ints", "tall"}
    assert not apply_pass("deduplicate-initializers", model).modified


def test_equal_nodes_are_shared(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y, float[2] second) {
          a = Elu <alpha = 0.5> (x)
          b = Elu <alpha = 0.5> (x)
          other = Elu <alpha = 0.25> (x)
          s = Add(a, b)
          t = Add(s, other)
          y = Neg(t)
          second = Neg(t)
        }""")
    assert apply_pass("eliminate-common-subexpressions", model).rules == {"share-node": 1}
    assert_text(
        model,
        """g (float[2] x) => (float[2] y, float[2] second) {
          a = Elu <alpha = 0.5> (x)
          other = Elu <alpha = 0.25> (x)
          s = Add(a, a)
          t = Add(s, other)
          y = Neg(t)
          second = Neg(t)
        }""",
    )


def test_a_shared_node_takes_over_an_output(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x)  y = Neg(x)  z = Abs(a) }""")
    assert apply_pass("eliminate-common-subexpressions", model).modified
    assert_text(model, "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x)  z = Abs(y) }")


def test_a_body_shares_with_what_stands_before_it(
    parse: Any, apply_pass: Any, evaluate: Any
) -> None:
    model = parse("""
        g (bool c, float[2] x) => (float[2] y, float[2] z) {
          n = Neg(x)
          y = If (c) <
            then_branch = a () => (float[2] r) {
              m = Neg(x)
              k = Exp(x)
              p = Add(m, k)
              r = Abs(p) },
            else_branch = b () => (float[2] q) { j = Exp(x)  q = Add(n, j) }>
          e = Exp(x)
          z = Add(e, n)
        }""")
    feed = {"c": np.array(True), "x": np.array([1, 2], np.float32)}
    before = evaluate(model, feed)
    assert apply_pass("eliminate-common-subexpressions", model).rules == {"share-node": 1}
    after = evaluate(model, feed)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def test_random_nodes_are_not_shared(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y) {
          a = RandomNormalLike(x)
          b = RandomNormalLike(x)
          y = Sub(a, b)
        }""")
    assert not apply_pass("eliminate-common-subexpressions", model).modified
