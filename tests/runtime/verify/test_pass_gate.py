from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, NotEquivalentError, PassError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.session import Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.pass_gate import ContractGate
from onnxfold.runtime.verify.region_gate import RegionEvidence

RNG = np.random.default_rng(11)
WEIGHTS: Array = RNG.normal(size=(4, 3)).astype(np.float32)
FEEDS: list[Feed] = [{"x": RNG.normal(size=(2, 4)).astype(np.float32)} for _ in range(3)]


def model() -> ir.Model:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,4] x) => (float[N,3] y) { z = MatMul(x, w) y = Softmax(z) }""")
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    return ir.from_proto(proto)


@dataclass(frozen=True)
class Rescale(Pass):
    """Multiplies the weights by ``factor``, whatever it has promised."""

    name: ClassVar[str] = "rescale"
    factor: float = 1.0

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        node = next(iter(model.graph))
        value = node.inputs[1]
        assert value is not None
        assert value.const_value is not None
        scaled: Array = value.const_value.numpy() * np.float32(self.factor)
        with rewriter.step("rescale", node):
            rewriter.set_input(node, 1, rewriter.constant(node, scaled, name="w2"))


class ExactRescale(Rescale):
    contract = Contract.EXACT


class ReassociatedRescale(Rescale):
    contract = Contract.REASSOCIATED


class IntegerRescale(Rescale):
    contract = Contract.INTEGER


class ApproximateRescale(Rescale):
    contract = Contract.APPROXIMATE


@dataclass(frozen=True)
class Idle(Pass):
    name: ClassVar[str] = "idle"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        return


@dataclass(frozen=True)
class Break(Pass):
    """Leaves an operator that does not exist."""

    name: ClassVar[str] = "break"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        node = next(iter(model.graph))
        with rewriter.step("break", node):
            new = rewriter.insert(node, "NoSuchOp", [node.inputs[0]], name="new")
            rewriter.replace_node(node, [new])


@dataclass(frozen=True)
class AddOutput(Pass):
    """Adds an input and an output, as a loss does."""

    name: ClassVar[str] = "add-output"
    contract: ClassVar[Contract] = Contract.ADDITIVE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        node = next(iter(model.graph))
        shape = ir.Shape(["N", 4])
        labels = ir.Value(name="labels", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        with rewriter.step("add", node):
            loss = rewriter.insert(node, "Sub", [node.inputs[0], labels], name="loss")
        model.graph.inputs.append(labels)
        loss.type, loss.shape = labels.type, shape
        model.graph.outputs.append(loss)


def run(*passes: Pass) -> ContractGate:
    gate = ContractGate(FEEDS)
    Pipeline(passes, (gate,)).run(model())
    return gate


def test_kept_promises_leave_evidence() -> None:
    gate = run(ExactRescale(1.0), Idle(), ReassociatedRescale(1 + 2e-7), AddOutput())

    assert [(e.pass_name, e.contract, e.samples) for e in gate.evidence] == [
        ("rescale", Contract.EXACT, 3),
        ("rescale", Contract.REASSOCIATED, 3),
        ("add-output", Contract.ADDITIVE, 3),
    ]
    assert all(each.verdict.passed for each in gate.evidence)
    assert [m.name for m in gate.evidence[1].outputs] == ["y", "y (before softmax)"]
    report = json.loads(json.dumps(gate.evidence[0].to_json(), allow_nan=False))
    assert report["pass"] == "rescale"
    assert report["verdict"]["status"] == "passed"


@pytest.mark.parametrize(
    ("broken", "contract"),
    [
        (ExactRescale(1 + 2e-7), "exact"),
        (ReassociatedRescale(1.001), "reassociated"),
        (IntegerRescale(1.5), "integer"),
        (ApproximateRescale(3.0), "approximate"),
    ],
)
def test_broken_promise_is_named(broken: Pass, contract: str) -> None:
    gate = ContractGate(FEEDS)
    pattern = rf"^pass rescale broke its contract \({contract}\): output 'y.* wanted "
    with pytest.raises(NotEquivalentError, match=pattern) as caught:
        Pipeline((ExactRescale(1.0), broken), (gate,)).run(model())
    assert "\n" not in str(caught.value)
    assert [each.verdict.passed for each in gate.evidence] == [True, False]


def test_too_few_samples_do_not_stop_a_pipeline() -> None:
    gate = run(ApproximateRescale(1.3))
    assert [each.verdict.status for each in gate.evidence] == ["inconclusive"]


def test_model_that_no_longer_runs_is_laid_at_the_pass() -> None:
    with pytest.raises(ExecutionError, match=r"^after pass break: onnxruntime refuses .*NoSuchOp"):
        run(Break())


def test_outputs_of_one_pass_are_the_reference_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    original: Callable[[Session, Feed], dict[str, Any]] = Session.run

    def counting(self: Session, feed: Feed) -> dict[str, Any]:
        calls.append(1)
        return original(self, feed)

    monkeypatch.setattr(Session, "run", counting)
    run(ExactRescale(1.0), ExactRescale(1.0), ExactRescale(1.0))
    assert len(calls) == 4 * len(FEEDS)

    calls.clear()
    gate = ContractGate(FEEDS, cache_bytes=0)
    Pipeline((ExactRescale(1.0), ExactRescale(1.0)), (gate,)).run(model())
    assert len(calls) == 4 * len(FEEDS)


class Crash(Rescale):
    """Changes the model, then fails."""

    contract = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        super().apply(model, rewriter)
        raise ValueError("no more")


def test_a_failed_pass_is_forgotten() -> None:
    gate, changed = ContractGate(FEEDS), model()
    with pytest.raises(PassError, match="no more"):
        Pipeline((Crash(2.0),), (gate,)).run(changed)
    Pipeline((ExactRescale(1.0),), (gate,)).run(changed)
    assert [each.verdict.passed for each in gate.evidence] == [True]


def test_integer_passes_are_checked_region_by_region_where_asked() -> None:
    seen: list[tuple[float, float]] = []

    def weight(model: ir.Model) -> float:
        tensor = model.graph[0].inputs[1]
        assert tensor is not None
        assert tensor.const_value is not None
        return float(tensor.const_value.numpy()[0, 0])

    def check(before: ir.Model, after: ir.Model, feeds: object) -> RegionEvidence:
        assert feeds is FEEDS
        seen.append((weight(before), weight(after)))
        reasons = ("tensor 'z': 2 steps",) if len(seen) > 1 else ()
        return RegionEvidence(1, 1, 1, 9, len(reasons), 0, 2.0, "z", 0.1, reasons, 0.0)

    gate = ContractGate(FEEDS, region_check=check)
    passes = (ExactRescale(1.0), IntegerRescale(1.001), IntegerRescale(1.001))
    with pytest.raises(NotEquivalentError, match=r"\(integer\): tensor 'z': 2 steps"):
        Pipeline(passes, (gate,)).run(model())

    kept = [each.regions and each.regions.to_json()["mismatches"] for each in gate.evidence]
    assert kept == [None, 0, 1]
    first = float(WEIGHTS[0, 0])
    np.testing.assert_allclose(seen, [(first, first * 1.001), (first * 1.001, first * 1.001**2)])


@pytest.mark.parametrize(
    ("checked", "mismatches", "reasons", "holds"),
    [(5, 0, (), True), (4, 0, (), False), (5, 1, (), False), (5, 0, ("z is off",), False)],
)
def test_exact_regions_excuse_what_a_network_makes_of_ties(
    checked: int, mismatches: int, reasons: tuple[str, ...], holds: bool
) -> None:
    found = RegionEvidence(5, checked, 3, 100, mismatches, 2, 1.0, "", 0.0, reasons, 0.0)

    def check(before: ir.Model, after: ir.Model, feeds: object) -> RegionEvidence:
        return found

    gate = ContractGate(FEEDS, region_check=check)
    pipeline = Pipeline((IntegerRescale(1.5),), (gate,))
    if holds:
        pipeline.run(model())
        assert gate.evidence[0].verdict.passed
        return
    with pytest.raises(NotEquivalentError, match="broke its contract"):
        pipeline.run(model())
