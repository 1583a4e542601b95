from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def test_transposes_compose(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[2, 3, 4] x) => (float[4, 2, 3] y) {
          a = Transpose <perm = [1, 2, 0]> (x)
          y = Transpose <perm = [1, 2, 0]> (a)
        }""")
    assert apply_pass("merge-transposes", model).rules == {"merge-transposes": 1}
    assert_text(
        model,
        "g (float[2, 3, 4] x) => (float[4, 2, 3] y) { y = Transpose <perm = [2, 0, 1]> (x) }",
    )


def test_transposes_that_cancel_are_gone(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[A, B] x) => (float[A, B] y) {
          a = Transpose(x)
          b = Transpose(a)
          y = Neg(b)
        }""")
    apply_pass("merge-transposes", model)
    apply_pass("remove-identity", model)
    assert_text(model, "g (float[A, B] x) => (float[A, B] y) { y = Neg(x) }")


def test_a_transpose_read_elsewhere_stays(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        g (float[2, 3] x) => (float[3, 2] a, float[2, 3] y) {
          a = Transpose(x)
          b = Transpose(a)
          y = Neg(b)
        }""")
    feed = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    before = evaluate(model, feed)
    apply_pass("merge-transposes", model)
    apply_pass("remove-identity", model)
    after = evaluate(model, feed)
    assert [node.op_type for node in model.graph] == ["Transpose", "Neg"]
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("shape", "perm", "becomes"),
    [
        ("1, C, 1, 4", [0, 2, 3, 1], "Transpose"),
        ("N, 1, 1, 4", [0, 2, 3, 1], "Reshape"),
        ("N, 1, 5, 1", [1, 0, 3, 2], "Reshape"),
        ("N, 1, C, 1", [1, 0, 3, 2], "Transpose"),
        ("0, 1, C, 1", [1, 0, 3, 2], "Transpose"),
    ],
)
def test_moving_ones_is_a_reshape(
    shape: str, perm: list[int], becomes: str, parse: Any, apply_pass: Any, evaluate: Any
) -> None:
    model = parse(f"""
        g (float[{shape}] x) => (float[a, b, c, d] y) {{ y = Transpose <perm = {perm}> (x) }}""")
    dims = [{"N": 2, "C": 3}.get(dim.strip()) or int(dim) for dim in shape.split(",")]
    feed = {"x": np.arange(np.prod(dims), dtype=np.float32).reshape(dims)}
    before = evaluate(model, feed)["y"]
    apply_pass("merge-transposes", model)
    assert [node.op_type for node in model.graph] == [becomes]
    after = evaluate(model, feed)["y"]
    assert after.shape == before.shape
    assert after.tobytes() == before.tobytes()


def test_reshapes_merge(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        g (float[N, 2, 3] x) => (float[A, B] y)
        <int64[1] flat = {-1}, int64[2] rows = {-1, 6}, int64[1] axis = {0}> {
          a = Reshape(x, flat)
          b = Unsqueeze(a, axis)
          y = Reshape(b, rows)
        }""")
    assert apply_pass("merge-reshapes", model).rules == {"merge-reshapes": 2}
    apply_pass("remove-dead-code", model)
    assert_text(
        model,
        """g (float[N, 2, 3] x) => (float[A, B] y) <int64[2] rows = {-1, 6}> {
          y = Reshape(x, rows)
        }""",
    )


def test_copied_dimensions_are_resolved_or_left(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    text = """
        g (float[2, 6] x) => (float[A, B, C] y)
        <int64[2] first = {4, 3}, int64[3] copy = {0, 3, -1}> {
          a = Reshape(x, first)
          y = Reshape(a, copy)
        }"""
    model = parse(text)
    assert not apply_pass("merge-reshapes", model).modified
    feed = {"x": np.arange(12, dtype=np.float32).reshape(2, 6)}
    before = evaluate(model, feed)["y"]
    apply_pass("infer-shapes", model)
    assert apply_pass("merge-reshapes", model).modified
    assert len(model.graph) == 1
    np.testing.assert_array_equal(evaluate(model, feed)["y"], before)


def test_squeeze_after_flatten_is_one_reshape(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        g (float[2, 3] x) => (float[6] y) <int64[1] axis = {0}> {
          a = Flatten <axis = 0> (x)
          b = Squeeze(a, axis)
          y = Neg(b)
        }""")
    apply_pass("infer-shapes", model)
    assert apply_pass("merge-reshapes", model).rules == {"fix-shape": 1, "merge-reshapes": 1}
    assert [node.op_type for node in model.graph] == ["Reshape", "Neg"]
    evaluate(model, {"x": np.zeros((2, 3), np.float32)})
