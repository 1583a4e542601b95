from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.simplify.infer_shapes import InferShapes


def type_of(model: ir.Model, name: str) -> str:
    for graph in model.graphs():
        for node in graph:
            for output in node.outputs:
                if output.name == name:
                    return f"{output.dtype}{output.shape}"
    raise AssertionError(f"no value {name}")


def test_types_follow_from_the_inputs(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[N, 6] x) => (float[A, B] y) <int64[1] one = {1}, int64[1] open = {-1}> {
          s = Shape(x)
          rows = Gather(s, one)
          target = Concat <axis = 0> (rows, open)
          r = Reshape(x, target)
          c = Cast <to = 7> (r)
          y = Cast <to = 1> (c)
        }""")
    assert apply_pass("infer-shapes", model).modified
    assert type_of(model, "c").startswith("INT64[6,")
    assert str(model.graph.outputs[0].shape) == "[A,B]"
    assert not apply_pass("infer-shapes", model).modified


def test_bodies_are_typed_and_functions_left(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (bool c, float[2] x) => (float[2] y) {
          t = local.f(x)
          y = If (c) <
            then_branch = a () => (float[2] r) { k = Neg(x)  r = Add(t, k) },
            else_branch = b () => (float[2] q) { q = Neg(x) }>
        }
        <domain: "local", opset_import: ["" : 21]>
        f (v) => (w) { u = Neg(v)  w = Neg(u) }""")
    apply_pass("infer-shapes", model)
    assert type_of(model, "k") == "FLOAT[2]"


def test_wrong_claims_about_intermediates_are_corrected(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[2, 3] x) => (float[A, B] y) { t = Transpose(x)  y = Neg(t) }""")
    first = next(iter(model.graph))
    first.outputs[0].shape = ir.Shape([5, 5])
    apply_pass("infer-shapes", model)
    assert type_of(model, "t") == "FLOAT[3,2]"


def test_claims_stay_where_nothing_can_be_inferred(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "custom" : 1]>
        g (float[2] x) => (float[A, B] y) { t = custom.Op(x)  u = Neg(t)  y = Neg(u) }""")
    custom = next(iter(model.graph)).outputs[0]
    custom.shape, custom.type = ir.Shape([4, 4]), ir.TensorType(ir.DataType.FLOAT)
    apply_pass("infer-shapes", model)
    assert type_of(model, "t") == "FLOAT[4,4]"
    assert type_of(model, "u") == "FLOAT[4,4]"


def test_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = ir.Tensor(np.zeros((1000, 1000), np.float32), name="w")
    values = [
        ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 1000])),
        ir.Value(
            name="w",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape([1000, 1000]),
            const_value=weight,
        ),
    ]
    constant = ir.node("Constant", [], {"value": ir.Tensor(np.zeros((1000, 5), np.float32))})
    first = ir.node("MatMul", values)
    second = ir.node("MatMul", [first.outputs[0], constant.outputs[0]])
    graph = ir.Graph(
        values[:1],
        second.outputs,
        nodes=[constant, first, second],
        initializers=values[1:],
        opset_imports={"": 21},
    )
    seen: list[int] = []
    infer = onnx.shape_inference.infer_shapes

    def spy(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        seen.append(proto.ByteSize())
        return infer(proto, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", spy)
    InferShapes().run(ir.Model(graph, ir_version=10))
    assert seen[0] < 5000
    assert str(first.outputs[0].shape) == "[N,1000]"
    assert values[1].const_value is weight
    assert constant.attributes["value"].as_tensor().nbytes == 20_000


def test_failure_is_a_remark(parse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        raise onnx.shape_inference.InferenceError("[TypeInferenceError] no type")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    model = parse("g (float[2] x) => (float[2] y) { t = Neg(x)  y = Neg(t) }")
    result = InferShapes().run(model)
    assert not result.modified
    assert ["no type" in remark.reason for remark in result.remarks] == [True]
