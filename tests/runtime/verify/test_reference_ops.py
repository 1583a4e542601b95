"""One op in float64 against ONNX Runtime, above all where onnx's own reference is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.verify.reference_ops import NotEvaluatedError, evaluate_node

Array = npt.NDArray[Any]


def _run(node: onnx.NodeProto, inputs: list[Array], opset: int) -> Array:
    names = [f"i{i}" for i in range(len(inputs))]
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input.extend(names)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
        for name, each in zip(names, inputs, strict=True)
    ]
    graph = helper.make_graph([copy], "g", infos, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Session(onnx.shape_inference.infer_shapes(model), REFERENCE).run(
        dict(zip(names, inputs, strict=True))
    )["y"]


_WINDOW = {"kernel_shape": [3, 2], "strides": [2, 1]}
_CASES: list[tuple[str, int, dict[str, Any], tuple[tuple[int, ...], ...]]] = [
    ("GlobalMaxPool", 21, {}, ((2, 3, 5),)),
    ("GlobalMaxPool", 21, {}, ((2, 3, 4, 2, 3),)),
    ("GlobalAveragePool", 21, {}, ((2, 3, 4, 2, 3),)),
    ("MaxPool", 21, _WINDOW | {"auto_pad": "SAME_LOWER"}, ((2, 3, 6, 6),)),
    ("MaxPool", 21, _WINDOW | {"pads": [1, 0, 1, 1], "dilations": [2, 1]}, ((2, 3, 7, 6),)),
    ("AveragePool", 21, _WINDOW | {"auto_pad": "SAME_UPPER"}, ((2, 3, 6, 6),)),
    ("AveragePool", 21, _WINDOW | {"pads": [1, 0, 1, 1]}, ((2, 3, 6, 6),)),
    ("AveragePool", 21, _WINDOW | {"pads": [1, 1, 1, 1], "count_include_pad": 1}, ((2, 3, 6, 6),)),
    ("AveragePool", 21, _WINDOW | {"ceil_mode": 1}, ((2, 3, 6, 6),)),
    ("Softmax", 11, {"axis": 1}, ((2, 3, 4),)),
    ("LogSoftmax", 11, {}, ((2, 3, 4),)),
    ("Softmax", 13, {"axis": 1}, ((2, 3, 4),)),
    ("BatchNormalization", 9, {}, ((2, 3, 4), (3,), (3,), (3,), (3,))),
    ("BatchNormalization", 15, {"epsilon": 0.1}, ((2, 3, 4), (3,), (3,), (3,), (3,))),
    ("ConvTranspose", 21, {"group": 2, "strides": [2]}, ((1, 4, 5), (4, 3, 2), (6,))),
    (
        "ConvTranspose",
        21,
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0], "dilations": [1, 2]},
        ((2, 4, 5, 3), (4, 3, 3, 2)),
    ),
    ("Conv", 21, {"auto_pad": "SAME_LOWER", "strides": [2]}, ((1, 4, 5), (4, 4, 2), (4,))),
    ("Gemm", 21, {"alpha": 0.5, "beta": 2.0, "transA": 1}, ((4, 3), (4, 2), (3, 1))),
]


@pytest.mark.parametrize(("op_type", "opset", "attributes", "shapes"), _CASES)
def test_an_op_is_what_onnxruntime_computes(
    op_type: str, opset: int, attributes: dict[str, Any], shapes: tuple[tuple[int, ...], ...]
) -> None:
    numbers = np.random.default_rng(3)
    inputs = [numbers.uniform(0.5, 2, shape).astype(np.float32) for shape in shapes]
    node = helper.make_node(op_type, [], ["y"], **attributes)
    (got,) = evaluate_node(node, [each.astype(np.float64) for each in inputs], opset)
    assert got.dtype == np.float64
    want = _run(node, inputs, opset)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_integers_pool_too() -> None:
    node = helper.make_node("MaxPool", [], ["y"], kernel_shape=[2], pads=[1, 1])
    (got,) = evaluate_node(node, [np.array([[[-5, -9]]], np.int8)], 21)
    assert got.tolist() == [[[-5, -5, -9]]]


def test_what_is_beyond_the_reference_is_refused() -> None:
    node = helper.make_node("Resize", [], ["y"], mode="linear")
    scales = np.array([1, 1, 0.5], np.float32)
    with pytest.raises(NotEvaluatedError, match="rounded down"):
        evaluate_node(node, [np.zeros((1, 1, 5)), None, scales], 21)
    with pytest.raises(NotEvaluatedError, match="Conv"):
        evaluate_node(helper.make_node("Conv", [], ["y"]), [np.zeros((1, 1))], 21)


def test_dequantize_is_known_in_every_opset() -> None:
    node = helper.make_node("DequantizeLinear", [], ["y"])
    codes = np.array([3, 7], np.uint8)
    (got,) = evaluate_node(node, [codes, np.array(0.5, np.float32), np.array(5, np.uint8)], 10)
    assert got.tolist() == [-1.0, 1.0]
