"""name-dimensions: open dimensions are called by what they are."""

from __future__ import annotations

from typing import Any

import pytest


def _dims(value: Any) -> list[str]:
    return [str(dim) for dim in value.shape]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("unk__1, 3", "batch, 3"),
        ("s77, 3, s5", "batch, 3, x_2"),
        ("unk__1, unk__2, 8", "batch, length, 8"),
        ("unk__1, 3, unk__2, unk__3", "batch, 3, height, width"),
        ("unk__1, unk__2, unk__3, 3", "batch, height, width, 3"),
        ("N, unk__7", "N, length"),
        ("N, M", "N, M"),
    ],
)
def test_inputs_and_what_follows(given: str, named: str, parse: Any, apply_pass: Any) -> None:
    model = parse(f"g (float[{given}] x) => (float[{given}] y) {{ a = Neg(x)  y = Neg(a) }}")
    apply_pass("name-dimensions", model)
    assert ", ".join(_dims(model.graph.inputs[0])) == named
    assert _dims(model.graph.outputs[0]) == _dims(model.graph.inputs[0])
    assert not apply_pass("name-dimensions", model).modified


def test_outputs_with_numbers_of_their_own(parse: Any, apply_pass: Any) -> None:
    model = parse("""g (float[unk__1, 6] x, float[unk__2, 6] z)
        => (float[unk__3, 2, 3] y, int64[2, unk__4] places) <int64[3] parts = {-1, 2, 3}> {
          a = Mul(x, z)
          y = Reshape(a, parts)
          some = Constant<value = float[2, 1] {1, 0}>()
          places = NonZero(some)
        }""")
    apply_pass("name-dimensions", model)
    assert [_dims(value) for value in model.graph.inputs] == [["batch", "6"], ["batch", "6"]]
    y, places = model.graph.outputs
    assert _dims(y) == ["batch", "2", "3"]
    assert _dims(places) == ["2", "places_1"]


def test_inputs_that_cannot_be_followed_share_no_name(parse: Any, apply_pass: Any) -> None:
    model = parse("""g (float[unk__1, 6] x, float[unk__2, 6] z) => (float[unk__3, 6] y) {
          y = Concat<axis = 0>(x, z) }""")
    apply_pass("name-dimensions", model)
    shapes = [_dims(value) for value in (*model.graph.inputs, *model.graph.outputs)]
    assert shapes == [["batch", "6"], ["z_0", "6"], ["y_0", "6"]]


def test_dimensions_without_any_name(parse: Any, apply_pass: Any) -> None:
    model = parse("g (float[?, 2] x) => (float[?, 2] y) { y = Neg(x) }")
    apply_pass("name-dimensions", model)
    assert _dims(model.graph.inputs[0]) == _dims(model.graph.outputs[0]) == ["batch", "2"]
