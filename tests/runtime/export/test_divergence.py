"""The first layer that differs is found, whatever exporters do to layouts and names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxfold.passes.errors import InvalidModelError
from onnxfold.runtime.export.divergence import compare_layers, first_divergence
from onnxfold.runtime.export.proof import FrameworkGate
from onnxfold.runtime.export.rows import has_open_batch, joined_samples
from onnxfold.runtime.specs import Feed

_MODEL = """g (float[1, 2, 3, 4] x) => (float[1, 2, 3, 4] y) <float two = {2}> {
  a = Mul(x, two)
  b = Neg(a)
  c = Abs(b)
  d = Sqrt(c)
  y = Add(d, a)
}"""
_X = np.arange(1, 25, dtype=np.float32).reshape(1, 2, 3, 4)
_LAYERS = {"a": "scale (Scale)", "b": "sign (Sign)", "d": "root (Root)"}


def _values(scale: float = 2.0) -> Feed:
    """What a framework computes that has images as NHWC."""
    a = _X * np.float32(scale)
    d = np.sqrt(np.abs(-a))
    inner = {name: np.moveaxis(x, 1, -1) for name, x in {"a": a, "b": -a, "d": d}.items()}
    return {**inner, "y": d + a}


def test_layers_that_agree(parse: Any) -> None:
    errors = compare_layers(parse(_MODEL), [{"x": _X}], [_values()], _LAYERS, FrameworkGate())
    assert [each.layer for each in errors] == ["scale (Scale)", "sign (Sign)", "root (Root)", "y"]
    assert all(each.passed for each in errors)
    assert errors[0].to_json()["max_abs_diff"] == 0
    assert first_divergence(errors) is None


def test_the_first_that_differs(parse: Any) -> None:
    wrong = parse(_MODEL.replace("b = Neg(a)", "b = Mul(a, two)"))
    errors = compare_layers(wrong, [{"x": _X}], [_values()], _LAYERS, FrameworkGate())
    first = first_divergence(errors)
    assert first is not None
    assert first.layer == "sign (Sign)"
    assert "tensor 'b'" in str(first)
    assert "144" in str(first)


def test_a_name_of_another_tensor_is_no_difference(parse: Any) -> None:
    values = {**_values(), "b": _values()["b"] * 3}
    errors = compare_layers(parse(_MODEL), [{"x": _X}], [values], _LAYERS, FrameworkGate())
    assert all(each.passed for each in errors)


def test_what_cannot_be_compared_is_left_out(parse: Any) -> None:
    values = {**_values(), "a": np.zeros((5, 5), np.float32), "d": np.zeros((1, 2, 3, 4), np.int8)}
    errors = compare_layers(parse(_MODEL), [{"x": _X}], [values], {}, FrameworkGate())
    assert [each.layer for each in errors] == ["b", "y"]
    assert compare_layers(parse(_MODEL), [{"x": _X}], [{}], {}, FrameworkGate()) == ()


def test_two_samples_as_one(parse: Any) -> None:
    model = parse("""g (float[batch, 2] x, float[2] z) => (float[1, batch, 2] y, float[2] k)
        <int64[1] axes = {0}> { a = Add(x, z)  y = Unsqueeze(a, axes)  k = Neg(z) }""")
    assert has_open_batch(model)
    z = np.ones(2, np.float32)
    feeds = [{"x": np.full((1, 2), number, np.float32), "z": z} for number in (1, 2)]
    wanted = [{"y": (each["x"] + z)[None], "k": -z} for each in feeds]
    given, expected = joined_samples(model, feeds, wanted)
    np.testing.assert_array_equal(given["x"], [[1, 1], [2, 2]])
    np.testing.assert_array_equal(given["z"], z)
    np.testing.assert_array_equal(expected["y"], [[[2, 2], [3, 3]]])
    np.testing.assert_array_equal(expected["k"], -z)
    with pytest.raises(InvalidModelError, match="'k' differs from sample to sample"):
        joined_samples(model, feeds, [wanted[0], {**wanted[1], "k": z}])
