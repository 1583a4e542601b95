from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.skeleton import skeleton

Parse = Callable[..., ir.Model]
FIXTURES = sorted((Path(__file__).parents[2] / "fixtures").glob("*.onnx"))


def without_claims(proto: onnx.ModelProto) -> onnx.ModelProto:
    def forget(graph: onnx.GraphProto) -> None:
        opaque = {output for node in graph.node if node.domain for output in node.output}
        kept = [info for info in graph.value_info if info.name in opaque]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        for node in graph.node:
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    forget(body)

    forget(proto.graph)
    return proto


def inferred_types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    types: dict[str, onnx.TypeProto] = {}

    def collect(graph: onnx.GraphProto) -> None:
        for info in graph.value_info:
            types[info.name] = info.type
        for node in graph.node:
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    collect(body)

    collect(onnx.shape_inference.infer_shapes(proto, data_prop=True).graph)
    return types


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_inference_finds_the_same_on_the_skeleton(path: Path) -> None:
    model = ir.load(path)
    whole = inferred_types(without_claims(ir.to_proto(model)))
    assert inferred_types(skeleton(model)) == whole
    assert whole


def test_only_small_constants_are_carried(parse: Parse) -> None:
    model = parse("""
        g (float[N] x) => (float[M] y) <int64[1] small = {4}> {
          t = Expand(x, small)
          y = Neg(t)
        }""")
    graph = model.graph
    graph.register_initializer(
        ir.Value(name="large", const_value=ir.Tensor(np.zeros((100, 50), np.float32)))
    )
    large, small = sorted(skeleton(model).graph.initializer, key=lambda tensor: tensor.name)
    assert (large.name, list(large.dims), large.data_type) == ("large", [100, 50], 1)
    assert large.ByteSize() < 100
    assert onnx.numpy_helper.to_array(small).tolist() == [4]


def test_only_claims_about_unknown_operators_are_kept(parse: Parse) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "custom" : 1]>
        g (float[2] x) => (float[2] y) { t = custom.Op(x)  u = Neg(t)  y = custom.Op(u) }""")
    for node in model.graph:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([2])
    assert [info.name for info in skeleton(model).graph.value_info] == ["t"]


def test_absent_inputs_and_node_names_are_kept(parse: Parse) -> None:
    model = parse("g (float[4] x, float h) => (float[4] y) { [n] y = Clip(x, , h) }")
    node = skeleton(model).graph.node[0]
    assert (node.name, list(node.input), list(node.output)) == ("n", ["x", "", "h"], ["y"])


def test_functions_are_carried_with_their_attributes(parse: Parse) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[2, 3] x) => (float[A, B] y) { t = local.f <to = 7> (x)  y = Cast <to = 1> (t) }
        <domain: "local", opset_import: ["" : 21]>
        f <to> (v) => (w) { w = Cast <to : int = @to> (v) }""")
    proto = skeleton(model)
    assert list(proto.functions[0].attribute) == ["to"]
    assert proto.functions[0].node[0].attribute[0].ref_attr_name == "to"
    assert inferred_types(proto)["t"].tensor_type.elem_type == onnx.TensorProto.INT64
