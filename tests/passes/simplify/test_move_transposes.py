from __future__ import annotations

from typing import Any

import numpy as np
import pytest

TO_LAST, TO_FIRST = "Transpose <perm = [0, 2, 3, 1]>", "Transpose <perm = [0, 3, 1, 2]>"


def bits_stay(model: Any, change: Any, evaluate: Any, random_feed: Any) -> None:
    feed = random_feed(model)
    before = evaluate(model, feed)
    change()
    after = evaluate(model, feed)
    assert {name: each.tobytes() for name, each in before.items()} == {
        name: each.tobytes() for name, each in after.items()
    }
    assert {name: each.shape for name, each in before.items()} == {
        name: each.shape for name, each in after.items()
    }


def test_what_a_keras_layer_leaves_is_gone(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    model = parse(f"""
        g (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y) <float[3] b = {{1, 2, 3}}> {{
          p = MaxPool <kernel_shape = [1, 1]> (x)
          l = {TO_LAST} (p)
          s = Add(l, b)
          r = Neg(s)
          f = {TO_FIRST} (r)
          y = MaxPool <kernel_shape = [1, 1]> (f)
        }}""")
    apply_pass("infer-shapes", model)

    def change() -> None:
        assert apply_pass("move-transposes", model).rules == {"move-transposes": 1}

    bits_stay(model, change, evaluate, random_feed)
    assert_text(
        model,
        """g (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y)
        <float[3, 1, 1] b_1 = {1, 2, 3}, float[3] b = {1, 2, 3}> {
          p = MaxPool <kernel_shape = [1, 1]> (x)
          s_moved = Add(p, b_1)
          r_moved = Neg(s_moved)
          y = MaxPool <kernel_shape = [1, 1]> (r_moved)
        }""",
    )


def test_inputs_and_outputs_stay_as_they_are(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    model = parse(f"""
        g (float[2, 4, 5, 3] x) => (float[2, 4, 5, 3] a, float[2, 4, 5, 3] b) {{
          f = {TO_FIRST} (x)
          p = MaxPool <kernel_shape = [1, 1]> (f)
          a = {TO_LAST} (p)
          r = Neg(a)
          g = {TO_FIRST} (r)
          q = MaxPool <kernel_shape = [1, 1]> (g)
          b = {TO_LAST} (q)
        }}""")
    apply_pass("infer-shapes", model)
    bits_stay(model, lambda: apply_pass("move-transposes", model), evaluate, random_feed)
    assert_text(
        model,
        f"""g (float[2, 4, 5, 3] x) => (float[2, 4, 5, 3] a, float[2, 4, 5, 3] b) {{
          f = {TO_FIRST} (x)
          p = MaxPool <kernel_shape = [1, 1]> (f)
          a = {TO_LAST} (p)
          r_moved = Neg(p)
          q = MaxPool <kernel_shape = [1, 1]> (r_moved)
          b = {TO_LAST} (q)
        }}""",
    )


def test_quantization_comes_together_around_the_operator(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    # DQ -> Transpose -> Conv, a weight in channels last, and Conv -> Transpose -> Q.
    model = parse(f"""
        g (int8[1, 4, 4, 2] x) => (int8[1, 4, 4, 3] y)
        <int8[3, 1, 1, 2] w = {{1, 2, 3, 4, 5, 6}}, float s = {{0.5}}, int8 z = {{1}},
         float[3] ws = {{0.1, 0.2, 0.3}}, int8[3] wz = {{0, 0, 0}}> {{
          xd = DequantizeLinear(x, s, z)
          xf = {TO_FIRST} (xd)
          wd = DequantizeLinear <axis = 0> (w, ws, wz)
          wf = {TO_FIRST} (wd)
          c = Conv(xf, wf)
          cl = {TO_LAST} (c)
          y = QuantizeLinear(cl, s, z)
        }}""")
    apply_pass("infer-shapes", model)

    def change() -> None:
        assert apply_pass("move-transposes", model).rules == {"move-transposes": 3}
        apply_pass("remove-dead-code", model)

    bits_stay(model, change, evaluate, random_feed)
    assert_text(
        model,
        f"""g (int8[1, 4, 4, 2] x) => (int8[1, 4, 4, 3] y)
        <float s = {{0.5}}, int8 z = {{1}}, float[3] ws = {{0.1, 0.2, 0.3}},
         int8[3] wz = {{0, 0, 0}}, int8[3, 2, 1, 1] w_1 = {{1, 2, 3, 4, 5, 6}}> {{
          x_transposed = {TO_FIRST} (x)
          xd_moved = DequantizeLinear(x_transposed, s, z)
          wd_moved = DequantizeLinear <axis = 0> (w_1, ws, wz)
          c = Conv(xd_moved, wd_moved)
          y_original = QuantizeLinear(c, s, z)
          y = {TO_LAST} (y_original)
        }}""",
    )


@pytest.mark.parametrize(
    "body",
    [
        "b = Pad(a, pads)",
        "b = Slice(a, one, two, one)",
        "g = ArgMax <axis = 1> (a)  b = Cast <to = 1> (g)",
        "b = Concat <axis = -1> (a, a)",
        "b = Tile(a, repeats)",
        "b = DequantizeLinear <axis = 3> (codes, scales)",
        "u = Unsqueeze(a, one)  n = Neg(u)  b = Squeeze(n, one)",
        "r = Reshape(a, rows)  n = Neg(r)  b = Reshape(n, back)",
        "b = Where(mask, a, vector)",
        "b = PRelu(a, vector)",
        "b = Add(a, plane)",
    ],
)
def test_the_operator_follows_its_axes(
    body: str, parse: Any, apply_pass: Any, evaluate: Any, random_feed: Any
) -> None:
    model = parse(f"""
        g (float[1, 4, 2, 3] x) => (float[?, ?, ?, ?] y)
        <int64[8] pads = {{0, 0, 0, 1, 0, 0, 0, 2}}, int64[1] one = {{1}}, int64[1] two = {{2}},
         int64[4] repeats = {{1, 1, 1, 2}}, float[4] scales = {{1, 2, 3, 4}}, float s = {{0.1}},
         int64[3] rows = {{1, 6, 4}}, int64[4] back = {{1, 2, 3, 4}}, bool[1] mask = {{1}},
         float[4] vector = {{1, 2, 3, 4}}, float[3, 1] plane = {{1, 2, 3}}> {{
          p = MaxPool <kernel_shape = [1, 1]> (x)
          a = {TO_LAST} (p)
          codes = QuantizeLinear <output_dtype = 3> (a, s)
          {body}
          f = {TO_FIRST} (b)
          y = MaxPool <kernel_shape = [1, 1]> (f)
        }}""")
    apply_pass("infer-shapes", model)
    bits_stay(model, lambda: apply_pass("move-transposes", model), evaluate, random_feed)
    assert "Transpose" not in [node.op_type for node in model.graph]
    assert not apply_pass("move-transposes", model).modified


@pytest.mark.parametrize(
    "body",
    [
        "b = ReduceMean <keepdims = 1> (a, three)",
        "b = Relu(a)",
        "b = Clip(a, low)",
        "b = Sigmoid(a)",
        "b = Reshape(a, across)",
        "b = Softmax(a)",
        "b = CumSum(a, axis)",
    ],
)
def test_what_depends_on_the_layout_stays(body: str, parse: Any, apply_pass: Any) -> None:
    model = parse(f"""
        g (float[1, 4, 2, 3] x) => (float[?, ?, ?, ?] y)
        <int64[1] three = {{3}}, int64[4] across = {{1, 2, 4, 3}}, int64 axis = {{1}},
         float low = {{0}}> {{
          p = MaxPool <kernel_shape = [1, 1]> (x)
          a = {TO_LAST} (p)
          {body}
          f = {TO_FIRST} (b)
          y = MaxPool <kernel_shape = [1, 1]> (f)
        }}""")
    apply_pass("infer-shapes", model)
    assert not apply_pass("move-transposes", model).modified


def test_one_transpose_is_not_made_two(parse: Any, apply_pass: Any) -> None:
    # Behind the sum it would move less, but there are two readers.
    model = parse(f"""
        g (float[1, 4, 64, 64] x) => (float[1, 1, 1, 4] a, float[1, 64, 64, 1] b)
        <int64[2] plane = {{1, 2}}, int64[1] last = {{3}}> {{
          l = {TO_LAST} (x)
          a = ReduceMax(l, plane)
          b = ReduceMax(l, last)
        }}""")
    apply_pass("infer-shapes", model)
    apply_pass("absorb-transposes", model)
    apply_pass("merge-transposes", model)
    # Both only move axes of one element now.
    assert sorted(node.op_type for node in model.graph) == ["ReduceMax"] * 2 + ["Reshape"] * 2


def test_a_body_that_captures_it_goes_on_reading_the_same(
    parse: Any, apply_pass: Any, evaluate: Any
) -> None:
    model = parse(f"""
        g (float[1, 2, 3, 4] x, bool c) => (float[?, ?, ?, ?] y, float[?, ?, ?, ?] z) {{
          l = {TO_LAST} (x)
          r = Neg(l)
          f = {TO_FIRST} (r)
          z = MaxPool <kernel_shape = [1, 1]> (f)
          y = If (c) <
            then_branch = t () => (float[?, ?, ?, ?] a) {{ a = Neg(r) }},
            else_branch = e () => (float[?, ?, ?, ?] b) {{ b = Abs(r) }}>
        }}""")
    apply_pass("infer-shapes", model)
    feed = {"x": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), "c": np.array(True)}
    before = evaluate(model, feed)
    assert apply_pass("move-transposes", model).modified
    assert [n.op_type for n in model.graph] == ["Neg", "Transpose", "MaxPool", "If"]
    after = evaluate(model, feed)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_who_asks_for_the_shape_needs_no_transpose(
    parse: Any, apply_pass: Any, assert_text: Any
) -> None:
    model = parse(f"""
        g (float[A, B, C, D] x) => (int64[2] y) {{
          l = {TO_LAST} (x)
          y = Shape <start = 1, end = 3> (l)
        }}""")
    assert apply_pass("move-transposes", model).rules == {"shape-of-transpose": 1}
    assert_text(
        model,
        """g (float[A, B, C, D] x) => (int64[2] y) <int64[2] y_axes = {2, 3}> {
          y_1 = Shape(x)
          y = Gather(y_1, y_axes)
        }""",
    )


def test_a_constant_is_transposed(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[2, 3] x) => (float[2, 3] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> {
          t = Transpose(w)
          y = Add(x, t)
        }""")
    assert apply_pass("move-transposes", model).rules == {"transpose-constant": 1}
    assert_text(
        model,
        """g (float[2, 3] x) => (float[2, 3] y)
        <float[2, 3] t_folded = {1, 3, 5, 2, 4, 6}, float[3, 2] w = {1, 2, 3, 4, 5, 6}> {
          y = Add(x, t_folded)
        }""",
    )


def test_older_opsets_are_left_alone(parse: Any, apply_pass: Any) -> None:
    model = parse(
        f"""g (float[1, 2, 3, 4] x) => (float[1, 2, 3, 4] y) {{
          l = {TO_LAST} (x)  r = Neg(l)  y = {TO_FIRST} (r) }}""",
        opset=12,
    )
    assert not apply_pass("move-transposes", model).modified


def test_weights_take_the_order_of_what_was_flattened(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    model = parse("""
        g (float[N, 2, 2, 1] x) => (float[N, 1] y)
        <int64[2] flat = {-1, 4}, int8[4, 1] w = {1, 2, 3, 4}, float s = {0.5}> {
          p = MaxPool <kernel_shape = [1, 1]> (x)
          l = Transpose <perm = [0, 2, 3, 1]> (p)
          f = Reshape(l, flat)
          r = Neg(f)
          d = DequantizeLinear(w, s)
          y = MatMul(r, d)
        }""")
    apply_pass("infer-shapes", model)
    feed = random_feed(model, sizes={"N": 3})
    before = evaluate(model, feed)["y"]
    assert not apply_pass("move-transposes", model).modified
    assert apply_pass("absorb-transposes", model).rules == {"move-transposes": 1}
    apply_pass("remove-dead-code", model)
    assert_text(
        model,
        """g (float[N, 2, 2, 1] x) => (float[N, 1] y)
        <int64[2] flat = {-1, 4}, float s = {0.5}, int8[4, 1] w_1 = {1, 3, 2, 4}> {
          p = MaxPool <kernel_shape = [1, 1]> (x)
          f = Reshape(p, flat)
          r = Neg(f)
          d = DequantizeLinear(w_1, s)
          y = MatMul(r, d)
        }""",
    )
    np.testing.assert_allclose(evaluate(model, feed)["y"], before, rtol=1e-6)


def test_means_are_taken_in_the_other_layout(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse(f"""
        g (float[N, 8, 5, 5] x) => (float[N, 8] y) <int64[2] plane = {{1, 2}}> {{
          l = {TO_LAST} (x)
          y = ReduceMean <keepdims = 0> (l, plane)
        }}""")
    apply_pass("infer-shapes", model)
    assert apply_pass("absorb-transposes", model).rules == {"move-transposes": 1}
    apply_pass("remove-dead-code", model)
    assert_text(
        model,
        """g (float[N, 8, 5, 5] x) => (float[N, 8] y) <int64[2] plane_1 = {2, 3}> {
          y = ReduceMean <keepdims = 0> (x, plane_1)
        }""",
    )


def test_a_bias_behind_a_transpose_meets_its_convolution(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    model = parse(f"""
        g (float[N, 2, 3, 3] x) => (float[N, 3, 3, 2] y)
        <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2] b = {{5, 6}}> {{
          c = Conv(x, w)
          l = {TO_LAST} (c)
          s = Add(l, b)
          y = LeakyRelu(s)
        }}""")
    apply_pass("infer-shapes", model)
    feed = random_feed(model, sizes={"N": 2})
    before = evaluate(model, feed)["y"]
    result = apply_pass("move-transposes", model)
    assert result.rules == {"operator-before-transpose": 2}
    apply_pass("remove-dead-code", model)
    assert_text(
        model,
        f"""g (float[N, 2, 3, 3] x) => (float[N, 3, 3, 2] y)
        <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2, 1, 1] b_1 = {{5, 6}}> {{
          c = Conv(x, w)
          s_moved = Add(c, b_1)
          y_original = LeakyRelu(s_moved)
          y = {TO_LAST} (y_original)
        }}""",
    )
    assert evaluate(model, feed)["y"].tobytes() == before.tobytes()
    assert not apply_pass("move-transposes", model).modified


def test_a_constant_that_grows_the_tensor_stays_behind(parse: Any, apply_pass: Any) -> None:
    model = parse(f"""
        g (float[1, 2, 1, 1] x) => (float[1, 3, 1, 2] y)
        <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[1, 3, 1, 1] b = {{5, 6, 7}}> {{
          c = Conv(x, w)
          l = {TO_LAST} (c)
          y = Add(l, b)
        }}""")
    apply_pass("infer-shapes", model)
    assert not apply_pass("move-transposes", model).modified


def test_columns_take_the_order_of_what_is_unfolded(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    model = parse("""
        g (float[N, 1] x) => (float[N, 2, 2, 1] y)
        <int64[4] planes = {-1, 2, 1, 2}, int8[1, 4] w = {1, 2, 3, 4}, int8[4] z = {1, 1, 2, 2},
         float[4] s = {0.1, 0.2, 0.3, 0.4}, float[4] b = {5, 6, 7, 8}> {
          d = DequantizeLinear <axis = 1> (w, s, z)
          m = MatMul(x, d)
          a = Add(m, b)
          r = Relu(a)
          l = Reshape(r, planes)
          f = Transpose <perm = [0, 3, 1, 2]> (l)
          y = MaxPool <kernel_shape = [1, 1]> (f)
        }""")
    apply_pass("infer-shapes", model)
    feed = random_feed(model, sizes={"N": 3})
    before = evaluate(model, feed)["y"]
    assert apply_pass("absorb-transposes", model).rules == {"move-transposes": 1}
    apply_pass("remove-dead-code", model)
    assert_text(
        model,
        """g (float[N, 1] x) => (float[N, 2, 2, 1] y)
        <int8[1, 4] w_1 = {1, 3, 2, 4}, int8[4] z_1 = {1, 2, 1, 2},
         int64[4] planes_1 = {-1, 2, 2, 1},
         float[4] s_1 = {0.1, 0.3, 0.2, 0.4}, float[4] b_1 = {5, 7, 6, 8}> {
          d = DequantizeLinear <axis = 1> (w_1, s_1, z_1)
          m = MatMul(x, d)
          a = Add(m, b_1)
          r = Relu(a)
          l_moved = Reshape(r, planes_1)
          y = MaxPool <kernel_shape = [1, 1]> (l_moved)
        }""",
    )
    np.testing.assert_allclose(evaluate(model, feed)["y"], before, rtol=1e-6)


def test_a_result_of_unknown_rank_stays(parse: Any, apply_pass: Any) -> None:
    # Of the parts of a Split into computed sizes, shape inference says nothing.
    model = parse(f"""
        g (float[1, 2, 3, 4] x, int64[2] sizes) => (float[?, ?, ?, ?] y) {{
          l = {TO_LAST} (x)
          a, b = Split <axis = -1> (l, sizes)
          n = Neg(a)
          y = Concat <axis = -1> (n, b)
        }}""")
    apply_pass("infer-shapes", model)
    assert not apply_pass("move-transposes", model).modified
