"""The default budget: stricter where all outputs are pictures."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx.parser import parse_model

from onnxfold.runtime.compiler.options import CompileOptions
from onnxfold.runtime.compiler.suited import IMAGE_SQNR_DB, suited_budget
from onnxfold.runtime.verify.budget import Budget

HEAD = '<ir_version: 10, opset_import: ["" : 21]> g '


def _model(inputs: str, outputs: str, body: str) -> ir.Model:
    return ir.from_proto(parse_model(f"{HEAD}({inputs}) => ({outputs}) {{ {body} }}"))


@pytest.mark.parametrize(
    ("inputs", "outputs", "body", "expected"),
    [
        ("float[N,3,H,W] x", "float[N,3,H,W] y", "y = Relu(x)", IMAGE_SQNR_DB),
        ("float[1,4,32,32] x", "float[1,1,32,32] y", "y = Relu(x)", IMAGE_SQNR_DB),
        ("float[N,3,H,W] x", "float[N,3,H,W] y", "y = Sigmoid(x)", 30.0),
        ("float[N,3,H,W] x", "float[N,21,H,W] y", "y = Relu(x)", 30.0),
        ("float[N,3,H,W] x", "float[N,3] y", "y = Relu(x)", 30.0),
        ("float[N,3,1,1] x", "float[N,3,1,1] y", "y = Relu(x)", 30.0),
        ("float[N,3] x", "float[N,3,H,W] y", "y = Relu(x)", 30.0),
        ("float[N,3,H,W] x", "float[N,3,H,W] y, float[N,9] z", "y = Relu(x) z = Neg(x)", 30.0),
    ],
    ids=["colours", "grey", "shares", "classes", "flat", "pixel", "made of numbers", "mixed"],
)
def test_pictures_take_less_noise(inputs: str, outputs: str, body: str, expected: float) -> None:
    assert suited_budget(Budget(), _model(inputs, outputs, body)).sqnr_db == expected


def test_limits_of_the_users_own_stay() -> None:
    model = _model("float[N,3,H,W] x", "float[N,3,H,W] y", "y = Relu(x)")
    named = Budget.from_text("sqnr=20")
    assert suited_budget(named, model) is named
    assert suited_budget(Budget.from_text("0.05"), model).sqnr_db == IMAGE_SQNR_DB


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"preset": "best"}, True),
        ({"weights": "s4"}, True),
        ({"preset": "fast"}, False),
    ],
)
def test_the_dearest_rung_is_for_few_bits_and_the_best(
    options: dict[str, str], expected: bool
) -> None:
    assert ("finetune" in CompileOptions.of(options).ladder.rungs) is expected


def test_cheap_rungs_only() -> None:
    assert CompileOptions.of({}).ladder.only_cheap.rungs == (
        *("correct-bias", "weight-ranges", "align-concat", "equalize", "smooth-quant"),
    )
    assert CompileOptions.of({"preset": "fast"}).ladder.only_cheap.rungs == ()
