"""Lookups in quantized tables: rows are gathered as codes and only they are dequantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, Session

Target = Literal["ort", "standard", "integer", "qdq"]
TARGETS: tuple[Target, ...] = ("ort", "standard", "integer", "qdq")

# Table and its parameters, then the DequantizeLinear and the Gather.
TABLES: dict[str, tuple[str, str]] = {
    "per tensor": ("float s = {0.37}, uint8 z = {7}", "t = DequantizeLinear (w, s, z)"),
    "per row": (
        "float[4] s = {0.37, 0.01, 2.5, 0.11}, uint8[4] z = {7, 0, 200, 128}",
        "t = DequantizeLinear <axis = 0> (w, s, z)",
    ),
    "per column": (
        "float[3] s = {0.37, 0.01, 2.5}, uint8[3] z = {7, 0, 200}",
        "t = DequantizeLinear <axis = -1> (w, s, z)",
    ),
    "symmetric": (
        "float[3] s = {0.37, 0.01, 2.5}",
        "t = DequantizeLinear <axis = 1> (w, s)",
    ),
}


def _model(table: str, axis: int, parse: Callable[..., ir.Model]) -> ir.Model:
    parameters, dequantize = TABLES[table]
    shape = "2,2,3" if axis == 0 else "4,2,2"
    return parse(
        f"""
        agraph (int64[2,2] i) => (float[{shape}] y)
        <uint8[4,3] w = {{1, 2, 255, 0, 17, 3, 200, 100, 50, 128, 127, 7}}, {parameters}>
        {{ {dequantize} g = Gather <axis = {axis}> (t, i) y = Erf (g) }}
        """
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("table", TABLES)
def test_only_the_rows_are_dequantized(
    table: str,
    axis: int,
    target: Target,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    before, model = _model(table, axis, parse), _model(table, axis, parse)
    apply_pass(FoldQdq(target), model)
    feed = {"i": np.array([[2, 0], [-1, 1]])}
    wanted = evaluate(before, feed)["y"]
    np.testing.assert_array_equal(evaluate(model, feed)["y"], wanted)
    np.testing.assert_array_equal(Session(model, DEPLOYMENT).run(feed)["y"], wanted)
    first = next(iter(model.graph))
    assert first.op_type == ("DequantizeLinear" if target == "qdq" else "Gather")


def test_scales_of_rows_are_looked_up_too(
    parse: Callable[..., ir.Model],
    assert_text: Callable[[ir.Model, str], None],
    apply_pass: Callable[..., PassResult],
) -> None:
    """As int8 again where that needs no zero point."""
    model = parse(
        """
        agraph (int64[2] i) => (float[2,2] y, float[2,2] v)
        <int8[3,2] w = {1, 2, 3, -4, -5, 6}, float[3] s = {0.5, 0.25, 2.0},
         uint8[3,2] x = {1, 2, 3, 4, 5, 6}, uint8[3] z = {1, 0, 2}>
        {
          t = DequantizeLinear <axis = 0> (w, s)
          y = Gather (t, i)
          u = DequantizeLinear <axis = 0> (x, s, z)
          v = Gather (u, i)
        }
        """
    )
    result = apply_pass(FoldQdq("ort"), model)
    assert_text(
        model,
        """
        agraph (int64[2] i) => (float[2,2] y, float[2,2] v)
        <int8[3,2] y_codes = {1, 2, 3, -4, -5, 6}, float[3,1] y_parameter = {0.5, 0.25, 2.0},
         uint8[3,2] v_codes = {1, 2, 3, 4, 5, 6}, float[3,1] v_parameter = {1.0, 0.0, 2.0}>
        {
          y_gather = Gather <axis: int = 0> (y_codes, i)
          y_cast = Cast <to: int = 1> (y_gather)
          y_gather_1 = Gather <axis: int = 0> (y_parameter, i)
          y = Mul (y_cast, y_gather_1)
          v_gather = Gather <axis: int = 0> (v_codes, i)
          v_cast = Cast <to: int = 1> (v_gather)
          v_gather_1 = Gather <axis: int = 0> (v_parameter, i)
          v_sub = Sub (v_cast, v_gather_1)
          v_gather_2 = Gather <axis: int = 0> (y_parameter, i)
          v = Mul (v_sub, v_gather_2)
        }
        """,
    )
    assert {name: n for name, n in result.rules.items() if name.startswith("fold-")} == {
        "fold-lookup": 2
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "table",
    ["t = Identity (w)", "p = QuantizeLinear (w, o, z) t = DequantizeLinear (p, o, z)"],
)
@pytest.mark.parametrize(
    "select",
    ["Gather (t, i)", "Slice (t, a, i)", "GatherElements (t, e)", "GatherND (t, n)"],
)
def test_a_table_is_rounded_ahead_of_time(
    select: str,
    table: str,
    target: Target,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    numbers = ", ".join(f"{0.55 * step - 3:.3f}" for step in range(12))
    text = f"""
    agraph (int64[1] i) => (uint8 y)
    <float[4,3] w = {{{numbers}}}, float o = {{0.031}}, float s = {{0.04}}, uint8 z = {{99}},
     int64[1] a = {{0}}, int64[1,3] e = {{0, 3, 2}}, int64[2,1] n = {{3, 1}}>
    {{ {table} g = {select} y = QuantizeLinear (g, s, z) }}
    """
    before, model = parse(text), parse(text)
    for each in (before, model):
        each.graph.outputs[0].shape = ir.Shape([None] * 2)
    result = apply_pass(FoldQdq(target), model)
    assert result.rules["fold-move"] == 1
    feed = {"i": np.array([2])}
    wanted = evaluate(before, feed)["y"]
    np.testing.assert_array_equal(evaluate(model, feed)["y"], wanted)
    np.testing.assert_array_equal(Session(model, DEPLOYMENT).run(feed)["y"], wanted)
    if target != "qdq":
        assert len(model.graph) == 1
    tables = [value.const_value for value in model.graph.initializers.values()]
    assert {tensor.dtype for tensor in tables if tensor is not None and tensor.size == 12} == {
        ir.DataType.UINT8
    }
