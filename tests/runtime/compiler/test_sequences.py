"""Class probabilities step by step: what counts is what they decide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.constants import Array
from onnxfold.runtime.compiler.quality import QualityJudge
from onnxfold.runtime.compiler.sequences import decisions_kept, sequence_outputs
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify.budget import Budget

Parse = Callable[..., ir.Model]
SEQUENCE = "g (float[N,20,5] x) => (float[N,20,5] y) {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "opset", "found"),
    [
        ("y = Softmax(x)", 17, ("y",)),
        ("y = LogSoftmax<axis = 2>(x)", 11, ("y",)),
        ("y = Softmax(x)", 11, ()),
        ("y = Softmax<axis = 1>(x)", 17, ()),
        ("z = Softmax(x)  y = Neg(z)", 17, ()),
    ],
)
def test_what_a_sequence_is(parse: Parse, body: str, opset: int, found: tuple[str, ...]) -> None:
    assert sequence_outputs(parse(SEQUENCE.format(body=body), opset=opset)) == found


def test_of_outputs_of_other_kinds_decisions_say_nothing(parse: Parse) -> None:
    text = "g (float[N,20,5] x) => (float[N,20,5] y, float[N,20,5] z) { y = Softmax(x) z = Neg(x) }"
    assert sequence_outputs(parse(text, opset=17)) == ()
    rows = "g (float[N,5] x) => (float[N,5] y) { y = Softmax(x) }"
    assert sequence_outputs(parse(rows, opset=17)) == ()


def test_the_share_is_counted_over_all_steps() -> None:
    old = [np.eye(4, dtype=np.float32)[None], np.eye(4, dtype=np.float32)[None, :1]]
    new: list[Array] = [each.copy() for each in old]
    new[0][0, 2] = [1.0, 0.0, 0.0, 0.0]
    assert decisions_kept(old, new) == pytest.approx(4 / 5)


def undecided(count: int) -> list[dict[str, Array]]:
    """Steps of which a few lie between two classes, so that a touch turns their scores over."""
    rng = np.random.default_rng(0)
    scores = 30.0 * rng.normal(size=(count, 20, 5)).astype(np.float32)
    scores[:, :, 0] = -99.0
    scores[:, :3, :2] = [99.0, 98.0]
    return [{"x": each[None]} for each in scores]


@pytest.mark.parametrize(
    ("feeds", "budget", "passed"),
    [(40, Budget(), True), (5, Budget(), False), (40, Budget.from_text("sqnr=30"), False)],
)
def test_noise_of_undecided_steps_is_no_reason_to_refuse(
    parse: Parse, feeds: int, budget: Budget, passed: bool
) -> None:
    original = parse(SEQUENCE.format(body="y = Softmax(x)"), opset=17)
    near = parse(
        """g (float[N,20,5] x) => (float[N,20,5] y) <float[5] bias = {-0.9, 0, 0, 0, 0}>
        { z = Add(x, bias)  y = Softmax(z) }""",
        opset=17,
    )
    source: FeedSource = open_feeds(undecided(feeds), input_specs(original))
    quality = QualityJudge(original, source, budget)(near)
    assert quality.score < 30
    assert quality.passed is passed
    assert ("unchanged decisions 1" in quality.text) is (feeds == 40 and budget == Budget())


def test_changed_decisions_are(parse: Parse) -> None:
    original = parse(SEQUENCE.format(body="y = Softmax(x)"), opset=17)
    other = parse(
        """g (float[N,20,5] x) => (float[N,20,5] y) <float[5] bias = {-1.3, 0, 0, 0, 0}>
        { z = Add(x, bias)  y = Softmax(z) }""",
        opset=17,
    )
    source = open_feeds(undecided(40), input_specs(original))
    quality = QualityJudge(original, source, Budget())(other)
    assert not quality.passed
    assert quality.shortfall_db == pytest.approx(30 - quality.score)
