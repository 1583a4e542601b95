"""Packed weights meet float data: ONNX Runtime's default quantizes that data, a fold does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig, version

_PACKED: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "int8, one scale": ("INT8", (), {}),
    "int8, one scale a column": ("INT8", (32,), {"axis": 1}),
    "uint8, one scale a column": ("UINT8", (32,), {"axis": 1}),
    "int4, one scale": ("INT4", (), {}),
    "uint4, one scale a column": ("UINT4", (32,), {"axis": 1}),
    "int4 in blocks": ("INT4", (2, 32), {"axis": 0, "block_size": 16}),
}


def _packed(case: str, product: str) -> ir.Model:
    """A product of float data and packed weights."""
    dtype, scales, attributes = _PACKED[case]
    numbers = np.random.default_rng(3)
    low, high = {"INT4": (-8, 7), "UINT4": (0, 15), "INT8": (-128, 127), "UINT8": (0, 255)}[dtype]
    kind, zero = getattr(TensorProto, dtype), 2
    codes = numbers.integers(low, high + 1, 1024).tolist()
    steps = numbers.uniform(0.01, 0.03, scales).astype(np.float32) * 128 / high
    zeros = helper.make_tensor("zw", kind, scales, [zero] * steps.size)
    bias = numpy_helper.from_array(np.arange(32, dtype=np.float32), "b")
    inputs = ["q", "v", "b"] if product == "Gemm" else ["q", "v"]
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["v"], **attributes),
            helper.make_node(product, inputs, ["y"]),
        ],
        "packed",
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, [8, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 32])],
        [
            helper.make_tensor("w", kind, (32, 32), codes),
            numpy_helper.from_array(steps, "sw"),
            zeros,
            *([bias] if product == "Gemm" else []),
        ],
    )
    opset = helper.make_opsetid("", 21)
    return ir.from_proto(helper.make_model(graph, opset_imports=[opset], ir_version=10))


_UNPINNED = SessionConfig("unpinned", optimize=True, threads=1, matmulnbits_accuracy_level=4)


def _feed() -> dict[str, Any]:
    return {"q": (3 * np.random.default_rng(0).standard_normal((8, 32))).astype(np.float32)}


@pytest.mark.parametrize("product", ["MatMul", "Gemm"])
@pytest.mark.parametrize("case", _PACKED)
def test_packed_weights_are_multiplied_in_float(case: str, product: str) -> None:
    model = _packed(case, product)
    feed = _feed()
    wanted = Session(model, REFERENCE).run(feed)["y"]
    FoldQdq().run(model)
    operators = [node.op_type for node in model.graph if node.op_type != "Add"]
    in_words = "int8" in case and "blocks" not in case
    assert operators == (["Cast", "Sub", "Mul", product] if in_words else ["MatMulNBits"])
    executed = optimized_op_census(model)
    assert not {"Cast", "DequantizeLinear", "Mul"} & set(executed)
    for config in (REFERENCE, DEPLOYMENT, _UNPINNED):
        got = Session(model, config).run(feed)["y"]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", _PACKED)
def test_packed_weights_are_still_misread(case: str) -> None:
    if version().startswith("1.23.") and "blocks" not in case:
        pytest.skip(f"onnxruntime {version()} packs weights in blocks only")
    model = _packed(case, "MatMul")
    feed = _feed()
    wanted = Session(model, REFERENCE).run(feed)["y"]
    assert np.max(np.abs(Session(model, _UNPINNED).run(feed)["y"] - wanted)) > 0.01


@pytest.mark.parametrize("case", ["int8, one scale", "int4, one scale"])
def test_packed_weights_in_canonical_form_are_left_in_peace(case: str) -> None:
    """One scale for all, written as a vector of one element, is not packed."""
    model = _packed(case, "MatMul")
    feed = _feed()
    wanted = Session(model, REFERENCE).run(feed)["y"]
    FoldQdq("qdq").run(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul"]
    for config in (REFERENCE, _UNPINNED):
        got = Session(model, config).run(feed)["y"]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


def test_packed_weights_that_canonical_form_cannot_protect_are_reported() -> None:
    model = _packed("int8, one scale a column", "MatMul")
    remarks = FoldQdq("qdq").run(model).remarks
    assert any("qdq_matmulnbits_accuracy_level=1" in remark.advice for remark in remarks)
