"""The rung finetune: what it learns, what of it holds for fewer layers, where it cannot be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.grad.vjp import VJPS
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.set_constants import SetConstants
from onnxfold.runtime.compiler.rungs import MENDING, Lesson, applicable
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.specs import input_specs

Parse = Callable[..., ir.Model]

RANGES = Ranges({"x": (-3.0, 3.0), "r": (0.0, 9.0)})


def _lesson(parse: Parse) -> Lesson:
    random = np.random.default_rng(3)
    numbers = [", ".join(map(str, random.normal(size=36).astype(np.float32))) for _ in "ab"]
    constants = f"float[6,6] a = {{{numbers[0]}}}, float[6,6] b = {{{numbers[1]}}}"
    body = "h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b)"
    model = parse(f"g (float[N,6] x) => (float[N,6] y) <{constants}> {{ {body} }}")
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    data = {"x": random.normal(size=(64, 6)).astype(np.float32)}
    feeds = open_feeds(data, input_specs(model), batch_size=4)
    return Lesson(model, _quantized(model), feeds, Silent())


def _quantized(model: ir.Model, *skip: str) -> ir.Model:
    insert = InsertQdq(RANGES, weights="s4", skip=skip)
    return Pipeline((insert,)).run(model.clone()).model


def test_what_is_learned_is_a_pass_that_a_plan_can_keep(parse: Parse) -> None:
    lesson = _lesson(parse)
    learned = MENDING["finetune"](lesson)
    assert isinstance(learned, SetConstants)
    assert learned.constants
    assert Pipeline((learned,)).run(lesson.quantized.clone()).modified


def test_what_was_learned_holds_for_the_layers_that_stay(parse: Parse) -> None:
    lesson = _lesson(parse)
    learned = MENDING["finetune"](lesson)
    fewer = _quantized(lesson.original, "make_y")
    kept = applicable(learned, fewer, ["make_y"])
    assert isinstance(learned, SetConstants)
    assert isinstance(kept, SetConstants)
    assert 0 < len(kept.constants) < len(learned.constants)
    assert Pipeline((kept,)).run(fewer.clone()).modified


def test_a_model_without_a_gradient_is_left_alone(
    parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = _lesson(parse)
    # Differentiation fails at the first node: its operator has no rule any more.
    monkeypatch.delitem(VJPS, "MatMul")
    learned = MENDING["finetune"](lesson)
    assert isinstance(learned, SetConstants)
    assert not learned.constants
