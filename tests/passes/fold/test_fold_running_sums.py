"""CumSum in int32, and BatchNormalization as a table a channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq

Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]

SUMMED = """
agraph (uint8[2,3] q) => (uint8[2,3] y)
<float[2,3] x, float s = {0.5}, uint8 z = {100}, float t = {1.0}, uint8 u = {7}, int64 axis = {1}>
{
  x = DequantizeLinear (q, s, z)
  c = CumSum <reverse: int = 1> (x, axis)
  y = QuantizeLinear (c, t, u)
}
"""
NORMALIZED = """
agraph (uint8[1,2,3] q) => (uint8[1,2,3] y)
<float[1,2,3] x, float s = {0.5}, uint8 z = {100}, float t = {1.0}, uint8 u = {7},
 float[2] g = {2.0, -1.0}, float[2] b = {0.25, 3.0},
 float[2] m = {0.0, 1.0}, float[2] v = {1.0, 1.0}>
{
  x = DequantizeLinear (q, s, z)
  n = BatchNormalization <epsilon: float = 0.0> (x, g, b, m, v)
  y = QuantizeLinear (n, t, u)
}
"""


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_running_sums_are_rounded_once(
    target: str, parse: Parse, apply_pass: Apply, evaluate: Callable[..., dict[str, np.ndarray]]
) -> None:
    result = apply_pass(f"fold-qdq{{target={target}}}", parse(SUMMED))
    assert result.rules["fold-runningsum"] == 1
    assert [node.op_type for node in result.model.graph][:3] == ["Cast", "Sub", "CumSum"]
    codes = np.array([[101, 90, 104], [99, 97, 255]], np.uint8)
    # Sums of (q - 100) / 2 from the right: -2.5, -3, 2 and 75.5, 76, 77.5; halves go to even.
    expected = [[5, 4, 9], [83, 83, 85]]
    assert evaluate(result.model, {"q": codes})["y"].tolist() == expected


@pytest.mark.parametrize(
    ("size", "reason"),
    [("N", "the size of its axis is not known"), ("9000000", "an int32 sum could overflow")],
)
def test_sums_without_bound_stay_float(
    size: str, reason: str, parse: Parse, apply_pass: Apply
) -> None:
    text = SUMMED.replace("[2,3]", f"[2,{size}]")
    result = apply_pass(FoldQdq(target="standard"), parse(text))
    assert [remark.reason for remark in result.remarks] == [reason]


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_batch_normalization_is_a_table_a_channel(
    target: str, parse: Parse, apply_pass: Apply, evaluate: Callable[..., dict[str, np.ndarray]]
) -> None:
    result = apply_pass(f"fold-qdq{{target={target}}}", parse(NORMALIZED))
    assert result.rules["fold-function"] == 1
    codes = np.array([[[100, 101, 102], [100, 110, 90]]], np.uint8)
    # 2 x + 0.25 and 4 - x for x = (q - 100) / 2.
    expected = [[[7, 8, 9], [11, 6, 16]]]
    assert evaluate(result.model, {"q": codes})["y"].tolist() == expected


def test_computed_statistics_are_refused(parse: Parse, apply_pass: Apply) -> None:
    text = NORMALIZED.replace("[1,2,3] q)", "[1,2,3] q, float[2] v)")
    text = text.replace(", float[2] v = {1.0, 1.0}", "")
    result = apply_pass(FoldQdq(target="standard"), parse(text))
    reason = "its statistics are not constant, or its channels not known"
    assert [remark.reason for remark in result.remarks] == [reason]
