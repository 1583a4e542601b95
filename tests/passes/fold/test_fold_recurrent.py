"""Recurrent ops with quantized weights: dequantized once, ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, Session

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _codes(count: int) -> str:
    return ", ".join(str(i * 37 % 200 - 100) for i in range(count))


@pytest.mark.parametrize("data", ["quantized", "float"])
@pytest.mark.parametrize("op_type", _GATES)
def test_weights_are_dequantized_ahead_of_time(
    op_type: str,
    data: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    rows = 3 * _GATES[op_type]
    source = "q = QuantizeLinear (f, s, z) x = DequantizeLinear (q, s, z)"
    text = f"""
    agraph (float[5,2,4] f) => (float[5,1,2,3] y)
    <float s = {{0.02}}, uint8 z = {{128}}, float u = {{0.01}},
     int8[1,{rows},4] w = {{{_codes(rows * 4)}}}, int8[1,{rows},3] r = {{{_codes(rows * 3)}}},
     float[{rows}] v = {{{", ".join(["0.003"] * rows)}}}>
    {{
      {source if data == "quantized" else "x = Identity (f)"}
      wf = DequantizeLinear <axis = 1> (w, v)
      rf = DequantizeLinear (r, u)
      y = {op_type} <hidden_size = 3> (x, wf, rf)
    }}
    """
    before, model = parse(text), parse(text)
    result = apply_pass(FoldQdq("ort"), model)
    node = next(each for each in model.graph if each.op_type == op_type)
    assert all(node.inputs[index] in model.graph.initializers.values() for index in (1, 2))
    ahead, state = (each.reason for each in result.remarks if each.op_type == op_type)
    assert ahead.startswith("its weights are dequantized ahead of time")
    assert state.startswith("its state is a real number at every step, which codes would round")
    assert (f"onnxruntime has no {op_type} that" in state) is (op_type != "LSTM")
    feed = {"f": np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32)}
    wanted = evaluate(before, feed)["y"]
    np.testing.assert_array_equal(evaluate(model, feed)["y"], wanted)
    np.testing.assert_allclose(Session(model, DEPLOYMENT).run(feed)["y"], wanted, atol=1e-6)
