from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from onnxfold.runtime.loading import load_model, save_model
from onnxfold.runtime.specs import input_specs


def exported_with_minus_one() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1, 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_a_dimension_of_minus_one_is_an_unknown_one(tmp_path: Path) -> None:
    proto = exported_with_minus_one()
    assert input_specs(proto)[0].shape == (None, 3)
    model = load_model(proto)
    save_model(model, tmp_path / "m.onnx")
    for value in (*(saved := onnx.load(tmp_path / "m.onnx")).graph.input, *saved.graph.output):
        first, second = value.type.tensor_type.shape.dim
        assert first.WhichOneof("value") is None
        assert second.dim_value == 3
