from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def shapes_resolved(model: Any, apply_pass: Any) -> Any:
    apply_pass("infer-shapes", model)
    result = apply_pass("resolve-shapes", model)
    apply_pass("remove-dead-code", model)
    assert not apply_pass("resolve-shapes", model).modified
    return result


def test_a_batch_is_followed_to_a_reshape(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    # What tf2onnx writes for layers.Reshape: sizes through int32, sliced and joined.
    model = parse("""
        g (float[N, 2, 2, 3] x) => (float[N, 6, 2] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int32[2] rest = {6, 2}> {
          r = Relu(x)
          s = Shape(r)
          i = Cast <to = 6> (s)
          b = Slice(i, zero, one, zero)
          c = Concat <axis = 0> (b, rest)
          t = Cast <to = 7> (c)
          y = Reshape(r, t)
        }""")
    feed = random_feed(model, sizes={"N": 3})
    before = evaluate(model, feed)["y"]
    assert shapes_resolved(model, apply_pass).rules["constant-target"] == 1
    assert_text(
        model,
        """g (float[N, 2, 2, 3] x) => (float[N, 6, 2] y) <int64[3] shape = {-1, 6, 2}> {
          r = Relu(x)
          y = Reshape(r, shape)
        }""",
    )
    assert evaluate(model, feed)["y"].tobytes() == before.tobytes()


def test_two_open_sizes_are_copied(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[A, B, 2, 3] x) => (float[?, ?, ?] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}, int64[1] six = {6}> {
          s = Shape(x)
          a = Gather(s, zero)
          b = Gather(s, one)
          au = Unsqueeze(a, axis)
          bu = Unsqueeze(b, axis)
          t = Concat <axis = 0> (au, bu, six)
          y = Reshape(x, t)
        }""")
    shapes_resolved(model, apply_pass)
    assert_text(
        model,
        """g (float[A, B, 2, 3] x) => (float[?, ?, ?] y) <int64[3] shape = {0, 0, 6}> {
          y = Reshape(x, shape)
        }""",
    )


@pytest.mark.parametrize(
    "body",
    [
        # Two axes change places: neither is where it was.
        "t = Gather(s, swapped)  y = Reshape(x, t)",
        # A size of another input.
        "o = Shape(z)  p = Concat <axis = 0> (o, o)  y = Reshape(x, p)",
        # Doubled.
        "d = Mul(s, two)  y = Expand(x, d)",
    ],
)
def test_what_is_not_known_stays_computed(body: str, parse: Any, apply_pass: Any) -> None:
    model = parse(f"""
        g (float[A, B] x, float[C] z) => (float[?, ?] y)
        <int64[2] swapped = {{1, 0}}, int64 two = {{2}}> {{
          s = Shape(x)
          {body}
        }}""")
    apply_pass("infer-shapes", model)
    apply_pass("resolve-shapes", model)
    assert all(each.producer() is not None for each in model.graph[-1].inputs[1:])


@pytest.mark.parametrize(
    ("before", "axis"),
    [
        ("a = Conv(x, w)", 0),
        ("a = Transpose <perm = [1, 0, 2, 3]> (x)", 1),
        ("a = Add(x, ones)", 0),
        ("a = Concat <axis = 1> (x, x)", 0),
        ("f = Reshape(x, flat)  a = Reshape(f, back)", 0),
        ("u = Unsqueeze(x, one)  a = Squeeze(u, one)", 0),
        ("a = Pad(x, pads)", 0),
        ("a = Slice(x, one, two, two)", 0),
        ("a = ReduceSum <keepdims = 0> (x, one)", 0),
        ("m = Transpose <perm = [1, 0, 2, 3]> (x)  a = ReduceMax <keepdims = 0> (m, zero)", 0),
        ("f = Reshape(x, flat)  a = MatMul(f, v)", 0),
        ("f = Reshape(x, flat)  u = Unsqueeze(f, one)  a = Expand(u, wide)", 0),
        ("f = Reshape(x, flat)  a = Gemm(f, v)", 0),
    ],
)
def test_a_batch_is_recognised(
    before: str, axis: int, parse: Any, apply_pass: Any, evaluate: Any, random_feed: Any
) -> None:
    ones = "{" + ", ".join(["1"] * 18) + "}"
    model = parse(f"""
        g (float[N, 2, 3, 3] x, float[M, 1] z) => (float[?, ?] y)
        <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[1, 2, 1, 1] ones = {{1, 1}},
         int64[2] flat = {{-1, 18}}, int64[4] back = {{-1, 2, 3, 3}}, int64[1] one = {{1}},
         int64[1] two = {{2}}, int64[8] pads = {{0, 0, 0, 1, 0, 0, 0, 1}}, int64[1] four = {{4}},
         int64[1] zero = {{0}}, int64[3] wide = {{1, 4, 1}}, float[18, 1] v = {ones}> {{
          {before}
          s = Shape <start = {axis}, end = {axis + 1}> (a)
          t = Concat <axis = 0> (s, four)
          y = Expand(z, t)
        }}""")
    feed = random_feed(model, sizes={"N": 2, "M": 2})
    wanted = evaluate(model, feed)["y"]
    apply_pass("infer-shapes", model)
    apply_pass("resolve-shapes", model)
    apply_pass("remove-dead-code", model)
    # Nothing but the batch of x is read: what came between is not computed.
    assert [node.op_type for node in model.graph] == ["Shape", "Concat", "Expand"]
    assert model.graph[0].inputs[0].name == "x"
    np.testing.assert_array_equal(evaluate(model, feed)["y"], wanted)


def test_an_expansion_to_its_own_batch(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[N, 1] x) => (float[N, 4] y) <int64[1] four = {4}> {
          s = Shape <start = 0, end = 1> (x)
          t = Concat <axis = 0> (s, four)
          y = Expand(x, t)
        }""")
    shapes_resolved(model, apply_pass)
    assert_text(
        model,
        "g (float[N, 1] x) => (float[N, 4] y) <int64[2] shape = {1, 4}> { y = Expand(x, shape) }",
    )


def test_known_parts_of_open_shapes_are_constants(
    parse: Any, apply_pass: Any, assert_text: Any
) -> None:
    model = parse(
        """
        g (float[N, 4, 6] x) => (int64[1] y)
        <int64[1] one = {1}, int64[1] two = {2}, int64[1] axis = {0}> {
          s = Shape(x)
          d = Concat <axis = 0> (s, two)
          a = Slice(d, one, two, axis)
          p = Mul(a, two)
          y = Add(p, one)
        }"""
    )
    shapes_resolved(model, apply_pass)
    assert_text(
        model,
        """g (float[N, 4, 6] x) => (int64[1] y) <int64[1] one = {1}, int64[1] p_folded = {8}> {
          y = Add(p_folded, one)
        }""",
    )


def test_an_empty_axis_is_no_copy(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[0, N] x) => (float[?, ?] y) <int64[2] order = {1, 0}> {
          s = Shape(x)
          t = Gather(s, order)
          y = Reshape(x, t)
        }""")
    apply_pass("infer-shapes", model)
    apply_pass("resolve-shapes", model)
    assert model.graph[-1].inputs[1].producer() is not None


def test_a_declared_output_shape_is_not_believed(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[A, B] x) => (float[2, 3] r, int64[2] y) {
          r = Relu(x)
          y = Shape(r)
        }""")
    apply_pass("resolve-shapes", model)
    assert [node.op_type for node in model.graph] == ["Relu", "Shape"]


def test_casts_that_lose_nothing_merge(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (int32[N] x) => (int32[N] y, bool[N] z) {
          a = Cast <to = 7> (x)
          b = Cast <to = 6> (a)
          y = Neg(b)
          z = Cast <to = 9> (a)
        }""")
    assert apply_pass("merge-casts", model).rules == {"merge-casts": 2}
    apply_pass("remove-identity", model)
    assert_text(
        model,
        "g (int32[N] x) => (int32[N] y, bool[N] z) { y = Neg(x)  z = Cast <to = 9> (x) }",
    )


@pytest.mark.parametrize(
    ("source", "middle", "merges"),
    [
        ("bool", 1, True),
        ("int8", 10, True),
        ("uint8", 3, False),
        ("uint8", 6, True),
        ("int16", 10, False),
        ("int32", 1, False),
        ("int32", 11, True),
        ("int64", 11, False),
        ("int64", 6, False),
        ("float16", 1, True),
        ("float", 10, False),
        ("float", 6, False),
        ("float", 11, True),
        ("double", 1, False),
    ],
)
def test_only_what_holds_every_value(
    source: str, middle: int, merges: bool, parse: Any, apply_pass: Any
) -> None:
    model = parse(f"""
        g ({source}[N] x) => (float[N] y) {{
          a = Cast <to = {middle}> (x)
          y = Cast <to = 1> (a)
        }}""")
    assert apply_pass("merge-casts", model).modified == merges


def test_sizes_fit_into_32_bits(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[A, B] x, int64[N] v) => (int64[2] y, int64[N] z) {
          s = Shape(x)
          a = Cast <to = 6> (s)
          y = Cast <to = 7> (a)
          b = Cast <to = 6> (v)
          z = Cast <to = 7> (b)
        }""")
    apply_pass("infer-shapes", model)
    assert apply_pass("merge-casts", model).rules == {"merge-casts": 1}


def test_one_size_that_is_not_known_is_what_is_left(
    parse: Any, apply_pass: Any, assert_text: Any
) -> None:
    # What tf2onnx writes for a Dense layer on sequences.
    model = parse("""
        g (float[N, 4, 6] x) => (float[?, 6] y)
        <int64[2] free = {0, 1}, int64[1] axis = {0}, int64[1] six = {6}> {
          s = Shape(x)
          f = Gather(s, free)
          p = ReduceProd <keepdims = 0> (f, axis)
          u = Unsqueeze(p, axis)
          t = Concat <axis = 0> (u, six)
          y = Reshape(x, t)
        }""")
    shapes_resolved(model, apply_pass)
    assert_text(
        model,
        """g (float[N, 4, 6] x) => (float[?, 6] y) <int64[2] shape = {-1, 6}> {
          y = Reshape(x, shape)
        }""",
    )


def test_sizes_are_joined_as_they_are(
    parse: Any, apply_pass: Any, assert_text: Any, evaluate: Any, random_feed: Any
) -> None:
    model = parse("""
        g (float[N, 4] x, float zero) => (float[?, 16] y)
        <int64[1] a = {0}, int64[1] b = {1}, int32[1] units = {16}> {
          s = Shape(x)
          i = Cast <to = 6> (s)
          n = Slice(i, a, b, a)
          c = Concat <axis = 0> (n, units)
          t = Cast <to = 7> (c)
          y = Expand(zero, t)
        }""")
    feed = random_feed(model, sizes={"N": 3})
    before = evaluate(model, feed)["y"]
    assert shapes_resolved(model, apply_pass).rules["sizes-in-64-bits"] == 1
    assert_text(
        model,
        """g (float[N, 4] x, float zero) => (float[?, 16] y) <int64[1] t_part_1 = {16}> {
          t_part = Shape <end = 1, start = 0> (x)
          t_1 = Concat <axis = 0> (t_part, t_part_1)
          y = Expand(zero, t_1)
        }""",
    )
    assert evaluate(model, feed)["y"].tobytes() == before.tobytes()


_EXPANSION = """
    g (float[N, S] x, float[1, 1] m) => (float[?, ?] y)
    <int64[2] left = {%s}, int64[2] ones = {1, 1}> {
      s = Shape(x)
      e = Equal(s, left)
      w = Where(e, ones, s)
      y = Expand(m, w)
    }"""


def test_sizes_are_never_negative(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    # What PyTorch writes for expand: sizes of -1 would be those of the tensor.
    model = parse(_EXPANSION % "-1, -1")
    assert shapes_resolved(model, apply_pass).rules["no-negative-sizes"] == 1
    assert_text(
        model,
        "g (float[N, S] x, float[1, 1] m) => (float[?, ?] y) { s = Shape(x) y = Expand(m, s) }",
    )


@pytest.mark.parametrize("left", ["-1, 0", "1, 1"])
def test_sizes_that_may_be_replaced_are(left: str, parse: Any, apply_pass: Any) -> None:
    model = parse(_EXPANSION % left)
    assert "no-negative-sizes" not in shapes_resolved(model, apply_pass).rules
