from __future__ import annotations

import onnx
import onnx.parser

from onnxfold.runtime.node_names import separate_names

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[2] x, bool c) => (float[2] y) {
  a = Relu(x)
  b = Neg(a)
  d = If(c) <then_branch = t () => (float[2] e) { e = Abs(b) },
             else_branch = f () => (float[2] h) { g1 = Abs(b)
 h = Neg(g1) }>
  y = Relu(d)
}"""


def named(*names: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return model


def test_later_nodes_of_the_same_name_get_one_that_is_free() -> None:
    model = named("n", "n", "n_2", "n")
    assert separate_names(model)
    assert [node.name for node in model.graph.node] == ["n", "n_3", "n_2", "n_4"]


def test_bodies_have_names_of_their_own() -> None:
    model = named("n", "m", "if", "")
    body = model.graph.node[2].attribute[1].g
    for node in body.node:
        node.name = "n"
    assert separate_names(model)
    assert [node.name for node in body.node] == ["n", "n_2"]
    assert model.graph.node[0].name == "n"


def test_no_name_is_not_a_name_that_two_share() -> None:
    model = named("", "", "n", "")
    before = model.SerializeToString()
    assert not separate_names(model)
    assert model.SerializeToString() == before
