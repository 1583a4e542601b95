"""Nothing that ONNX calls differentiable is forgotten, and the page says what is so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import onnx.defs
import onnx.parser
import pytest

from fixtures.gradients import FAMILIES
from fixtures.gradients.case import GradientCase, cases
from fixtures.gradients.coverage import coverage
from onnxfold.passes.grad.rules import load_rules
from onnxfold.passes.grad.vjp import FLAT, NO_GRADIENT

ROOT = Path(__file__).parents[3]

HELD_ELSEWHERE = {
    "CausalConvWithState": "test_core_rules",
    "Dropout": "test_core_rules",
    "GRU": "test_recurrent_gradients",
    "LSTM": "test_recurrent_gradients",
    "LinearAttention": "test_core_rules",
    "RNN": "test_recurrent_gradients",
    "SwiGLU": "test_core_rules",
    "TensorScatter": "test_core_rules",
}
"""Operators whose inputs are differentiated by other tests than the declared cases."""


def test_nothing_differentiable_is_unaccounted_for() -> None:
    assert [each.operator for each in coverage() if not each.how] == []


def test_an_operator_has_a_rule_or_is_flat_or_refused() -> None:
    rules = set(load_rules())
    assert not rules & FLAT
    assert not rules & set(NO_GRADIENT)
    assert not FLAT & set(NO_GRADIENT)


def test_every_differentiable_input_is_held_to_differences() -> None:
    held = {found for family in FAMILIES for case in cases(family) for found in _reached(case)}
    missing: list[str] = []
    for each in coverage():
        if each.operator in {*FLAT, *NO_GRADIENT, *HELD_ELSEWHERE} or not each.inputs:
            continue
        formal = [each.name for each in onnx.defs.get_schema(each.operator).inputs]
        missing += [
            f"{each.operator}.{name}"
            for name in each.inputs
            if (each.operator, formal.index(name)) not in held
        ]
    assert missing == []
    tests = Path(__file__).parent
    assert all((tests / f"{name}.py").exists() for name in HELD_ELSEWHERE.values())


def _reached(case: GradientCase) -> set[tuple[str, int]]:
    """The operators and places of inputs that a gradient is wanted of."""
    text = case.text
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["" : {case.opset}]>\n{text}'
    active = set(case.differentiated())
    found: set[tuple[str, int]] = set()
    for node in onnx.parser.parse_model(text).graph.node:
        places = [place for place, name in enumerate(node.input) if name in active]
        found.update((node.op_type, place) for place in places)
        if places and node.op_type not in FLAT:
            active.update(node.output)
    return found


def test_the_page_of_gradients_is_up_to_date() -> None:
    page = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")
    if f"onnx {'.'.join(onnx.__version__.split('.')[:2])} " not in page:
        pytest.skip("the page is about another version of onnx")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert page == generator.gradients_page()
