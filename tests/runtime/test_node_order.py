"""Nodes written down in any order are read in one that holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfold.passes.errors import InvalidModelError
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.node_order import sort_nodes
from onnxfold.runtime.session import REFERENCE, Session

_TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[2] x, bool k) => (float[2] y) {
  a = Relu (x)
  b = Neg (a)
  c = If (k) <
    then_branch = t () => (float[2] ty) { u = Abs (b) v = Add (u, a) ty = Sqrt (v) },
    else_branch = e () => (float[2] ey) { ey = Identity (x) }
  >
  y = Exp (c)
}"""


def _names(graph: onnx.GraphProto) -> list[str]:
    return [node.output[0] for node in graph.node]


def _reordered(order: list[int], inner: list[int] | None = None) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(_TEXT)
    nodes = list(proto.graph.node)
    if inner is not None:
        body = next(each.g for each in nodes[2].attribute if each.name == "then_branch")
        steps = list(body.node)
        del body.node[:]
        body.node.extend(steps[index] for index in inner)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[index] for index in order)
    return proto


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [0, 2, 3, 1], [1, 0, 3, 2]])
def test_captured_values_come_first_too(order: list[int], tmp_path: Path) -> None:
    proto = _reordered(order, [2, 1, 0])
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load_model(path)
    assert [node.outputs[0].name for node in model.graph] == ["a", "b", "c", "y"]
    feed = {"x": np.array([1.0, -4.0], np.float32), "k": np.array(True)}
    wanted = Session(onnx.parser.parse_model(_TEXT), REFERENCE).run(feed)["y"]
    np.testing.assert_array_equal(Session(model, REFERENCE).run(feed)["y"], wanted)


def test_what_is_in_order_stays() -> None:
    proto = onnx.parser.parse_model(_TEXT)
    before = proto.SerializeToString()
    assert not sort_nodes(proto)
    assert proto.SerializeToString() == before


def test_as_few_nodes_as_possible_move() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y, float[2] z) '
        "{ d = Relu (x) y = Neg (c) z = Abs (d) c = Exp (x) }"
    )
    assert sort_nodes(proto)
    assert _names(proto.graph) == ["d", "z", "c", "y"]


def test_a_cycle_is_reported_as_before() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) '
        "{ a = Add (x, b) b = Relu (a) y = Neg (b) }"
    )
    with pytest.raises(InvalidModelError, match="topologically sorted"):
        load_model(proto)
