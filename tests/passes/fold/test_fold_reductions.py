"""ReduceMax, ReduceMin and GlobalMaxPool on codes, whose order is that of the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, Session, version

_GRID = "float s = {0.05}, %s z = {%d}"


def _text(op: str, dtype: str = "uint8", zero: int = 120, constants: str = "") -> str:
    return (
        f"agraph ({dtype}[2,3,4,5] q) => (float y)"
        f" <{_GRID % (dtype, zero)}{constants}>"
        f"{{ x = DequantizeLinear (q, s, z) y = {op} }}"
    )


def _feed(model: ir.Model) -> dict[str, np.ndarray]:
    assert model.graph.inputs[0].dtype is not None
    dtype = model.graph.inputs[0].dtype.numpy()
    limits = np.iinfo(dtype)
    numbers = np.random.default_rng(1).integers(limits.min, limits.max, (2, 3, 4, 5))
    return {"q": numbers.astype(dtype)}


REDUCED = {
    "axes as attribute": (13, _text("ReduceMax <axes = [2, -1]> (x)")),
    "axes as input": (18, _text("ReduceMin (x, a)", constants=", int64[1] a = {1}")),
    "axes dropped": (
        20,
        _text("ReduceMax <keepdims = 0> (x, a)", "uint8", 3, ", int64[2] a = {0, 3}"),
    ),
    "all axes": (20, _text("ReduceMin <keepdims = 0> (x)")),
    "no axes at all": (20, _text("ReduceMin <noop_with_empty_axes = 1> (x)")),
    "int8": (21, _text("ReduceMax (x, a)", "int8", -7, ", int64[1] a = {3}")),
    "global, attribute": (13, _text("GlobalMaxPool (x)")),
    "global, input": (21, _text("GlobalMaxPool (x)", "int8", 5)),
}


@pytest.mark.parametrize("case", REDUCED)
def test_codes_are_reduced_before_they_are_dequantized(
    case: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    opset, text = REDUCED[case]
    if "noop_with_empty_axes" in text and version().startswith("1.23."):
        pytest.skip("onnxruntime 1.23 runs no reduction over no axes, float ones included")
    before, model = parse(text, opset=opset), parse(text, opset=opset)
    apply_pass("infer-shapes", model)
    result = apply_pass("fold-qdq", model)
    assert result.rules["fold-move"] == 1
    (reduction,) = [node for node in model.graph if node.op_type.startswith("Reduce")]
    assert reduction.outputs[0].dtype == ir.DataType.UINT8
    census = Counter(node.op_type for node in model.graph)
    assert census["DequantizeLinear"] == (2 if "(int8[" in text else 1)
    feed = _feed(before)
    np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(before, feed)["y"])
    np.testing.assert_array_equal(
        Session(model, DEPLOYMENT).run(feed)["y"], evaluate(before, feed)["y"]
    )


def test_extremes_of_a_convolution_are_taken_from_its_codes(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    """What is narrowed to its extremes is dequantized after it is narrow."""
    text = """
    agraph (float[1,2,9] f) => (float[1,2,2] y)
    <float s = {0.05}, uint8 z = {120}, int8[2,2,1] w = {9, -20, 33, 4}, float sw = {0.02},
     int64[1] a = {2}>
    {
      q = QuantizeLinear (f, s, z)
      x = DequantizeLinear (q, s, z)
      wf = DequantizeLinear (w, sw)
      c = Conv (x, wf)
      p = QuantizeLinear (c, s, z)
      d = DequantizeLinear (p, s, z)
      high = ReduceMax (d, a)
      low = ReduceMin (d, a)
      e = Concat <axis = 2> (high, low)
      y = Erf (e)
    }
    """
    before, model = parse(text), parse(text)
    apply_pass("fold-qdq", model)
    assert [node.op_type for node in model.graph] == [
        "QuantizeLinear",
        "QLinearConv",
        "ReduceMax",
        "ReduceMin",
        "Concat",
        "DequantizeLinear",
        "Erf",
    ]
    feed = {"f": np.random.default_rng(2).standard_normal((1, 2, 9)).astype(np.float32)}
    np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(before, feed)["y"])


def test_rounding_moves_ahead_of_a_maximum(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text = """
    agraph (uint8[1,2,4,4] q) => (uint8[1,2,1,1] y)
    <float s = {0.05}, uint8 z = {120}, int8[2,2,1,1] w = {9, -20, 33, 4}, float sw = {0.0137}>
    {
      x = DequantizeLinear (q, s, z)
      wf = DequantizeLinear (w, sw)
      c = Conv (x, wf)
      m = GlobalMaxPool (c)
      y = QuantizeLinear (m, s, z)
    }
    """
    before, model = parse(text), parse(text)
    apply_pass("infer-shapes", model)
    apply_pass("fold-qdq", model)
    assert [node.op_type for node in model.graph] == ["QLinearConv", "ReduceMax"]
    feed = {"q": np.random.default_rng(2).integers(0, 256, (1, 2, 4, 4)).astype(np.uint8)}
    np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(before, feed)["y"])


def test_global_maximum_of_unknown_rank_stays_float(parse: Callable[..., ir.Model]) -> None:
    text = _text("QuantizeLinear (m, s, z)").replace("y =", "m = GlobalMaxPool (x) y =")
    model = parse(text.replace("float y", "uint8 y"))
    model.graph.inputs[0].shape = model.graph.outputs[0].shape = None
    result = FoldQdq().run(model)
    assert [remark.reason for remark in result.remarks] == ["the rank of 'x' is not known"]


def test_target_qdq_keeps_the_op_between_grids(parse: Callable[..., ir.Model]) -> None:
    text = _text("QuantizeLinear (m, s, z)").replace("y =", "m = GlobalMaxPool (x) y =")
    model = parse(text.replace("float y", "uint8 y"))
    FoldQdq("qdq").run(model)
    assert [node.op_type for node in model.graph] == [
        "DequantizeLinear",
        "GlobalMaxPool",
        "QuantizeLinear",
    ]
