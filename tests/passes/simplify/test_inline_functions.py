"""Local functions put where they are called: what moves, what stays, and that no number changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

_MODEL = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'
_FUNCTION = '<opset_import: ["" : 21, "local" : 1], domain: "local">'


def _census(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_parameters_become_known(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(
        f"""{_MODEL} g (float[2,3] x) => (float[3,2] y) <float s = {{0.5}}, uint8 z = {{3}}>
        {{
          t = local.fake <order: ints = [1, 0]> (x, s, z)
          y = Relu (t)
        }}
        {_FUNCTION} fake <order> (a, scale, zero) => (b)
        {{
          q = QuantizeLinear (a, scale, zero)
          r = DequantizeLinear (q, scale, zero)
          b = Transpose <perm: ints = @order> (r)
        }}"""
    )
    result = apply_pass("inline-functions", model)
    assert_text(
        model,
        """g (float[2,3] x) => (float[3,2] y) <float s = {0.5}, uint8 z = {3}>
        {
          t_q = QuantizeLinear (x, s, z)
          t_r = DequantizeLinear (t_q, s, z)
          t = Transpose <perm: ints = [1, 0]> (t_r)
          y = Relu (t)
        }""",
    )
    assert result.rules == {"inline-function": 1, "remove-function": 1}
    assert not model.functions


def test_calls_within_functions_bodies_and_each_other_are_inlined(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text = f"""{_MODEL} g (float[2] x, bool k) => (float[2] y)
    {{
      y = If (k) <
        then_branch = t () => (float[2] ty) {{ ty = local.twice (x) }},
        else_branch = e () => (float[2] ey) {{ ey = local.once (x) }}
      >
    }}
    {_FUNCTION} twice (a) => (b) {{ t = local.once (a) b = local.once (t) }}
    {_FUNCTION} once (a) => (b)
    {{
      s = Constant <value = float {{0.3}}> ()
      q = QuantizeLinear (a, s)
      r = DequantizeLinear (q, s)
      b = Sqrt (r)
    }}"""
    model = parse(text)
    result = apply_pass("inline-functions", model)
    assert result.rules["inline-function"] == 4
    assert not model.functions
    kinds = [node.op_type for node in model.graph.all_nodes()]
    assert kinds.count("Sqrt") == 3
    names = [output.name for node in model.graph.all_nodes() for output in node.outputs]
    assert len(names) == len(set(names))
    for choice in (True, False):
        feed = {"x": np.array([3.0, 7.5], np.float32), "k": np.array(choice)}
        np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(parse(text), feed)["y"])


def test_a_function_called_between_codes_is_inlined(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        f"""{_MODEL} g (uint8[2] q, float[2] f) => (float[2] y, float[2] v) <float s = {{0.5}}>
        {{ x = DequantizeLinear (q, s) y = local.act (x) v = local.other (f) }}
        {_FUNCTION} act (a) => (b) {{ b = Relu (a) }}
        {_FUNCTION} other (a) => (b) {{ b = Neg (a) }}"""
    )
    apply_pass("inline-functions", model)
    assert _census(model) == ["DequantizeLinear", "Relu", "other"]
    assert [function.name for function in model.functions.values()] == ["other"]
    apply_pass("inline-functions{which=all}", model)
    assert _census(model) == ["DequantizeLinear", "Relu", "Neg"]


def test_defaults_and_absent_parameters(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text = f"""{_MODEL} g (float[4] x) => (float[4] y)
    {{ t = local.act (x) y = local.clip (t) }}
    {_FUNCTION} act <alpha: float = 0.5> (a) => (b) {{ b = LeakyRelu <alpha: float = @alpha> (a) }}
    {_FUNCTION} clip (a, low) => (b) {{ b = Clip (a, low) }}"""
    model = parse(text)
    apply_pass("inline-functions{which=all}", model)
    assert _census(model) == ["LeakyRelu", "Clip"]
    assert model.graph[0].attributes.get_float("alpha") == 0.5
    assert not model.graph[1].inputs[1:] or model.graph[1].inputs[1] is None
    feed = {"x": np.array([-2.0, 0.0, 1.0, -8.0], np.float32)}
    np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(parse(text), feed)["y"])


STAYING = {
    "another opset": (
        '<opset_import: ["" : 18], domain: "local">',
        "{ b = Relu (a) }",
        "of opset 18, the caller's of 21",
    ),
    "branches in the body": (
        _FUNCTION,
        "{ t = Constant <value = bool {1}> () b = If (t) <"
        "then_branch = u () => (v) { v = Relu (a) }, else_branch = w () => (x) { x = Neg (a) }> }",
        "branches or loops",
    ),
    "an argument returned": (_FUNCTION, "{ }", "as it is"),
}


@pytest.mark.parametrize("case", STAYING)
def test_what_is_not_the_same_there_stays(
    case: str, parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    header, body, reason = STAYING[case]
    result_name = "a" if case == "an argument returned" else "b"
    model = parse(
        f"{_MODEL} g (float[2] x) => (float[2] y) {{ y = local.f (x) }} "
        f"{header} f (a) => ({result_name}) {body}"
    )
    result = apply_pass("inline-functions{which=all}", model)
    assert not result.modified
    assert _census(model) == ["f"]
    assert reason in result.remarks[0].reason


def test_operators_with_kernels_stay(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
        "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu (x) } "
        '<opset_import: ["" : 21], domain: "com.microsoft"> Gelu (a) => (b) { b = Gelu (a) }'
    )
    assert not apply_pass("inline-functions{which=all}", model).modified
