"""Layers inside bodies: chosen like all others, and left alone by what cannot mend them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.compiler.layers import linear_layers
from onnxfold.runtime.compiler.rungs import MENDING, Lesson
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.specs import input_specs

Parse = Callable[..., ir.Model]
LOOP = """
g (float[T,8,64] xs, float[8,64] h0, int64 n, float[64,64] w, float[64,64] v) => (float[8,64] h)
<bool yes = {1}>
{
  h = Loop (n, yes, h0) <body = step (int64 i, bool go, float[8,64] s) => (bool on, float[8,64] t) {
    on = Identity(go)
    x = Gather(xs, i)
    a = MatMul(x, w)
    b = MatMul(s, v)
    c = Add(a, b)
    t = Tanh(c)
  }>
}
"""


@pytest.fixture
def model(parse: Parse) -> ir.Model:
    """A recurrent cell written as a Loop."""
    found = parse(LOOP)
    random = np.random.default_rng(0)
    for value in found.graph.inputs[3:]:
        weights = (random.normal(size=(64, 64)) / 8).astype(np.float32)
        value.const_value = ir.tensor(weights, name=value.name)
        found.graph.inputs.remove(value)
        found.graph.register_initializer(value)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sequences of 1 to 5 steps."""
    random = np.random.default_rng(1)
    for index in range(16):
        feed: dict[str, Any] = {
            "xs": random.normal(size=(index % 5 + 1, 8, 64)).astype(np.float32),
            "h0": random.normal(size=(8, 64)).astype(np.float32),
            "n": np.array(index % 5 + 1),
        }
        np.savez(tmp_path / f"{index:02}.npz", allow_pickle=False, **feed)
    return tmp_path


def test_layers_in_bodies_are_layers(model: ir.Model) -> None:
    assert linear_layers(model) == {"a": "MatMul", "b": "MatMul"}


@pytest.mark.parametrize("rung", ["correct-bias", "round-weights", "gptq"])
def test_what_mends_layers_of_the_main_graph_leaves_a_body_as_it_is(
    model: ir.Model, data: Path, rung: str
) -> None:
    names = tensors_to_observe(model, PlacementOptions())
    insert = InsertQdq(Ranges(dict.fromkeys(names, (-1.0, 1.0))))
    quantized = Pipeline((insert,)).run(model.clone()).model
    lesson = Lesson(model, quantized, open_feeds(data, input_specs(model)), Silent())
    done = Pipeline((MENDING[rung](lesson),)).run(quantized.clone())
    assert not done.modified


def test_a_loop_is_compiled_to_integer_products(model: ir.Model, data: Path) -> None:
    outcome = onnxfold.compile(model, data=data, keep_slower=True, budget="sqnr=30", preset="fast")
    assert outcome.report.passed, outcome.report.reasons
    inside = [
        node.op_type for node in all_nodes(outcome.model) if node.graph is not outcome.model.graph
    ]
    assert "MatMul" not in inside
    assert len([each for each in inside if each.startswith("MatMulInteger")]) == 2
