"""readable-names: tensors are called after the layers that compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxfold.passes.layers import record_layers


def _model(
    nodes: list[tuple[str, list[str], str]], constants: dict[str, Any], layers: dict[str, str]
) -> ir.Model:
    """A chain from x to y, float [1, 2, 2, 2], of names that ONNX text cannot hold."""
    made = [onnx.helper.make_node(op, given, [name], name=name) for op, given, name in nodes]
    edges = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2, 2, 2])
        for name in ("x", "y")
    ]
    held = [onnx.numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()]
    graph = onnx.helper.make_graph(made, "g", edges[:1], edges[1:], held)
    opset = [onnx.helper.make_opsetid("", 18)]
    model = ir.from_proto(onnx.helper.make_model(graph, ir_version=10, opset_imports=opset))
    record_layers(model, layers)
    return model


def _names(model: ir.Model) -> list[str]:
    return [value.name or "" for node in model.graph for value in node.outputs]


_KERNEL = np.ones((2, 2, 1, 1), np.float32)
_TF = [
    ("Neg", ["x"], "StatefulPartitionedCall/model/conv1/convolution__6:0"),
    (
        "Conv",
        ["StatefulPartitionedCall/model/conv1/convolution__6:0", "model/conv1/ReadVariableOp:0"],
        "StatefulPartitionedCall/model/conv1/BiasAdd:0",
    ),
    ("Relu", ["StatefulPartitionedCall/model/conv1/BiasAdd:0"], "model/act/Relu:0"),
    ("Add", ["model/act/Relu:0", "const_fold_opt__9"], "Add__12:0"),
    ("Neg", ["Add__12:0"], "model/block/head/mul_1:0"),
    ("Neg", ["model/block/head/mul_1:0"], "y"),
]
_TF_CONSTANTS = {"model/conv1/ReadVariableOp:0": _KERNEL, "const_fold_opt__9": np.float32(1)}


def test_scopes_of_tensorflow(apply_pass: Any) -> None:
    model = _model(_TF, _TF_CONSTANTS, {})
    assert apply_pass("readable-names", model).modified
    assert _names(model) == [
        "conv1/Neg",
        "conv1/BiasAdd",
        "act/Relu",
        "act/Add",
        "block/head/mul_1",
        "y",
    ]
    assert sorted(model.graph.initializers) == ["act/bias", "conv1/weight"]
    assert [node.name for node in model.graph][:5] == _names(model)[:5]
    assert not apply_pass("readable-names", model).modified


def test_layers_of_keras(apply_pass: Any) -> None:
    nodes = [
        ("Conv", ["x", "net_1/enc_1/c1_2/ReadVariableOp:0"], "net_1/enc_1/c1_2/convolution:0"),
        ("Relu", ["net_1/enc_1/c1_2/convolution:0"], "net_1/enc_1/c1_2/Relu:0"),
        ("Neg", ["net_1/enc_1/c1_2/Relu:0"], "y"),
    ]
    layers = {name: "enc/c1 (Conv2D)" for _, _, name in nodes[:2]} | {"y": "head (Dense)"}
    model = _model(nodes, {"net_1/enc_1/c1_2/ReadVariableOp:0": _KERNEL}, layers)
    apply_pass("readable-names", model)
    assert _names(model) == ["enc/c1/convolution", "enc/c1/Relu", "y"]
    assert [node.name for node in model.graph] == ["enc/c1/convolution", "enc/c1/Relu", "head/Neg"]
    assert list(model.graph.initializers) == ["enc/c1/weight"]
    assert not apply_pass("readable-names", model).modified


def test_modules_of_torch(apply_pass: Any) -> None:
    nodes = [
        ("MatMul", ["x", "val_3"], "val_4"),
        ("Add", ["val_4", "body.0.bias"], "linear"),
        ("Relu", ["linear"], "relu"),
        ("Neg", ["relu"], "y"),
    ]
    constants = {"val_3": np.ones((2, 2), np.float32), "body.0.bias": np.ones(2, np.float32)}
    layers = {"val_4": "body.0 (Linear)", "linear": "body.0 (Linear)"}
    model = _model(nodes, constants, layers)
    apply_pass("readable-names", model)
    assert _names(model) == ["body.0/MatMul", "body.0/Add", "relu", "y"]
    assert sorted(model.graph.initializers) == ["body.0.bias", "body.0/weight"]


def test_fused_operators_of_tensorflow_lite(apply_pass: Any) -> None:
    name = "net/c1/Relu;net/c1/BiasAdd;net/c1/Conv2D"
    nodes = [
        ("Conv", ["x", "net/c1/Conv2D"], f"{name}_prequant"),
        ("Relu", [f"{name}_prequant"], "Relu__3:0"),
        ("Neg", ["Relu__3:0"], name),
        ("Neg", [name], "net/c2/add"),
        ("Neg", ["net/c2/add"], "y"),
    ]
    layers = {name: "net/c1/Relu (CONV_2D, operator 3)", "net/c2/add": "net/c2/add (ADD, 4)"}
    layers[f"{name}_prequant"] = layers[name]
    model = _model(nodes, {"net/c1/Conv2D": _KERNEL}, layers)
    apply_pass("readable-names", model)
    assert _names(model) == ["c1/Relu_prequant", "c1/Relu_1", "c1/Relu", "c2/add", "y"]
    assert list(model.graph.initializers) == ["c1/Conv2D"]


def test_names_that_meet_are_numbered_in_order(apply_pass: Any) -> None:
    nodes = [("Neg", ["x"], "a__1"), ("Neg", ["a__1"], "a__2"), ("Neg", ["a__2"], "y")]
    layers = {"a__1": "a (Sign)", "a__2": "a (Sign)", "y": "a (Sign)"}
    model = _model(nodes, {}, layers)
    apply_pass("readable-names", model)
    assert _names(model) == ["a/Neg", "a/Neg_1", "y"]
    assert [node.name for node in model.graph] == ["a/Neg", "a/Neg_1", "a/Neg_2"]
    assert not apply_pass("readable-names", model).modified
