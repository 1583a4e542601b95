from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract, Pass, PassResult
from onnxfold.passes.listener import RewriteListener, Step
from onnxfold.passes.pipeline import BaseInstrument, Pipeline
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes

Parse = Callable[..., ir.Model]


@dataclass(frozen=True)
class Turn(Pass):
    """Replace one operator by another, and say so where there is none."""

    name: ClassVar[str] = "turn"
    contract: ClassVar[Contract] = Contract.EXACT
    runs: ClassVar[list[str]] = []
    before: str
    after: str

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        self.runs.append(self.before)
        found = [node for node in all_nodes(model) if node.op_type == self.before]
        for node in found:
            with rewriter.step("turn-node", node):
                new = rewriter.insert(node, self.after, [node.inputs[0]], name="n")
                rewriter.replace_node(node, [new])
        if not found:
            rewriter.remark(next(all_nodes(model)), f"no {self.before}")


class Watch(BaseInstrument, RewriteListener):
    """Counts the passes it is told of, and refuses the first ``refused`` steps."""

    def __init__(self, refused: int = 0) -> None:
        self.results: list[PassResult] = []
        self._refused = refused

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        self.results.append(result)

    def listeners(self, pass_: Pass) -> Sequence[RewriteListener]:
        return (self,)

    def permits(self, pass_name: str, step: Step) -> bool:
        self._refused -= 1
        return self._refused < 0


@pytest.fixture(autouse=True)
def no_runs() -> None:
    Turn.runs.clear()


@pytest.fixture
def model(parse: Parse) -> ir.Model:
    return parse("g (float[2] x) => (float[2] y) { a = Floor(x) y = Abs(a) }")


UP, DOWN = Turn("Floor", "Ceil"), Turn("Ceil", "Floor")
IDLE, OTHER = Turn("Sin", "Cos"), Turn("Cos", "Sin")


def test_what_changed_nothing_runs_again_only_after_a_change(model: ir.Model) -> None:
    watch = Watch()
    passes = (IDLE, OTHER, IDLE, Turn("Sin", "Cos"), UP, IDLE, IDLE)
    result = Pipeline(passes, (watch,)).run(model)
    assert Turn.runs == ["Sin", "Cos", "Floor", "Sin"]
    # Whoever watches sees no difference.
    assert [pass_ for pass_, _ in result.results] == list(passes)
    assert [each for _, each in result.results] == watch.results
    reasons = [[remark.reason for remark in each.remarks] for each in watch.results]
    assert reasons == [["no Sin"], ["no Cos"], ["no Sin"], ["no Sin"], [], ["no Sin"], ["no Sin"]]


def test_what_changed_something_runs_again(model: ir.Model) -> None:
    result = Pipeline((UP, DOWN, UP)).run(model)
    assert Turn.runs == ["Floor", "Ceil", "Floor"]
    assert result.model.graph[0].op_type == "Ceil"


def test_what_was_refused_runs_again(model: ir.Model) -> None:
    result = Pipeline((UP, UP), (Watch(refused=1),)).run(model)
    assert [(each.modified, each.refused) for _, each in result.results] == [
        (False, True),
        (True, False),
    ]
    assert result.model.graph[0].op_type == "Ceil"


def test_results_are_not_kept_between_runs(model: ir.Model) -> None:
    pipeline = Pipeline((IDLE,))
    pipeline.run(model)
    pipeline.run(model)
    assert Turn.runs == ["Sin", "Sin"]
