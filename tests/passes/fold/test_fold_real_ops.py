"""Ops that need real numbers between codes: left in float, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

# The op on x [2,4,3], constants, and the reason.
OPS: dict[str, tuple[str, str, str]] = {
    "LayerNormalization": (
        "c = LayerNormalization (x, g)",
        "float[3] g = {1.0, 2.0, 0.5}",
        "normalization needs the real mean and variance",
    ),
    "InstanceNormalization": (
        "c = InstanceNormalization (x, g, g)",
        "float[4] g = {1.0, 2.0, 0.5, 0.1}",
        "normalization needs the real mean and variance",
    ),
    "LogSoftmax": (
        "c = LogSoftmax <axis = 1> (x)",
        "float g = {0.0}",
        "the logarithm of the sum of exponentials needs real numbers",
    ),
    "LpNormalization": (
        "c = LpNormalization (x)",
        "float g = {0.0}",
        "normalization needs the real norm",
    ),
    "ReduceL2": ("c = ReduceL2 (x, g)", "int64[1] g = {1}", "no integer kernel computes ReduceL2"),
    "ReduceProd": (
        "c = ReduceProd (x, g)",
        "int64[1] g = {1}",
        "no integer kernel computes ReduceProd",
    ),
    "ReduceSum": ("c = ReduceSum (x, n)", "float g = {0.0}", "its axes are computed at run time"),
    "Cast": (
        "d = Cast <to = 11> (x) c = Cast <to = 1> (d)",
        "float g = {0.0}",
        "codes do not stand for the type of number it casts to",
    ),
    "Dropout": (
        "d, m = Dropout (x) r = Cast <to = 1> (m) c = Add (d, r)",
        "float g = {0.0}",
        "its mask is read",
    ),
}


@pytest.mark.parametrize("target", ["ort", "standard", "integer", "qdq"])
@pytest.mark.parametrize("op_type", OPS)
def test_stays_float_with_its_reason(
    op_type: str,
    target: Literal["ort", "standard", "integer", "qdq"],
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
) -> None:
    op, constants, reason = OPS[op_type]
    text = f"""
    agraph (uint8[2,4,3] q, int64[1] n) => (uint8[A] y)
    <float s = {{0.05}}, uint8 z = {{120}}, {constants}>
    {{ x = DequantizeLinear (q, s, z) {op} y = QuantizeLinear (c, s, z) }}
    """
    before, model = (_inferred(parse(text, opset=19)) for _ in range(2))
    result = apply_pass(FoldQdq(target), model)
    assert next(each.reason for each in result.remarks if each.op_type == op_type) == reason
    assert op_type in {node.op_type for node in model.graph}
    codes = np.random.default_rng(0).integers(0, 256, (2, 4, 3)).astype(np.uint8)
    feed: dict[str, Any] = {"q": codes, "n": np.array([1])}
    wanted = Session(before, REFERENCE).run(feed)["y"]
    for config in (REFERENCE, DEPLOYMENT):
        np.testing.assert_array_equal(Session(model, config).run(feed)["y"], wanted)


def _inferred(model: ir.Model) -> ir.Model:
    output = model.graph.outputs[0]
    output.shape = None
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    if inferred.graph.outputs[0].shape is None:
        inferred.graph.outputs[0].shape = ir.Shape([None] * 3)
    return inferred
