"""Whose work each executed node does, by the names ONNX Runtime leaves, or leaves out."""

from __future__ import annotations

from collections.abc import Callable

import onnx.helper
import onnx_ir as ir

from onnxfold.runtime.attribution import coverage, unnamed


def test_expanded_operators_without_names_are_told_apart(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse("""
        g (float[4] x) => (float[4] y)
        {
            [first] a = HardSwish(x)
            [second] y = HardSwish(a)
        }
    """)
    executed = onnx.helper.make_graph(
        [
            onnx.helper.make_node("HardSigmoid", ["x"], ["x_gate"]),
            onnx.helper.make_node("Mul", ["x", "x_gate"], ["a"]),
            onnx.helper.make_node("HardSigmoid", ["a"], ["a_gate"]),
            onnx.helper.make_node("Mul", ["a", "a_gate"], ["y"], name="second"),
        ],
        "executed",
        [],
        [],
    )
    assert coverage(model, executed) == {
        unnamed("HardSigmoid", 0): ("first",),
        unnamed("Mul", 0): ("first",),
        unnamed("HardSigmoid", 1): ("second",),
        "second": ("second",),
    }
