from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxfold.passes.provenance import FROM_KEY, original_names, record_provenance
from onnxfold.passes.walk import Scopes, all_graphs, all_nodes, label, use_count

Parse = Callable[..., ir.Model]

MODEL = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (bool c, float x) => (float y) {
    t = Abs(x)
    y = If (c) <
        then_branch = a () => (float p) {
            p = If (c) <then_branch = aa () => (float r) { r = Neg(t) },
                        else_branch = ab () => (float s) { s = Exp(t) }> },
        else_branch = b () => (float q) { q = local.f(t) }>
}
<domain: "local", opset_import: ["" : 17]>
f (a) => (b) { b = Sqrt(a) }"""


def test_every_graph_and_node_is_walked_outer_first(parse: Parse) -> None:
    model = parse(MODEL)
    names = [node.op_type for node in all_nodes(model)]
    assert names == ["Abs", "If", "If", "Neg", "Exp", "f", "Sqrt"]
    assert [graph.name for graph in all_graphs(model)][:5] == ["g", "a", "aa", "ab", "b"]


def test_scopes(parse: Parse) -> None:
    model = parse(MODEL)
    scopes = Scopes(model)
    nodes = {node.op_type: node for node in all_nodes(model)}
    inner, function = nodes["Neg"].graph, nodes["Sqrt"].graph
    assert inner is not None
    assert function is not None
    assert scopes.root(inner) is model.graph
    holder = scopes.holder(inner)
    assert holder is not None
    assert holder.outputs[0].name == "p"
    assert scopes.holder(model.graph) is None
    assert (scopes.opset(inner), scopes.opset(function)) == (21, 17)
    assert (scopes.in_function(inner), scopes.in_function(function)) == (False, True)
    assert scopes.opset(inner, "none") == 0


def test_uses_are_counted_by_input(parse: Parse) -> None:
    model = parse("g (float x) => (float y) { y = Add(x, x) }")
    assert use_count(model.graph.inputs[0]) == 2


def test_labels() -> None:
    value = ir.Value(name="y")
    assert label(ir.Node("", "Add", [], outputs=[value], name="n")) == "Add 'n'"
    assert label(ir.Node("d", "Add", [], outputs=[ir.Value(name="z")])) == "d.Add 'z'"
    assert label(ir.Node("", "Add", [], outputs=[ir.Value()])) == "Add (unnamed)"


def test_origins_are_kept_through_generations_and_bounded() -> None:
    first = ir.Node("", "Add", [], outputs=[ir.Value(name="a")])
    second = ir.Node("", "Mul", [], outputs=[ir.Value(name="b")])
    record_provenance(second, "p", [first])
    assert original_names(second) == ["a"]
    many = [ir.Node("", "Add", [], outputs=[ir.Value(name=str(i))]) for i in range(40)]
    last = ir.Node("", "Sub", [], outputs=[ir.Value(name="c")])
    record_provenance(last, "p", [second, *many])
    assert original_names(last)[:3] == ["a", "0", "1"]
    assert len(last.metadata_props[FROM_KEY].split("\n")) == 16
