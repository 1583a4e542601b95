from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import PassError
from onnxfold.passes.listener import RewriteListener, Step
from onnxfold.passes.provenance import FROM_KEY, PASS_KEY
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.verifier import verify
from onnxfold.passes.walk import all_graphs, all_nodes

Parse = Callable[..., ir.Model]
AssertText = Callable[[ir.Model, str], None]

CHAIN = "g (float[N] x) => (float[N] y) { t = Abs(x)  u = Neg(t)  y = Relu(u) }"
BRANCHES = """g (bool c, float[2] x) => (float[2] y) {
    t = Abs(x)
    y = If (c) <
        then_branch = a () => (float[2] p) { i = Neg(t)  p = Relu(i) },
        else_branch = b () => (float[2] q) { q = Identity(t) }>
}"""
FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (float[2] x) => (float[2] y) { y = local.f(x) }
<domain: "local", opset_import: ["" : 21]>
f (a) => (b) { b = Neg(a) }"""


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in all_nodes(model) if node.op_type == op_type)


class Recorder(RewriteListener):
    def __init__(self, allowed: int = 99) -> None:
        self.events: list[str] = []
        self.allowed = allowed

    def permits(self, pass_name: str, step: Step) -> bool:
        self.allowed -= 1
        return self.allowed >= 0

    def node_inserted(self, node: ir.Node) -> None:
        self.events.append(f"insert {node.op_type}")

    def node_erased(self, node: ir.Node, inputs: object) -> None:
        self.events.append(f"erase {node.op_type}")

    def node_modified(self, node: ir.Node) -> None:
        self.events.append(f"modify {node.op_type}")

    def value_replaced(self, old: ir.Value, new: ir.Value) -> None:
        self.events.append(f"replace by {new.name}")

    def step_applied(self, pass_name: str, step: Step) -> None:
        self.events.append(f"{pass_name}/{step.rule}")


def test_inserting_and_replacing(parse: Parse, assert_text: AssertText) -> None:
    model = parse(CHAIN)
    listener = Recorder()
    rewriter = Rewriter(model, "p", [listener])
    neg = node_of(model, "Neg")
    with rewriter.step("r", neg) as step:
        new = rewriter.insert(
            neg, "Mul", [neg.inputs[0], neg.inputs[0]], name="square", dtype=ir.DataType.FLOAT
        )
        rewriter.replace_node(neg, [new])
    assert step.applied
    assert_text(
        model, "g (float[N] x) => (float[N] y) { t = Abs(x) square = Mul(t, t) y = Relu(square) }"
    )
    assert rewriter.statistics == {"inserted": 1, "replaced": 1, "erased": 1}
    assert rewriter.rules == {"r": 1}
    assert rewriter.modified
    assert listener.events == ["insert Mul", "replace by square", "erase Neg", "p/r"]
    assert new.dtype == ir.DataType.FLOAT
    verify(model)


def test_an_untouched_step_counts_nothing(parse: Parse) -> None:
    model = parse(CHAIN)
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", node_of(model, "Neg")) as step:
        pass
    assert not step.applied
    assert not rewriter.modified


def test_a_refused_step_leaves_no_trace(parse: Parse, text_of: Callable[[ir.Model], str]) -> None:
    model = parse(CHAIN)
    before = text_of(model)
    rewriter = Rewriter(model, "p", [Recorder(allowed=0)])
    neg = node_of(model, "Neg")
    with rewriter.step("r", neg) as step:
        rewriter.insert(neg, "Abs", [neg.inputs[0]], name="n")
        pytest.fail("the first mutation must leave the block")
    assert not step.applied
    assert text_of(model) == before
    assert not rewriter.statistics
    assert not rewriter.modified


def test_a_listener_is_asked_once_a_step(parse: Parse) -> None:
    model = parse(CHAIN)
    listener = Recorder(allowed=1)
    rewriter = Rewriter(model, "p", [listener])
    neg = node_of(model, "Neg")
    with rewriter.step("r", neg):
        rewriter.insert(neg, "Abs", [neg.inputs[0]], name="n")
        rewriter.insert(neg, "Abs", [neg.inputs[0]], name="n")
    assert listener.allowed == 0
    assert rewriter.statistics == {"inserted": 2}


def test_mutation_outside_a_step_is_an_error(parse: Parse) -> None:
    model = parse(CHAIN)
    with pytest.raises(PassError, match="outside a step"):
        Rewriter(model, "p").erase(node_of(model, "Relu"))


def test_an_attempt_is_a_step(parse: Parse) -> None:
    model = parse(CHAIN)
    listener = Recorder(allowed=1)
    rewriter = Rewriter(model, "p", [listener])

    def add(node: ir.Node, gate: Rewriter) -> None:
        gate.insert(node, "Abs", [node.inputs[0]], name="n")

    neg = node_of(model, "Neg")
    assert not rewriter.attempt("nothing", neg, lambda node, gate: None)
    assert rewriter.attempt("add", neg, add)
    assert not rewriter.attempt("add", neg, add), "the listener refuses a second step"
    assert rewriter.rules == {"add": 1}
    assert listener.events == ["insert Abs", "p/add"]
    with rewriter.step("outer"), pytest.raises(PassError, match="do not nest"):
        rewriter.attempt("inner", neg, add)


def test_steps_do_not_nest(parse: Parse) -> None:
    rewriter = Rewriter(parse(CHAIN), "p")
    with rewriter.step("a"), pytest.raises(PassError, match="do not nest"), rewriter.step("b"):
        pass


def test_names_are_unique_in_all_graphs_and_deterministic(parse: Parse) -> None:
    model = parse(BRANCHES)
    rewriter = Rewriter(model, "p")
    assert [rewriter.unique_name("i") for _ in range(3)] == ["i_1", "i_2", "i_3"]
    assert rewriter.unique_name("fresh") == "fresh"
    assert rewriter.unique_name("i_1") == "i_1_1"


def test_graph_outputs_keep_their_names(parse: Parse, assert_text: AssertText) -> None:
    model = parse("g (float[N] x) => (float[N] y) { t = Abs(x)  y = Identity(t) }")
    identity = node_of(model, "Identity")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", identity):
        rewriter.replace_node(identity, [identity.inputs[0]])
    assert_text(model, "g (float[N] x) => (float[N] y) { y = Abs(x) }")
    verify(model)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N] x) => (float[N] y) { y = Neg(x) }",
        "g (float[N] x) => (float[N] t, float[N] y) { t = Abs(x)  y = Neg(t) }",
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Neg(w) }",
    ],
    ids=["graph-input", "another-output", "initializer"],
)
def test_an_output_that_cannot_be_renamed_gets_an_identity(parse: Parse, text: str) -> None:
    model = parse(text)
    neg = node_of(model, "Neg")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", neg):
        rewriter.replace_node(neg, [neg.inputs[0]])
    assert [value.name for value in model.graph.outputs][-1] == "y"
    output = model.graph.outputs[-1].producer()
    assert output is not None
    assert output.op_type == "Identity"
    verify(model)


def test_replacing_reaches_into_bodies(parse: Parse, assert_text: AssertText) -> None:
    model = parse(BRANCHES)
    absolute = node_of(model, "Abs")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", absolute):
        rewriter.replace_node(absolute, [absolute.inputs[0]])
    assert_text(model, BRANCHES.replace("t = Abs(x)\n", "").replace("(t)", "(x)"))
    verify(model)


def test_a_captured_value_as_body_output_gets_an_identity(parse: Parse) -> None:
    model = parse(BRANCHES.replace("q = Identity(t)", "q = Neg(t)"))
    inner = next(node for node in all_nodes(model) if node.outputs[0].name == "q")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", inner):
        rewriter.replace_node(inner, [inner.inputs[0]])
    assert node_of(model, "Identity").outputs[0].name == "q"
    verify(model)


def test_keep_and_the_producer_go_on_reading(parse: Parse, assert_text: AssertText) -> None:
    model = parse("g (float[N] x) => (float[N] y, float[N] z) { t = Abs(x) y = Neg(t) z = Exp(t) }")
    value = node_of(model, "Abs").outputs[0]
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", node_of(model, "Abs")):
        new = rewriter.insert(node_of(model, "Abs"), "Relu", [value], name="n", after=True)
        rewriter.replace_value(value, new, keep=[node_of(model, "Exp")])
    assert_text(
        model,
        """g (float[N] x) => (float[N] y, float[N] z)
        { t = Abs(x) n = Relu(t) y = Neg(n) z = Exp(t) }""",
    )


def test_erasing_what_is_used_is_an_error(parse: Parse) -> None:
    model = parse(CHAIN)
    rewriter = Rewriter(model, "p")
    with rewriter.step("r"), pytest.raises(PassError, match="Abs 't' is still in use"):
        rewriter.erase(node_of(model, "Abs"))
    with rewriter.step("r"), pytest.raises(PassError, match="still in use"):
        rewriter.erase(node_of(model, "Relu"))


def test_erasing_a_node_releases_what_its_bodies_capture(parse: Parse) -> None:
    model = parse(
        BRANCHES.replace("(float[2] y) {", "(float[2] z) {", 1).replace("}>", "}> z = Exp(t)")
    )
    branch = node_of(model, "If")
    inner = [node for graph in list(all_graphs(model))[1:] for node in graph]
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", branch):
        rewriter.erase(branch)
    assert [usage.node.op_type for usage in node_of(model, "Abs").outputs[0].uses()] == ["Exp"]
    assert all(node.graph is None for node in inner)
    verify(model)


def test_constants_in_functions_are_nodes(parse: Parse, assert_text: AssertText) -> None:
    model = parse(FUNCTION)
    neg = node_of(model, "Neg")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", neg):
        weight = rewriter.constant(neg, np.array([1, 2], np.float32), name="w")
        rewriter.replace_node(neg, [rewriter.insert(neg, "Mul", [neg.inputs[0], weight], name="m")])
    assert_text(
        model,
        FUNCTION.replace("b = Neg(a)", "w = Constant <value = float[2] {1, 2}>()  b = Mul(a, w)"),
    )
    verify(model)


def test_constants_elsewhere_are_initializers_of_the_anchors_graph(parse: Parse) -> None:
    model = parse(BRANCHES)
    inner = node_of(model, "Neg")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", inner):
        value = rewriter.constant(inner, np.zeros(2, np.int8), name="t")
    assert value.graph is inner.graph
    assert value.name == "t_1"
    assert value.dtype == ir.DataType.INT8
    with rewriter.step("r"):
        rewriter.remove_initializer(value)
    assert inner.graph is not None
    assert "t_1" not in inner.graph.initializers


def test_a_used_initializer_stays(parse: Parse) -> None:
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r"), pytest.raises(PassError, match="w is still in use"):
        rewriter.remove_initializer(model.graph.initializers["w"])


def test_inserting_another_domain_imports_it(parse: Parse) -> None:
    model = parse(FUNCTION)
    neg = node_of(model, "Neg")
    rewriter = Rewriter(model, "p")
    assert rewriter.opset(neg) == 21
    with rewriter.step("r", neg):
        rewriter.insert(neg, "Gelu", [neg.inputs[0]], name="n", domain="com.microsoft")
    assert rewriter.opset(neg, "com.microsoft") == 1
    assert model.opset_imports["com.microsoft"] == 1


def test_inserting_an_onnx_op_into_a_model_without_any(parse: Parse) -> None:
    text = '<ir_version: 10, opset_import: ["ai.onnx.ml" : 3]> g (float[N] x) => (float[N] y)'
    model = parse(text + " { y = ai.onnx.ml.Scaler <offset = [0.], scale = [1.]> (x) }")
    scaler = node_of(model, "Scaler")
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", scaler):
        new = rewriter.insert(scaler, "Mul", [scaler.inputs[0], scaler.inputs[0]], name="n")
        rewriter.replace_node(scaler, [new])
    assert model.opset_imports[""] == 21
    verify(model)


def test_inputs_and_attributes(parse: Parse) -> None:
    model = parse("g (float[N] x) => (float[N] y) { y = Clip(x) }")
    clip = node_of(model, "Clip")
    listener = Recorder()
    rewriter = Rewriter(model, "p", [listener])
    with rewriter.step("r", clip):
        rewriter.set_input(clip, 2, clip.inputs[0])
        rewriter.truncate_inputs(clip, 1)
        rewriter.set_attribute(clip, "a", [1, 2])
        rewriter.set_attribute(clip, "a", None)
    assert len(clip.inputs) == 1
    assert not clip.attributes
    assert rewriter.statistics == {"modified": 4}
    assert listener.events == [*["modify Clip"] * 4, "p/r"]


def test_provenance_is_merged(parse: Parse) -> None:
    model = parse(CHAIN)
    absolute, neg, relu = model.graph
    absolute.metadata_props.update({"k": "first", PASS_KEY: "earlier", FROM_KEY: "a\nb"})
    neg.metadata_props["k"] = "second"
    neg.name = "negation"
    rewriter = Rewriter(model, "p")
    with rewriter.step("r", absolute, sources=[neg]):
        rewriter.add_source(relu)
        new = rewriter.insert(relu, "Exp", [neg.outputs[0]], name="e").producer()
    assert new is not None
    assert new.metadata_props == {
        "k": "first",
        PASS_KEY: "earlier,p",
        FROM_KEY: "a\nb\nnegation\ny",
    }


def test_remarks_name_the_node(parse: Parse) -> None:
    model = parse(CHAIN)
    rewriter = Rewriter(model, "p")
    rewriter.remark(node_of(model, "Neg"), "no range", "calibrate")
    (remark,) = rewriter.remarks
    assert (remark.node, remark.op_type, remark.reason) == ("u", "Neg", "no range")
    assert not rewriter.modified


def test_replacing_the_model(parse: Parse) -> None:
    rewriter = Rewriter(parse(CHAIN), "p")
    assert rewriter.unique_name("t") == "t_1"
    other = parse("g (float[N] x) => (float[N] y) { other = Abs(x) y = Neg(other) }")
    with rewriter.step("r"):
        rewriter.replace_model(other)
    assert rewriter.model is other
    assert rewriter.unique_name("other") == "other_1"
    assert rewriter.opset(node_of(other, "Abs")) == 21


def test_errors_name_the_step(parse: Parse) -> None:
    model = parse(CHAIN)
    rewriter = Rewriter(model, "p")
    assert rewriter.describe_step() == ""
    with rewriter.step("rule", node_of(model, "Neg")):
        pass
    assert rewriter.describe_step() == "rule on Neg 'u'"


def test_inputs_and_outputs_are_appended(parse: Parse) -> None:
    model = parse(CHAIN)
    x, inner = model.graph.inputs[0], node_of(model, "Abs").outputs[0]
    rewriter = Rewriter(model, "test")
    with rewriter.step("add"):
        labels = rewriter.add_input("labels", ir.DataType.INT64, ["N"])
        rewriter.set_type(inner, ir.DataType.FLOAT)
        outputs = [rewriter.add_output(value, "seen") for value in (inner, inner, x)]
    verify(model)
    assert [value.name for value in model.graph.inputs] == ["x", "labels"]
    assert labels.shape == ir.Shape(["N"])
    assert [value.name for value in model.graph.outputs] == ["y", "seen", "seen_1", "seen_2"]
    assert outputs[0] is inner
    copies = [value.producer() for value in outputs[1:]]
    assert [node and (node.op_type, node.inputs[0]) for node in copies] == [
        ("Identity", inner),
        ("Identity", x),
    ]


def test_inputs_and_outputs_are_removed(parse: Parse) -> None:
    model = parse(CHAIN)
    rewriter = Rewriter(model, "test")
    with rewriter.step("add"):
        unread = rewriter.add_input("unread", ir.DataType.FLOAT, None)
        weight = rewriter.add_initializer(model.graph, np.ones(2), name="weight")
        rewriter.let_override(weight)
        extra = rewriter.add_output(node_of(model, "Abs").outputs[0], "extra")
    assert weight.is_graph_input()
    with rewriter.step("remove"):
        for value in (unread, weight):
            rewriter.remove_input(value)
        rewriter.remove_output(extra)
        with pytest.raises(PassError, match="input x is still in use"):
            rewriter.remove_input(model.graph.inputs[0])
    verify(model)
    assert weight.is_initializer()
    assert not weight.is_graph_input()
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_outputs_that_were_left_out_are_asked_for(parse: Parse) -> None:
    model = parse(
        "g (float[2, 4] x, float[4] s) => (float[2, 4] y) { y = LayerNormalization(x, s) }"
    )
    rewriter = Rewriter(model, "test-pass")
    node = node_of(model, "LayerNormalization")
    with rewriter.step("ask", node):
        deviation = rewriter.ask_for_output(node, 2)
        assert [output.name for output in node.outputs] == ["y", "", deviation.name]
        assert rewriter.ask_for_output(node, 2) is deviation
        mean = rewriter.ask_for_output(node, 1)
        assert [output.name for output in node.outputs] == ["y", mean.name, deviation.name]
    verify(model)


def test_a_renamed_initializer_leaves_copies_and_the_proto_alone(parse: Parse) -> None:
    proto = ir.to_proto(parse("g (float x) => (float y) <float w = {2}> { y = Mul(x, w) }"))
    in_memory = parse("g (float x) => (float y) { y = Neg(x) }")
    weight = ir.Value(name="w", const_value=ir.tensor(np.float32(2), name="w"))
    in_memory.graph.register_initializer(weight)
    for original in (ir.from_proto(proto), in_memory):
        copy = original.clone()
        rewriter = Rewriter(copy, "test")
        with rewriter.step("rename"):
            rewriter.rename(copy.graph.initializers["w"], "v")
        assert [each.name for each in ir.to_proto(copy).graph.initializer] == ["v"]
        assert [each.name for each in ir.to_proto(original).graph.initializer] == ["w"]
    assert [each.name for each in proto.graph.initializer] == ["w"]
