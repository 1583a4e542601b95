"""What holds random graphs to the contract, and what draws them, can themselves fail."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from fixtures.fake_quant.contract import Tally, judge, structure
from fixtures.fake_quant.drawing import Array, Drawing, UndrawableError
from fixtures.fake_quant.random_graph import FAMILIES, draw
from fixtures.fake_quant.reductions import is_misread
from fixtures.fake_quant.survey import Found, Original, Survey, distinct
from onnxfold.runtime.session import REFERENCE, Session

_RIGHT = Found("t", "Conv", "QLinearConv", "reference", 1000, 1, 1.0, 1000, 1, 1.0)


def test_a_region_that_keeps_the_contract_passes() -> None:
    assert not judge(_RIGHT)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (replace(_RIGHT, steps=2.0), "more than one code"),
        (replace(_RIGHT, exact_steps=2.0), "more than one code"),
        (replace(_RIGHT, wrong=40), "off too often"),
        (replace(_RIGHT, incorrect=40), "rounded wrongly too often"),
        (replace(_RIGHT, quantized=False), "real numbers differ"),
    ],
)
def test_a_region_that_breaks_it_does_not(found: Found, problem: str) -> None:
    assert problem in judge(found)


def test_what_is_rare_in_each_region_is_seen_over_many() -> None:
    tally = Tally()
    for _ in range(50):
        tally.add(replace(_RIGHT, wrong=3))
    assert not judge(replace(_RIGHT, wrong=3))
    assert any("Conv (reference)" in each for each in tally.broken())
    assert not Tally().broken()


def test_a_number_that_is_repeated_is_one_number() -> None:
    """A Pad writes one number many times: rounded wrongly, it is no dozen of wrong roundings."""
    position = np.array([[4.4996, 4.4996 + 1e-12], [4.4996, 2.25]])
    want, got = np.array([[4, 4], [4, 2]]), np.array([[5, 5], [4, 2]])
    seen = distinct(position, want, got)
    assert seen.tolist() == [[2.25, 4.4996, 4.4996], [2, 4, 4], [2, 4, 5]]


class _Written(Drawing):
    """A model as a drawing, which the survey takes."""

    def __init__(self, model: onnx.ModelProto, feed: dict[str, Array]) -> None:
        super().__init__(random.Random(0), 17)
        self._model = model
        self.feed = feed

    def proto(self) -> onnx.ModelProto:
        return self._model


@pytest.mark.parametrize(("moved", "wrong"), [(0.9e-5, 0), (1.1e-5, 1)])
def test_what_a_sum_may_lose_grows_with_its_terms(moved: float, wrong: int) -> None:
    """256 terms, 1 each in magnitude, come to 0.004: ``moved`` is over all the magnitudes."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1,256] q) => (float[1,1] y) <float s = {1.0}, float[256,1] w>
        { x = DequantizeLinear (q, s) y = MatMul (x, w) }"""
    models = [onnx.parser.parse_model(each) for each in (text, text.replace("MatMul", "Gemm"))]
    for model, total in zip(models, (0.004, 0.004 + 256 * moved), strict=True):
        weights = np.ones((256, 1), np.float32)
        weights[1::2] = -1.0
        weights[0] = 1 + total
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    original = Original(_Written(models[0], {"q": np.ones((1, 256), np.uint8)}))
    (found,) = Survey.of_fold(original, ir.from_proto(models[1])).run(REFERENCE)
    assert abs(original.values["y"].item()) < 0.01
    assert (found.quantized, found.wrong) == (False, wrong)


def test_structure_ignores_names_and_sees_all_else() -> None:
    text = "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { t = Add (x, c)  y = Abs (t) }"
    graphs = [
        onnx.parser.parse_graph(each)
        for each in (
            text,
            text.replace("t = Add", "u = Add").replace("(t)", "(u)"),
            text.replace("{1, 2}", "{1, 3}"),
            text.replace("Abs", "Neg"),
            text.replace("(x, c)", "(c, x)"),
        )
    ]
    first, *others = [structure(each) for each in graphs]
    assert [each == first for each in others] == [True, False, False, False]


def test_every_family_applies() -> None:
    seen = dict.fromkeys(FAMILIES, 0)
    for number in range(20):
        drawing = draw(random.Random(number))
        for name, family in FAMILIES.items():
            for value in drawing.values[:2]:
                seen[name] += _applies(drawing, family.draw, value)
    assert min(seen.values()) >= 1, seen


def _applies(drawing: Drawing, step: object, value: object) -> bool:
    assert callable(step)
    try:
        with drawing.attempt():
            step(drawing, value)
    except UndrawableError:
        return False
    return True


def test_the_same_choices_give_the_same_bytes() -> None:
    for number in range(10):
        first, second = (draw(random.Random(number)).proto() for _ in range(2))
        assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1]])
def test_what_onnxruntime_averages_wrong_is_not_drawn(opset: int, pads: list[int]) -> None:
    attributes = {"kernel_shape": [3, 2], "pads": pads, "count_include_pad": 1}
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        agraph (float[1,1,6,5] x) => (float[1,1,h,w] y) {{ y = AveragePool
        <kernel_shape = [3, 2], pads = {pads}, count_include_pad = 1> (x) }}""")
    image = np.random.default_rng(0).normal(size=(1, 1, 6, 5)).astype(np.float32)
    got = Session(model, REFERENCE).run({"x": image})["y"][0, 0]
    padded = np.pad(image[0, 0], [(pads[0], pads[2]), (pads[1], pads[3])])
    right = np.lib.stride_tricks.sliding_window_view(padded, (3, 2)).mean((2, 3))
    assert np.allclose(got, right, atol=1e-5) != is_misread(opset, attributes)
