"""What guards wrote is read back: folding a folded model changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from fixtures.fake_quant.contract import structure
from onnxfold.passes.fold.fold_qdq import FoldQdq

_TARGETS: Any = ("ort", "standard", "qdq", "integer")

_GUARDED = {
    "two roundings": """
        agraph (float[8,4] f) => (float[8,4] y)
        <float s = {0.05}, uint8 z = {120}, float t = {0.07}, uint8 u = {3}>
        {
          q = QuantizeLinear (f, s, z)
          x = DequantizeLinear (q, s, z)
          p = QuantizeLinear (x, t, u)
          y = DequantizeLinear (p, t, u)
        }
        """,
    "a scale of one": """
        agraph (float[8,4] f) => (float[8,4] y)
        <float s = {1.0}, uint8 z = {120}, float t = {0.07}, uint8 u = {3}>
        {
          q = QuantizeLinear (f, s, z)
          x = DequantizeLinear (q, s, z)
          p = QuantizeLinear (x, t, u)
          y = DequantizeLinear (p, t, u)
        }
        """,
    "one scale a channel, and another reader": """
        agraph (uint8[2,3,4] q) => (uint8[2,3,4] y, float[2,3,4] h)
        <float[3] s = {0.05, 0.1, 0.3}, uint8[3] z = {1, 2, 3}, float t = {0.07}, uint8 u = {3},
         float two = {2.0}>
        {
          x = DequantizeLinear <axis = 1> (q, s, z)
          a = Sigmoid (x)
          y = QuantizeLinear (a, t, u)
          h = Div (x, two)
        }
        """,
    "int8 codes behind a movement": """
        agraph (float[8,4] f) => (float[4,8] y)
        <float s = {0.05}, int8 z = {3}>
        {
          q = QuantizeLinear (f, s, z)
          x = DequantizeLinear (q, s, z)
          m = Transpose <perm = [1, 0]> (x)
          y = Erf (m)
        }
        """,
    "movements one behind the other": """
        agraph (float[8,4] f) => (float[4,8] y)
        <float s = {0.05}, int8 z = {3}, int64[1] from = {0}, int64[1] to = {9}>
        {
          q = QuantizeLinear (f, s, z)
          x = DequantizeLinear (q, s, z)
          m = Transpose <perm = [1, 0]> (x)
          n = Slice (m, from, to)
          y = Erf (n)
        }
        """,
    "limits on limits": """
        agraph (uint8[8,4] q) => (uint8[8,4] p)
        <float s = {0.0188}, uint8 z = {139}, float half = {0.5}>
        {
          x = DequantizeLinear (q, s, z)
          c = Clip (x, , half)
          r = Relu (c)
          p = QuantizeLinear (r, s, z)
        }
        """,
    "what nothing reads asks for another type": """
        agraph (uint8[8,4] q) => (uint8[8,4] y)
        <float s = {0.05}, uint8 z = {120}, float t = {0.07}, uint8 u = {3}>
        {
          x = DequantizeLinear (q, s, z)
          a = Add (x, x)
          y = QuantizeLinear (a, t, u)
          o = QuantizeLinear (a, s, z)
        }
        """,
    "what nothing reads, twice from one value": """
        agraph (uint8[4,4] q) => (uint8[4,4] y)
        <float s = {0.05}, uint8 z = {120}>
        {
          x = DequantizeLinear (q, s, z)
          t = Transpose <perm = [1, 0]> (x)
          m = MatMul (t, x)
          v = DequantizeLinear (q, s, z)
          y = QuantizeLinear (v, s, z)
        }
        """,
    "a float op that a table replaces": """
        agraph (uint8[8,4] q) => (uint8[8,4] y, float[8,4] e)
        <float s = {0.05}, uint8 z = {120}, float t = {0.07}, uint8 u = {3}, float three = {3.0}>
        {
          x = DequantizeLinear (q, s, z)
          m = Mul (x, three)
          e = Erf (m)
          g = Max (x, three)
          y = QuantizeLinear (g, t, u)
        }
        """,
}


def _read(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in node.input}


@pytest.mark.parametrize("case", _GUARDED)
@pytest.mark.parametrize("target", _TARGETS)
def test_a_second_fold_changes_nothing(
    case: str, target: Any, parse: Callable[..., ir.Model]
) -> None:
    once = FoldQdq(target).run(parse(_GUARDED[case])).model
    first = ir.to_proto(once).graph
    twice = ir.to_proto(FoldQdq(target).run(once).model).graph
    assert structure(twice) == structure(first)
    assert {each.name for each in twice.initializer} <= _read(twice)
    assert [each.name for each in twice.output] == [each.name for each in first.output]


@pytest.mark.parametrize("factor", ["float[1] k = {3.0}", "float[1,4] k = {1.0, 2.0, 3.0, 4.0}"])
def test_what_no_guard_wrote_is_left_alone(
    factor: str, parse: Callable[..., ir.Model], assert_text: Callable[[ir.Model, str], None]
) -> None:
    text = f"""
        agraph (uint8[8,4] q) => (float[8,4] y)
        <float one = {{1.0}}, uint8 z = {{120}}, {factor}>
        {{
          x = DequantizeLinear (q, one, z)
          y = Mul (x, k)
        }}
        """
    model = parse(text)
    FoldQdq("qdq").run(model)
    assert_text(model, text)
