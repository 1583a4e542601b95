"""Which answers could hide an error, and that layers are then held to the framework one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfold.passes.constants import Array
from onnxfold.runtime.export.evidence import says_nothing, weak_outputs
from onnxfold.runtime.export.front_end import Exported
from onnxfold.runtime.export.inspection import Inside, judge_inside
from onnxfold.runtime.export.proof import prove
from onnxfold.runtime.export.segments import compare_segments
from onnxfold.runtime.export.sources import Source
from onnxfold.runtime.export.workers.protocol import Answer, Request
from onnxfold.runtime.export.workers.samples import Port
from onnxfold.runtime.specs import Feed

_RNG = np.random.default_rng(0)
_SATURATED = np.where(np.eye(10)[:4] > 0, 127, -128).astype(np.int8)
_MODEL = """g (float[1, 4] x) => (int8[1, 4] y)
  <float[4] w = {1, 2, 3, 4}, float[4] b = {0, 0, 0, 0}, float big = {40},
   float step = {0.004}, int8 zero = {-128}> {
  a = Mul(x, w)
  c = Add(a, b)
  d = Tanh(c)
  e = Mul(d, big)
  f = Sigmoid(e)
  y = QuantizeLinear(f, step, zero)
}"""
_X = np.array([[0.5, -0.5, 0.25, -1.0]], np.float32)


def _weak(*arrays: Array) -> bool:
    return bool(weak_outputs([{"y": each} for each in arrays]))


def test_what_could_hide_an_error() -> None:
    noise = _RNG.standard_normal((3, 1, 20)).astype(np.float32)
    assert _weak(*_SATURATED)
    assert _weak(*_SATURATED.astype(np.float32))
    assert _weak(*np.repeat(noise[:1], 3, axis=0))
    assert _weak(np.zeros((1, 5), np.float32))
    assert _weak(np.full((1, 5), np.nan, np.float32))
    assert not _weak(*noise)
    assert not _weak(*(noise * 1e6).astype(np.int8))
    assert not _weak(np.array([[0.3]], np.float32), np.array([[0.4]], np.float32))


def test_one_value_that_tells_is_not_nothing() -> None:
    sure = [{"p": each} for each in np.eye(10, dtype=np.float32)]
    assert weak_outputs(sure)
    assert says_nothing(sure)
    sure[3]["p"] = np.array([0, 0, 0, 0.75, 0.25, 0, 0, 0, 0, 0], np.float32)
    assert weak_outputs(sure)
    assert not says_nothing(sure)


def test_labels_count_where_there_is_nothing_else() -> None:
    same = [{"label": np.array([3]), "p": each} for each in _RNG.standard_normal((4, 1, 3))]
    assert not weak_outputs(same)
    assert weak_outputs([{"label": each["label"]} for each in same])
    words = np.array([["a"], ["b"]], dtype=object)
    assert not weak_outputs([{"label": words}])
    assert "4 of 4 values" in str(weak_outputs([{"label": np.array([3, 3, 3, 3])}])[0])


def _values() -> Feed:
    """What a framework computes that has ``_MODEL``."""
    a = _X * np.array([1, 2, 3, 4], np.float32)
    d = np.tanh(a)
    y = np.clip(np.rint(1 / (1 + np.exp(-d * 40)) / np.float32(0.004)) - 128, -128, 127)
    return {"a": a, "c": a, "d": d, "y": y.astype(np.int8)}


def _inside(model: Any, *, told: bool = True) -> Inside:
    values = _values()
    names = Answer(("x",), ("y",), {}, {"c": "dense (Dense)"})
    inside = ({key: values[key] for key in "acd"},) if told else ()
    exported = Exported(None, names, ({"x": _X},), ({"y": values["y"]},), inside=inside)
    comparison = prove(model, "it", exported.feeds, exported.expected)
    assert comparison.verdict.passed
    source = Source(Path("none.pkl"), "pickle")
    request = Request("pickle", "none.pkl", 18)
    return judge_inside(*(source, request, exported, [model], comparison.verdict), None)


def test_a_fault_that_saturation_hides_is_found(parse: Any) -> None:
    found = _inside(parse(_MODEL))
    assert found.verdict.passed
    assert "3 tensors inside" in found.notes[0]
    found = _inside(parse(_MODEL.replace("b = {0, 0, 0, 0}", "b = {0, 0.1, 0, 0}")))
    assert not found.verdict.passed
    assert not found.verdict.inconclusive
    assert "first layer that differs is dense (Dense) (tensor 'c'" in found.verdict.reasons[0]


def test_what_cannot_be_looked_into_stays_open(parse: Any) -> None:
    found = _inside(parse(_MODEL), told=False)
    assert found.verdict.inconclusive
    assert "--data" in found.verdict.reasons[0]
    constant = parse("g (float[1] x) => (float[1] y) <float[1] k = {2}> { y = Identity(k) }")
    names = Answer(("x",), ("y",), {})
    exported = Exported(None, names, ({"x": _X},), ({"y": np.array([2, 2, 2, 2])},))
    request, verdict = Request("pickle", "", 18), found.verdict
    ends = Source(Path("none"), "pickle"), request, exported, [constant], verdict
    assert judge_inside(*ends).notes == ()


def test_a_classifier_that_is_sure_passes_with_a_note(parse: Any) -> None:
    sure = np.eye(10, dtype=np.float32)
    sure[3, 3:5] = 0.75, 0.25
    model = parse("g (float[1, 10] x) => (float[1, 10] y) { y = Identity(x) }")
    feeds = tuple({"x": each[None]} for each in sure)
    exported = Exported(
        None, Answer(("x",), ("y",), {}), feeds, tuple({"y": each[None]} for each in sure)
    )
    comparison = prove(model, "it", exported.feeds, exported.expected)
    request, source = Request("pickle", "none.pkl", 18), Source(Path("none.pkl"), "pickle")
    found = judge_inside(*(source, request, exported, [model], comparison.verdict), None)
    assert found.verdict.passed
    assert "'y' says little" in found.notes[0]


def _fault(model: Any, values: Feed) -> str:
    found = compare_segments(model, [{"x": _X}], [values], {}).fault
    return "" if found is None else found.layer


def test_errors_of_layers_do_not_add_up(parse: Any) -> None:
    """Each is fed with the framework's own values, so that the guilty one alone is named."""
    wrong = parse(_MODEL.replace("w = {1, 2, 3, 4}", "w = {1, 2, 3, 5}"))
    values = _values()
    assert _fault(wrong, values) == "a"
    # With what this model makes of it, what follows is right.
    shifted = {**values, "c": values["a"] + np.float32(0.5)}
    shifted["d"] = np.tanh(shifted["c"])
    assert _fault(parse(_MODEL), shifted) == "c"


def test_a_name_of_another_tensor_is_no_fault(parse: Any) -> None:
    values = _values()
    named_so = parse(_MODEL.replace("c = Add(a, b)", "k = Add(a, b)  c = Neg(k)").replace(
        "d = Tanh(c)", "n = Neg(c)  d = Tanh(n)"))  # fmt: skip
    assert _fault(named_so, values) == ""


def test_made_up_codes_are_all_of_the_range() -> None:
    rng = np.random.default_rng(0)
    port = Port("x", np.dtype(np.int16), (1, 500), (-32768, 32767))
    assert np.ptp(port.draw(rng).astype(int)) > 60000
    assert np.ptp(port.draw(rng, 1, 0.25).astype(int)) == pytest.approx(16384, rel=0.1)
    real = Port("x", np.dtype(np.float32), (1, 500), (0.0, 255.0)).draw(rng)
    assert real.dtype == np.float32
    assert 0 <= real.min() < 10
    assert 245 < real.max() <= 255
