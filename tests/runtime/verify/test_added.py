from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import NotEquivalentError
from onnxfold.passes.loss.inject_loss import InjectLoss
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.session import Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.compare import compare_models
from onnxfold.runtime.verify.complete import MadeUpLabels, complete_feed
from onnxfold.runtime.verify.pass_gate import ContractGate

Parse = Callable[..., ir.Model]

CE = "sparse-softmax-cross-entropy"
NET = """
g (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}, float[3] b = {1,2,3}>
{ t = MatMul(x, w)  y = Add(t, b) }
"""
RNG = np.random.default_rng(3)
FEEDS: list[Feed] = [{"x": RNG.normal(size=(2, 4)).astype(np.float32)} for _ in range(3)]


@dataclass(frozen=True)
class AddSpread(Pass):
    """Adds the variance of an output, by the formula that cancels where ``shift`` is large."""

    name: ClassVar[str] = "add-spread"
    contract: ClassVar[Contract] = Contract.ADDITIVE
    shift: float = 0.0

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        graph = model.graph
        y = graph.outputs[0]
        axes = {"keepdims": 0}
        with rewriter.step("add"):
            far = rewriter.add_initializer(graph, np.array([self.shift], np.float32), name="far")

            def op(kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
                return rewriter.insert(
                    graph[-1],
                    kind,
                    inputs,
                    name=kind,
                    attributes=attributes,
                    dtype=ir.DataType.FLOAT,
                    shape=None,
                    after=True,
                )

            moved = op("Add", y, far)
            mean = op("ReduceMean", moved, **axes)
            square = op("ReduceMean", op("Mul", moved, moved), **axes)
            spread = op("Sub", square, op("Mul", mean, mean))
            rewriter.set_type(spread, ir.DataType.FLOAT, ())
            rewriter.add_output(spread, "spread")


def gated(model: ir.Model, *passes: Pass, feeds: list[Feed] | None = None) -> ContractGate:
    gate = ContractGate(FEEDS if feeds is None else feeds)
    Pipeline(passes, (gate,)).run(model)
    return gate


def test_what_is_right_passes_with_its_distance_from_float64(parse: Parse) -> None:
    (evidence,) = gated(parse(NET), AddSpread()).evidence
    assert evidence.verdict.passed
    (added,) = evidence.added
    assert (added.name, added.samples) == ("spread", 2)
    assert 0 <= added.max_abs_diff < 1e-4 * added.max_abs_reference
    assert [each.name for each in evidence.outputs] == ["y"]
    assert evidence.to_json()["added"][0]["name"] == "spread"


def test_what_cancels_in_float32_is_refused(parse: Parse) -> None:
    with pytest.raises(NotEquivalentError, match=r"'spread': max \|difference\| from the float64"):
        gated(parse(NET), AddSpread(shift=30000))


def test_errors_of_the_model_itself_play_no_role(parse: Parse) -> None:
    # The output of this model is all rounding; what is added is computed from it exactly.
    model = parse("""g (float[N,4] x) => (float[N,4] y) <float[1] big = {1e8}>
        { a = Add(x, big)  y = Sub(a, big) }""")
    (evidence,) = gated(model, *parse_passes("inject-loss{loss=mse}")).evidence
    assert evidence.verdict.passed
    assert [each.name for each in evidence.added] == ["loss_mse", "loss"]


def test_what_has_no_float64_reference_says_so(parse: Parse, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from onnxfold.passes.loss import loss\n"
        "@loss('noisy')\n"
        "def noisy(graph, predictions):\n"
        "    noise = graph.op('RandomUniformLike', predictions, seed=1.0)\n"
        "    return graph.reduce('ReduceMean', graph.op('Mul', predictions, noise))\n"
    )
    (evidence,) = gated(parse(NET), InjectLoss(loss=f"{path}:noisy")).evidence
    assert evidence.verdict.passed
    assert evidence.added == ()
    assert "not held against float64: it is random" in evidence.verdict.reasons[0]


def test_gradients_wait_for_the_pass_that_lowers_them(parse: Parse) -> None:
    passes = parse_passes("inject-loss{loss=mse},add-gradient,lower-gradient,add-optimizer")
    inject, gradient, lowered, optimizer = gated(parse(NET), *passes).evidence
    assert inject.samples == 3
    assert gradient.samples == 0
    assert "judged with the pass that lowers it" in gradient.verdict.reasons[0]
    assert lowered.verdict.passed
    assert {each.name for each in lowered.added} == {"grad_w", "grad_b"}
    assert {"new_state_w", "new_state_b"} <= {each.name for each in optimizer.added}


def test_taking_losses_out_is_held_to_what_is_left(parse: Parse) -> None:
    model = parse(NET)
    for each in parse_passes("inject-loss{loss=mse},add-gradient,lower-gradient,add-optimizer"):
        each.run(model)
    labels = np.zeros((2, 3), np.float32)
    feeds = [feed | {"labels": labels} for feed in FEEDS]
    before = model.clone()
    (evidence,) = gated(model, *parse_passes("strip-loss"), feeds=feeds).evidence
    assert evidence.verdict.passed
    assert [each.name for each in evidence.outputs] == ["y"]
    compared = compare_models(before, model, feeds, Contract.EXACT)
    assert compared.verdict.passed
    assert [each.name for each in compared.outputs] == ["y"]


def test_a_changed_weight_is_seen_when_a_loss_is_taken_out(parse: Parse) -> None:
    model = parse(NET)
    for each in parse_passes("inject-loss{loss=mse}"):
        each.run(model)
    before = model.clone()
    for each in parse_passes("strip-loss"):
        each.run(model)
    bias = model.graph.initializers["b"]
    bias.const_value = ir.tensor(np.zeros(3, np.float32), name="b")
    feeds = [feed | {"labels": np.zeros((2, 3), np.float32)} for feed in FEEDS]
    assert not compare_models(before, model, feeds, Contract.EXACT).verdict.passed


def test_made_up_classes_are_classes(parse: Parse) -> None:
    model = parse(NET)
    parse_passes(f"inject-loss{{loss={CE}}}")[0].run(model)
    x = np.zeros((500, 4), np.float32)
    full = complete_feed({"x": x}, {}, Session(model).inputs, MadeUpLabels(model))
    assert full["labels"].shape == (500,)
    assert set(full["labels"].tolist()) == {0, 1, 2}


def test_made_up_labels_are_as_long_as_the_tensor_is(parse: Parse) -> None:
    # Nothing declares how long y is.
    model = parse("""g (float[N] x) => (float[M,2] y) <int64[2] s = {-1,2}>
        { y = Reshape(x, s) }""")
    parse_passes(f"inject-loss{{loss={CE}}}")[0].run(model)
    feed = {"x": np.zeros(12, np.float32)}
    full = complete_feed(feed, {}, Session(model).inputs, MadeUpLabels(model))
    assert full["labels"].shape == (6,)


def test_labels_are_cast_where_that_loses_nothing(parse: Parse) -> None:
    model = parse(NET)
    parse_passes(f"inject-loss{{loss={CE}}}")[0].run(model)
    inputs = Session(model).inputs
    feed = {"x": np.zeros((2, 4), np.float32)}
    narrow = complete_feed(feed, {"labels": np.array([0, 2], np.uint8)}, inputs)
    assert narrow["labels"].dtype == np.int64
    real = complete_feed(feed, {"labels": np.array([0.5, 2])}, inputs)
    assert real["labels"].dtype == np.float64, "the session says what is wrong"
