"""A fold that is wrong is caught by the contract, at the tensor that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import NotEquivalentError
from onnxfold.passes.fold.fold_qdq import NO_COSTS, FoldQdq
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.verify.pass_gate import ContractGate
from onnxfold.runtime.verify.region_gate import check_integer_contract

Damage = Callable[[ir.Model], None]


@dataclass(frozen=True)
class WrongFold(FoldQdq):
    """The fold to integer kernels, and damage to what it wrote."""

    costs: str = NO_COSTS
    damage: Damage | None = None
    name: ClassVar[str] = "wrong-fold"
    contract: ClassVar[Contract] = Contract.INTEGER

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        super().apply(model, rewriter)
        if self.damage is not None:
            self.damage(model)


def _replace(op_type: str, index: int, change: Callable[[Any], Any]) -> Damage:
    """Change the constant that input ``index`` of the only ``op_type`` reads."""

    def damage(model: ir.Model) -> None:
        (node,) = [each for each in model.graph if each.op_type == op_type]
        array = constant_array(node.inputs[index])
        assert array is not None
        value = ir.Value(name=f"wrong_{index}", const_value=ir.tensor(change(array)))
        value.dtype = ir.DataType.from_numpy(array.dtype)
        model.graph.register_initializer(value)
        node.replace_input_with(index, value)

    return damage


WRONG: dict[str, Damage] = {
    "bias off by one code": _replace("QLinearConv", 8, lambda bias: bias + np.int32(1)),
    "weights shifted by one code": _replace("QLinearConv", 3, lambda w: (w + 1).astype(np.int8)),
    "channel scales swapped": _replace("QLinearConv", 4, lambda scale: np.roll(scale, 1)),
    "zero point off by one": _replace("QLinearConv", 7, lambda zero: (zero + 1).astype(np.uint8)),
    "padding with code 0": _replace("Pad", 2, lambda fill: np.zeros_like(fill)),
}


def _model(fake_quant: Callable[..., Any]) -> ir.Model:
    graph = fake_quant(7)
    x = graph.fake(graph.input((2, 3, 24, 24)), 0.03, 120)
    pads = graph.constant(np.array([0, 1, 1, 1, 0, 0, 2, 2], np.int64))
    padded = graph.fake(graph.op("Pad", x, pads), 0.03, 120)
    weights, scale = graph.weights((16, 4, 3, 3), 0)
    bias = graph.bias(16, scale * np.float32(0.03))
    # One unit of the bias is about 0.02 codes of the result.
    convolved = graph.quantize(graph.op("Conv", padded, weights, bias), 0.01, 117)
    graph.outputs.append(convolved)
    model = graph.model()
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None:
            producer = node.inputs[0].producer()
            if producer is not None and producer.op_type in ("Pad", "Conv"):
                node.outputs[0].name = "padded" if producer.op_type == "Pad" else "convolved"
    return model


def _gate(graph_feeds: list[dict[str, Any]]) -> ContractGate:
    return ContractGate(graph_feeds, region_check=check_integer_contract)


def _feeds(model: ir.Model) -> list[dict[str, Any]]:
    name = model.graph.inputs[0].name or ""
    numbers = np.random.default_rng(5)
    return [{name: numbers.standard_normal((2, 3, 24, 24)).astype(np.float32)} for _ in range(3)]


def test_the_fold_keeps_the_contract(fake_quant: Callable[..., Any]) -> None:
    model = _model(fake_quant)
    gate = _gate(_feeds(model))
    Pipeline((FoldQdq(),), (gate,)).run(model)
    (evidence,) = gate.evidence
    assert evidence.verdict.passed
    assert evidence.regions is not None
    assert evidence.regions.checked == evidence.regions.regions == 2
    assert evidence.regions.samples == 3
    assert evidence.regions.mismatches <= 1e-3 * evidence.regions.elements


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_fold_is_caught_and_its_tensor_named(
    case: str, fake_quant: Callable[..., Any]
) -> None:
    model = _model(fake_quant)
    tensor, op_type = ("padded", "Pad") if "padding" in case else ("convolved", "QLinearConv")
    message = rf"wrong-fold broke its contract \(integer\).*'{tensor}' \(now computed by {op_type}"
    with pytest.raises(NotEquivalentError, match=message):
        Pipeline((WrongFold(damage=WRONG[case]),), (_gate(_feeds(model)),)).run(model)
