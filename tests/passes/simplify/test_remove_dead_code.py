from __future__ import annotations

from typing import Any

import numpy as np


def test_drops_what_no_output_needs(parse: Any, apply_pass: Any, assert_text: Any) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1, "ai.onnx.ml" : 3]>
        g (float[2] x, float[2] over) => (float[2] y)
        <float[2] over = {1, 2}, float[2] unused = {1, 2}, float[2] used = {1, 2}> {
          d = Relu(x)
          e = Abs(d)
          f = local.dead(e)
          y = Add(x, used)
        }
        <domain: "local", opset_import: ["" : 21]>
        dead (v) => (w) { w = Neg(v) }""")
    result = apply_pass("remove-dead-code", model)
    assert result.rules == {
        "drop-unused-node": 3,
        "drop-unused-function": 1,
        "drop-unused-initializer": 1,
        "drop-unused-opset": 2,
    }
    assert_text(
        model,
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2] x, float[2] over) => (float[2] y)
        <float[2] over = {1, 2}, float[2] used = {1, 2}> { y = Add(x, used) }""",
    )
    assert not apply_pass("remove-dead-code", model).modified


def test_keeps_initializers_that_are_inputs_and_bodies_use(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (bool c) => (float[2] y) <float[2] used = {1, 2}, float[2] out = {1, 2}> {
          y = If (c) <
            then_branch = a () => (float[2] r) { dead = Neg(used)  r = Abs(used) },
            else_branch = b () => (float[2] q) { q = Neg(out) }>
        }""")
    assert apply_pass("remove-dead-code", model).rules == {"drop-unused-node": 1}
    assert set(model.graph.initializers) == {"used", "out"}


def test_drops_trailing_optional_outputs(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        g (float[1, 1, 4] x) => (float[1, 1, 2] y, float[1, 1, 4] d) {
          y, indices = MaxPool <kernel_shape = [2], strides = [2]> (x)
          d, mask = Dropout(x)
        }""")
    assert apply_pass("remove-dead-code", model).rules == {"drop-unused-outputs": 2}
    assert [len(node.outputs) for node in model.graph] == [1, 1]
    evaluate(model, {"x": np.zeros((1, 1, 4), np.float32)})


def test_keeps_outputs_whose_number_means_something(parse: Any, apply_pass: Any) -> None:
    model = parse(
        """
        g (float[4] x, float[2, 3] b) => (float[2] y, float[2, 3] n)
        <float[3] s = {1, 1, 1}, float[3] m = {0, 0, 0}> {
          y, z = Split(x)
          n, mean, var, saved_mean, saved_var = BatchNormalization(b, s, m, m, s)
        }""",
        opset=9,
    )
    assert not apply_pass("remove-dead-code", model).modified


def test_functions_called_by_functions_stay(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.outer(x) }
        <domain: "local", opset_import: ["" : 21, "local" : 1]>
        outer (v) => (w) { w = local.inner(v) }
        <domain: "local", opset_import: ["" : 21]>
        inner (v) => (w) { w = Neg(v) }""")
    assert not apply_pass("remove-dead-code", model).modified
