"""Builder: rungs that change the float model keep their contracts on all that judges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.compiler import builder as module
from onnxfold.runtime.compiler.builder import Builder
from onnxfold.runtime.compiler.choice import Choice
from onnxfold.runtime.compiler.options import CompileOptions
from onnxfold.runtime.compiler.rungs import Lesson
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.specs import input_specs


@dataclass(frozen=True)
class _Clip(Pass):
    """Changes the outputs of negative data only."""

    name: ClassVar[str] = "equalize"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        node = model.graph[0]
        data = node.inputs[0]
        assert data is not None
        with rewriter.step("clip", node):
            kept = rewriter.insert(node, "Relu", [data], name="kept", dtype=ir.DataType.FLOAT)
            rewriter.set_input(node, 0, kept)


def _clip(_: Lesson) -> Pass:
    return _Clip()


@pytest.mark.parametrize("judged_on_negatives", [False, True])
def test_a_rung_keeps_its_contract_where_it_is_proven(
    parse: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, judged_on_negatives: bool
) -> None:
    model = parse(
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }"
    )
    monkeypatch.setattr(module, "PREPARING", {"equalize": _clip})

    def feeds(sign: float) -> FeedSource:
        data = [{"x": np.full((1, 2), sign * value, np.float32)} for value in (1.0, 2.0, 3.0)]
        return open_feeds(data, input_specs(model))

    judging = feeds(-1.0) if judged_on_negatives else feeds(1.0)
    builder = Builder(model, feeds(1.0), CompileOptions(), Silent(), judging)
    choice = Choice("all", ("MatMul",), rungs=("equalize",))
    passes = [each.name for each in builder.passes(choice)]
    assert ("equalize" in passes) is not judged_on_negatives
    assert builder.is_idle(choice) is judged_on_negatives


@pytest.mark.parametrize("joined", [False, True])
def test_what_a_concat_joins_is_aligned_on_the_ladder(
    parse: Callable[..., ir.Model], joined: bool
) -> None:
    last = "j = Concat <axis = 1> (x, h)  y = Conv(j, u)" if joined else "y = Conv(h, w)"
    model = parse(
        f"""g (float[1,1,8] x) => (float[1,1,8] y)
        <float[1,1,1] w = {{9}}, float[1,2,1] u = {{3, 2}}>
        {{ h = Conv(x, w)  {last} }}"""
    )
    values = np.random.default_rng(0).uniform(-1, 1, (4, 1, 1, 8)).astype(np.float32)
    source = open_feeds([{"x": each} for each in values], input_specs(model))
    builder = Builder(model, source, CompileOptions(), Silent())
    choice = Choice("all", ("Conv",), rungs=("align-concat",))
    assert builder.is_idle(choice) is not joined
    assert ("align-concat" in [each.name for each in builder.passes(choice)]) is joined
