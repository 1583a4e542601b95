"""LinearOp: layouts, channels and arithmetic of every linear operator, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.linear import LinearOp
from onnxfold.runtime.session import Session

RNG = np.random.default_rng(7)


def _normal(shape: tuple[int, ...]) -> Any:
    return np.asarray(RNG.normal(size=shape), dtype=np.float32)


def _model(
    op: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    *,
    bias_shape: tuple[int, ...] | None = None,
    weight_first: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    names = ["w", "x"] if weight_first else ["x", "w"]
    initializers = [onnx.numpy_helper.from_array(_normal(w_shape), "w")]
    if bias_shape is not None:
        names.append("b")
        initializers.append(onnx.numpy_helper.from_array(_normal(bias_shape), "b"))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, ["y"], **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x_shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        initializers,
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _with_weights(model: onnx.ModelProto, name: str, array: Any) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for initializer in changed.graph.initializer:
        if initializer.name == name:
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
            initializer.CopyFrom(tensor)
    return changed


def _run(model: onnx.ModelProto, x: Any) -> Any:
    return Session(model).run({"x": x.astype(np.float32)})["y"].astype(np.float64)


def _along(vector: Any, axis: int, rank: int) -> Any:
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


CASES: dict[str, onnx.ModelProto] = {
    "conv1d": _model("Conv", (2, 4, 9), (6, 4, 3)),
    "conv2d_bias": _model("Conv", (2, 4, 7, 6), (6, 4, 3, 2), bias_shape=(6,)),
    "conv3d": _model("Conv", (1, 2, 5, 5, 5), (3, 2, 2, 2, 2)),
    "conv_grouped": _model("Conv", (2, 4, 7, 7), (6, 2, 3, 3), bias_shape=(6,), group=2),
    "conv_depthwise": _model("Conv", (2, 4, 7, 7), (4, 1, 3, 3), group=4),
    "convtranspose": _model("ConvTranspose", (2, 4, 5, 5), (4, 6, 3, 3), bias_shape=(6,)),
    "convtranspose_grouped": _model("ConvTranspose", (2, 4, 5, 5), (4, 3, 3, 3), group=2),
    "gemm": _model("Gemm", (3, 4), (4, 5), bias_shape=(5,)),
    "gemm_trans_b": _model(
        "Gemm", (3, 4), (5, 4), bias_shape=(1, 5), transB=1, alpha=0.5, beta=2.0
    ),
    "gemm_trans_a": _model("Gemm", (4, 3), (4, 5), bias_shape=(), transA=1, beta=-1.0),
    "matmul": _model("MatMul", (2, 3, 4), (4, 5)),
    "matmul_left": _model("MatMul", (2, 4, 3), (5, 4), weight_first=True),
    "matmul_left_vector": _model("MatMul", (4,), (5, 4), weight_first=True),
}


def _match(model: onnx.ModelProto) -> LinearOp:
    linear = LinearOp.match(ir.from_proto(model).graph.node(0))
    assert linear is not None
    return linear


def _input(model: onnx.ModelProto) -> Any:
    return _normal(tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))


@pytest.mark.parametrize("name", CASES)
def test_output_factors_scale_the_output_channels(name: str) -> None:
    model = CASES[name]
    linear = _match(model)
    x = _input(model)
    factors = RNG.normal(size=linear.out_channels)
    bias = linear.channel_bias
    assert bias is not None
    y = _run(model, x)
    axis = linear.output_channel_axis
    shift = _along(bias, axis, y.ndim)
    expected = (y - shift) * _along(factors, axis, y.ndim) + shift
    scaled = _run(_with_weights(model, "w", linear.scale_outputs(factors)), x)
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_input_factors_scale_the_data_channels(name: str) -> None:
    model = CASES[name]
    linear = _match(model)
    x = _input(model)
    factors = RNG.normal(size=linear.in_channels)
    expected = _run(model, x * _along(factors, linear.data_channel_axis, x.ndim))
    scaled = _run(_with_weights(model, "w", linear.scale_inputs(factors)), x)
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if "transpose" not in name])
def test_response_to_constant_channels(name: str) -> None:
    model = CASES[name]
    linear = _match(model)
    x = _input(model)
    levels = RNG.normal(size=linear.in_channels)
    bias = linear.channel_bias
    assert bias is not None
    y = _run(model, np.zeros(x.shape) + _along(levels, linear.data_channel_axis, x.ndim))
    expected = _along(linear.response_to(levels) + bias, linear.output_channel_axis, y.ndim)
    np.testing.assert_allclose(y, np.broadcast_to(expected, y.shape), rtol=1e-4, atol=1e-4)


def test_reduction_axes_are_all_but_the_output_axis() -> None:
    assert _match(CASES["conv2d_bias"]).reduction_axes == (1, 2, 3)
    assert _match(CASES["convtranspose"]).reduction_axes == (0, 2, 3)
    assert _match(CASES["gemm_trans_b"]).reduction_axes == (1,)
    assert _match(CASES["matmul"]).reduction_axes == (0,)


def test_gemm_bias_along_rows_is_not_a_channel_bias() -> None:
    assert _match(_model("Gemm", (3, 4), (4, 5), bias_shape=(3, 1))).channel_bias is None
    assert _match(_model("Gemm", (3, 4), (4, 5), bias_shape=(1, 1))).channel_bias is not None


def _first(text: str) -> LinearOp | None:
    return LinearOp.match(ir.from_proto(onnx.parser.parse_model(text)).graph.node(0))


HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2,3] x, float[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }",
        "g (float[2,3] x, float[3,2] w) => (float[2,2] y) "
        "<float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }",
        "g (float[1,2,3] x) => (float[1,2,1] y) <float[1,3,1] w = {1,2,3}> { y = MatMul(x, w) }",
        "g (int32[2,3] x) => (int32[2,1] y) <int32[3,1] w = {1,2,3}> { y = MatMul(x, w) }",
        "g (float[2,3] x) => (float[2,3] y) <float[2,3] w = {1,2,3,4,5,6}> { y = Add(x, w) }",
        "g () => (float[1,1] y) <float[1,1] a = {1}, float[1,1] w = {1}> { y = MatMul(a, w) }",
    ],
)
def test_what_is_not_linear_with_constant_weights(text: str) -> None:
    assert _first(HEADER + text) is None
