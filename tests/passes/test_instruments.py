from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract, Pass, PassResult
from onnxfold.passes.errors import (
    InconclusiveError,
    InvalidModelError,
    NotEquivalentError,
    PassError,
    VerificationError,
)
from onnxfold.passes.instruments import (
    CrashReproducer,
    DumpIfChanged,
    RewriteLimit,
    Statistics,
    TensorMap,
    Timing,
    VerifyEach,
    bisect_rewrites,
    first_bad,
)
from onnxfold.passes.pipeline import BaseInstrument, Pipeline
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.serialization import model_bytes
from onnxfold.passes.walk import all_nodes

Parse = Callable[..., ir.Model]
TextOf = Callable[[ir.Model], str]

CHAIN = """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}>
{ a = Floor(x) b = Mul(a, w) c = Floor(b) y = Floor(c) }"""


@dataclass(frozen=True)
class Turn(Pass):
    """Replace one operator by another."""

    name: ClassVar[str] = "turn"
    contract: ClassVar[Contract] = Contract.EXACT
    before: str = "Floor"
    after: str = "Ceil"

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        for node in [node for node in all_nodes(model) if node.op_type == self.before]:
            with rewriter.step("turn-node", node):
                new = rewriter.insert(node, self.after, [node.inputs[0]], name="n")
                rewriter.replace_node(node, [new])


@dataclass(frozen=True)
class Spoil(Pass):
    """Leave an invalid model, change the interface, or raise."""

    name: ClassVar[str] = "spoil"
    contract: ClassVar[Contract] = Contract.EXACT
    how: str = "attribute"

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        node = model.graph[0]
        with rewriter.step("spoil-node", node):
            if self.how == "attribute":
                rewriter.set_attribute(node, "nonsense", 1)
            elif self.how == "output":
                rewriter.set_attribute(node, "nonsense", None)
                model.graph.outputs.append(node.outputs[0])
                node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            else:
                raise RuntimeError("boom")


@dataclass(frozen=True)
class Append(Spoil):
    """Append an output, which an additive pass may."""

    name: ClassVar[str] = "append"
    contract: ClassVar[Contract] = Contract.ADDITIVE
    how: str = "output"


class Order(BaseInstrument):
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        self.log.append(f"{self.name} before {pass_.name}")

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        self.log.append(f"{self.name} after {pass_.name}")

    def pass_failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        self.log.append(f"{self.name} failed {pass_.name}: {error}")


def test_instruments_nest(parse: Parse) -> None:
    log: list[str] = []
    result = Pipeline((Turn(),), (Order("a", log), Order("b", log))).run(parse(CHAIN))
    assert log == ["a before turn", "b before turn", "b after turn", "a after turn"]
    assert result.modified
    assert [(pass_.name, each.modified) for pass_, each in result.results] == [("turn", True)]


def test_instruments_hear_of_failures(parse: Parse) -> None:
    log: list[str] = []
    with pytest.raises(PassError, match="pass spoil failed at spoil-node on Floor"):
        Pipeline((Turn("x"), Spoil("raise"), Turn()), (Order("a", log),)).run(parse(CHAIN))
    assert log[2:] == [
        "a before spoil",
        "a failed spoil: pass spoil failed at spoil-node on Floor 'a': RuntimeError: boom",
    ]


def test_the_same_pipeline_gives_the_same_bytes(parse: Parse) -> None:
    def run() -> bytes:
        return model_bytes(Pipeline((Turn(), Turn("Ceil", "Round"))).run(parse(CHAIN)).model)

    assert run() == run()


def test_verify_each_names_the_pass(parse: Parse) -> None:
    with pytest.raises(VerificationError, match="pass spoil left an invalid model: Floor") as found:
        Pipeline((Turn("x"), Spoil()), (VerifyEach(),)).run(parse(CHAIN))
    assert "> a" in found.value.detail


def test_verify_each_rejects_an_invalid_input(parse: Parse) -> None:
    with pytest.raises(InvalidModelError, match="model 'g' is invalid: Floop"):
        Pipeline((Turn(),), (VerifyEach(),)).run(parse(CHAIN.replace("Floor", "Floop")))


def test_verify_each_guards_the_interface(parse: Parse) -> None:
    with pytest.raises(VerificationError, match=r"pass spoil .* output 'a' was added"):
        Pipeline((Spoil("output"),), (VerifyEach(),)).run(parse(CHAIN))
    instrument = VerifyEach()
    Pipeline((Append(), Turn()), (instrument,)).run(parse(CHAIN))
    Pipeline((Turn(),), (instrument,)).run(parse(CHAIN))


def test_timing_and_statistics(parse: Parse) -> None:
    timing, statistics = Timing(), Statistics()
    Pipeline((Turn(), Turn("Ceil", "Abs")), (statistics, timing)).run(parse(CHAIN))
    assert [row.pass_name for row in timing.rows] == ["turn", "turn"]
    assert all(0 <= row.seconds < 10 and row.nodes == 4 for row in timing.rows)
    assert statistics.passes == {"turn": {"inserted": 6, "erased": 6, "replaced": 6}}
    assert [(row.pass_name, row.rule, row.count) for row in statistics.rows()] == [
        ("turn", "turn-node", 6)
    ]


def test_dumps_are_written_only_on_change(parse: Parse, tmp_path: Path) -> None:
    passes = (Turn("x"), Turn("Mul", "Add"), Turn("Floor", "Ceil"))
    # A one-input Add would be invalid: nothing verifies here, the dump must still be written.
    Pipeline(passes, (DumpIfChanged(tmp_path / "dump"),)).run(parse(CHAIN))
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names == ["02-turn.diff", "02-turn.onnx", "03-turn.diff", "03-turn.onnx"]
    diff = (tmp_path / "dump" / "02-turn.diff").read_text()
    assert "-   b = Mul (a, w)\n-   c = Floor (b)\n+   [n] n = Add (a)" in diff
    assert [node.op_type for node in onnx.load(tmp_path / "dump" / "03-turn.onnx").graph.node] == [
        "Ceil",
        "Add",
        "Ceil",
        "Ceil",
    ]


def test_a_crash_can_be_reproduced(parse: Parse, tmp_path: Path, text_of: TextOf) -> None:
    reproducer = CrashReproducer(tmp_path / "crash")
    model = parse(CHAIN)
    with pytest.raises(PassError):
        Pipeline((Turn(), Spoil("raise it")), (reproducer,)).run(model)
    assert reproducer.written
    text = (tmp_path / "crash" / "reproduce.txt").read_text()
    command = shlex.split(text.splitlines()[0])
    assert command[:3] == ["onnxfold", "opt", "before.onnx"]
    assert command[-2:] == ["--passes", 'spoil{how="raise it"}']
    assert "RuntimeError: boom" in text
    before = ir.load(tmp_path / "crash" / "before.onnx")
    after_turn = Pipeline((Turn(),)).run(parse(CHAIN)).model
    assert text_of(before) == text_of(after_turn)


def test_the_neighbourhood_is_in_the_reproducer(parse: Parse, tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        Pipeline((Spoil(),), (CrashReproducer(tmp_path), VerifyEach())).run(parse(CHAIN))
    assert "> a" in (tmp_path / "reproduce.txt").read_text()


def test_nothing_is_written_without_a_crash(parse: Parse, tmp_path: Path) -> None:
    reproducer = CrashReproducer(tmp_path / "crash")
    Pipeline((Turn(),), (reproducer,)).run(parse(CHAIN))
    with pytest.raises(InvalidModelError):
        Pipeline((Turn(),), (reproducer, VerifyEach())).run(parse(CHAIN.replace("Floor", "Floop")))
    assert not (tmp_path / "crash").exists()
    assert not reproducer.written


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4])
def test_a_limit_permits_the_first_rewrites(parse: Parse, limit: int) -> None:
    counter = RewriteLimit(limit)
    model = parse(CHAIN)
    Pipeline((Turn(), Turn("Mul", "Add")), (counter,)).run(model)
    ops = [node.op_type for node in model.graph]
    turned = [
        after != before
        for after, before in zip(ops, ["Floor", "Mul", "Floor", "Floor"], strict=True)
    ]
    assert sum(turned) == limit
    assert [str(rewrite) for rewrite in counter.rewrites] == [
        "turn/turn-node on Floor 'a'",
        "turn/turn-node on Floor 'c'",
        "turn/turn-node on Floor 'y'",
        "turn/turn-node on Mul 'b'",
    ][:limit]


@pytest.mark.parametrize("total", [1, 2, 3, 7, 64, 100])
def test_the_first_bad_rewrite_is_found(total: int) -> None:
    for guilty in range(1, total + 1):
        asked: list[int] = []

        def is_good(limit: int, guilty: int = guilty, asked: list[int] = asked) -> bool:
            asked.append(limit)
            return limit < guilty

        assert first_bad(is_good, total) == guilty
        assert len(asked) <= total.bit_length()


def test_bisection_names_the_guilty_rewrite(parse: Parse) -> None:
    model = parse(CHAIN)

    def third_is_floor(candidate: ir.Model) -> bool:
        return candidate.graph[2].op_type == "Floor"

    culprit = bisect_rewrites((Turn("Mul", "Sub"), Turn()), model, third_is_floor)
    assert culprit is not None
    assert (culprit.number, culprit.total) == (3, 4)
    assert str(culprit.rewrite) == "turn/turn-node on Floor 'c'"
    assert [node.op_type for node in model.graph] == ["Floor", "Mul", "Floor", "Floor"]


def test_a_failing_pipeline_is_bisected(parse: Parse) -> None:
    culprit = bisect_rewrites((Turn(), Spoil()), parse(CHAIN), lambda model: True, (VerifyEach(),))
    assert culprit is not None
    assert (culprit.number, culprit.rewrite.pass_name) == (4, "spoil")


def test_a_good_pipeline_has_no_culprit(parse: Parse) -> None:
    assert bisect_rewrites((Turn(),), parse(CHAIN), lambda model: True) is None
    with pytest.raises(InconclusiveError, match="before any rewrite"):
        bisect_rewrites((Turn(),), parse(CHAIN), lambda model: False)


def test_other_errors_are_not_bisected(parse: Parse) -> None:
    class Gate(BaseInstrument):
        def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
            raise NotEquivalentError("stop")

    with pytest.raises(NotEquivalentError):
        bisect_rewrites((Turn(),), parse(CHAIN), lambda model: True, (Gate(),))


@dataclass(frozen=True)
class SwapModel(Pass):
    """Put a renamed copy in place."""

    name: ClassVar[str] = "swap-model"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        copy = model.clone()
        copy.graph[0].outputs[0].name = "renamed"
        with rewriter.step("swap"):
            rewriter.replace_model(copy)


def test_tensors_are_followed_through_rewrites(parse: Parse) -> None:
    tensors = TensorMap()
    Pipeline((Turn(), Turn("Ceil", "Abs")), (tensors,)).run(parse(CHAIN))
    assert tensors.names() == {"x": "x", "w": "w", "a": "n_3", "b": "b", "c": "n_4", "y": "y"}
    assert tensors.current_name("a") == "n_3"
    assert tensors.current_name("none") is None


def test_tensors_are_followed_into_another_model(parse: Parse) -> None:
    tensors = TensorMap()
    Pipeline((Turn(), SwapModel(), Turn("Ceil", "Abs")), (tensors,)).run(parse(CHAIN))
    assert tensors.current_name("a") is None
    assert tensors.current_name("c") == "n_4"


def test_an_erased_tensor_is_gone(parse: Parse) -> None:
    @dataclass(frozen=True)
    class Bypass(Pass):
        name: ClassVar[str] = "bypass"
        contract: ClassVar[Contract] = Contract.EXACT

        def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
            first, second = model.graph[0], model.graph[1]
            with rewriter.step("skip", second):
                rewriter.set_input(second, 0, model.graph.inputs[0])
                rewriter.erase(first)

    tensors = TensorMap()
    Pipeline((Bypass(),), (tensors,)).run(parse(CHAIN))
    assert tensors.current_name("a") is None
    assert tensors.current_name("b") == "b"


def test_running_numbers_follow_the_graph(
    parse: Parse, evaluate: Callable[..., dict[str, Any]]
) -> None:
    model = parse(CHAIN)
    Pipeline((Turn(),), (VerifyEach(),)).run(model)
    outputs: dict[str, Any] = evaluate(model, {"x": np.array([0.5, 1.5], np.float32)})
    np.testing.assert_array_equal(outputs["y"], [1, 4])
