from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import VerificationError
from onnxfold.passes.interface import Interface
from onnxfold.passes.verifier import verify
from onnxfold.passes.walk import all_nodes

Parse = Callable[..., ir.Model]
Break = Callable[[ir.Model], object]

BRANCHES = """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
    t = Add(x, w)
    y = If (c) <
        then_branch = a () => (float[2] p) { i = Neg(t)  p = Relu(i) },
        else_branch = b () => (float[2] q) { j = Abs(x)  q = Identity(j) }>
    z = Exp(t)
}"""
FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (float[2] x) => (float[2] y) { y = local.f(x) }
<domain: "local", opset_import: ["" : 21]>
f (a) => (b) { b = Neg(a) }
<domain: "local", opset_import: ["" : 21]>
h (a) => (b) { b = Neg(a) }"""
QDQ = """g (float[2, 3] x) => (float[2, 3] y)
    <float[3] s = {1, 2, 3}, uint8[3] z = {0, 1, 2}> {
    q = QuantizeLinear <axis = 1> (x, s, z)
    y = DequantizeLinear <axis = 1> (q, s, z)
}"""


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in all_nodes(model) if node.op_type == op_type)


def output_of(model: ir.Model, op_type: str) -> ir.Value:
    return node_of(model, op_type).outputs[0]


def rewire(op_type: str, source: str) -> Break:
    return lambda model: node_of(model, op_type).replace_input_with(0, output_of(model, source))


def remove_without_detaching(model: ir.Model) -> None:
    model.graph.remove(node_of(model, "Add"))


def duplicate_name(model: ir.Model) -> None:
    output_of(model, "Exp").name = "t"


def shadow(model: ir.Model) -> None:
    output_of(model, "Neg").name = "t"


def move_first_node_last(model: ir.Model) -> None:
    node = node_of(model, "Add")
    model.graph.remove(node)
    model.graph.append(node)


def forget_use(model: ir.Model) -> None:
    value = output_of(model, "Add")
    value._uses.popitem()  # pyright: ignore[reportPrivateUsage]


def foreign_value(model: ir.Model) -> None:
    node_of(model, "Exp").replace_input_with(0, ir.Value(name="nowhere"))


def foreign_input(model: ir.Model) -> None:
    other = ir.Graph([ir.Value(name="o")], [], nodes=[])
    node_of(model, "Exp").replace_input_with(0, other.inputs[0])


def output_of_enclosing_graph(model: ir.Model) -> None:
    body = node_of(model, "Neg").graph
    assert body is not None
    body.outputs.clear()
    body.outputs.append(ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT)))


def output_computed_outside(model: ir.Model) -> None:
    body = node_of(model, "Neg").graph
    assert body is not None
    body.outputs.clear()
    body.outputs.append(output_of(model, "Add"))


def listed_without_graph(model: ir.Model) -> None:
    node_of(model, "Exp").graph = None


def foreign_producer(model: ir.Model) -> None:
    value = output_of(model, "Exp")
    value._producer = node_of(model, "Abs")  # pyright: ignore[reportPrivateUsage]


def used_by_removed_node(model: ir.Model) -> None:
    model.graph.remove(node_of(model, "Exp"))


def untyped_output(model: ir.Model) -> None:
    model.graph.outputs[0].type = None


def nameless_output_in_use(model: ir.Model) -> None:
    output_of(model, "Add").name = ""


def unknown_operator(model: ir.Model) -> None:
    node_of(model, "Exp").op_type = "Expp"


def no_opset(model: ir.Model) -> None:
    node_of(model, "Exp").domain = "com.example"


def old_opset(model: ir.Model) -> None:
    node_of(model, "Exp").op_type = "Gelu"
    model.opset_imports[""] = 19


def missing_required_input(model: ir.Model) -> None:
    node_of(model, "Add").replace_input_with(1, None)


def too_few_inputs(model: ir.Model) -> None:
    node_of(model, "Add").resize_inputs(1)


def too_many_inputs(model: ir.Model) -> None:
    node = node_of(model, "Exp")
    node.resize_inputs(2)
    node.replace_input_with(1, node.inputs[0])


def unknown_attribute(model: ir.Model) -> None:
    node_of(model, "Exp").attributes["alpha"] = ir.AttrInt64("alpha", 1)


def missing_attribute(model: ir.Model) -> None:
    node_of(model, "Exp").op_type = "Cast"


def initializer_without_value(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = None


def initializer_of_other_type(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros(2, np.int8))


def initializer_of_other_shape(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("break_model", "message"),
    [
        (rewire("Exp", "Neg"), "Exp 'z' reads 'i', which Neg 'i' computes in a graph that"),
        (rewire("Add", "Exp"), "Add 't' reads 'z', which Exp 'z' computes only later"),
        (rewire("Identity", "Neg"), "Identity 'q' reads 'i', which Neg 'i' computes in a graph"),
        (remove_without_detaching, "reads 't', whose producer Add 't' was removed"),
        (duplicate_name, "Exp 't' defines 't', a name already taken in its scopes"),
        (shadow, "Neg 't' defines 't', a name already taken in its scopes"),
        (move_first_node_last, "Neg 'i' reads 't', which Add 'node_Add_0' computes only later"),
        (forget_use, "not every use of 't' is recorded"),
        (foreign_value, "Exp 'z' reads 'nowhere', which nothing defines"),
        (foreign_input, "Exp 'z' reads 'o', which belongs to another graph"),
        (output_of_enclosing_graph, "output 'x' of graph 'a' is computed by no node in it"),
        (output_computed_outside, "output 't' of graph 'a' belongs to an enclosing graph"),
        (listed_without_graph, "Exp 'z' is listed in a graph it does not belong to"),
        (foreign_producer, "output 'z' of Exp 'z' names another producer"),
        (used_by_removed_node, "'t' is used by Exp 'z', which was removed"),
        (untyped_output, "the type of 'y', an input or output, is not declared"),
        (nameless_output_in_use, "an output of Add (unnamed) is read but has no name"),
        (unknown_operator, "Expp 'z' is no operator of ai.onnx opset 21"),
        (old_opset, "Gelu 'z' is no operator of ai.onnx opset 19"),
        (no_opset, "com.example.Exp 'z': the opset of domain 'com.example' is not imported"),
        (missing_required_input, "Add 't' lacks its required input 1"),
        (too_few_inputs, "Add 't' has 1 inputs, which its schema forbids"),
        (too_many_inputs, "Exp 'z' has 2 inputs, which its schema forbids"),
        (unknown_attribute, "Exp 'z' has an attribute 'alpha' unknown to its schema"),
        (missing_attribute, "Cast 'z' lacks its required attribute 'to'"),
        (initializer_without_value, "initializer 'w' has no value"),
        (initializer_of_other_type, "initializer 'w' is declared FLOAT and holds INT8"),
        (initializer_of_other_shape, "initializer 'w' is declared [2] and holds [3]"),
    ],
)
def test_a_broken_invariant_is_named(parse: Parse, break_model: Break, message: str) -> None:
    model = parse(BRANCHES)
    for node in all_nodes(model):
        node.name = None
    verify(model)
    break_model(model)
    with pytest.raises(VerificationError) as caught:
        verify(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def wrong_call(model: ir.Model) -> None:
    node_of(model, "f").op_type = "missing"


def too_many_arguments(model: ir.Model) -> None:
    node = node_of(model, "f")
    node.resize_inputs(2)
    node.replace_input_with(1, node.inputs[0])


def function_initializer(model: ir.Model) -> None:
    graph = next(iter(model.functions.values())).graph
    graph.register_initializer(ir.Value(name="w", const_value=ir.tensor([1.0])))


def capture_from_outside(model: ir.Model) -> None:
    node_of(model, "Neg").replace_input_with(0, model.graph.inputs[0])


def function_without_opset(model: ir.Model) -> None:
    next(iter(model.functions.values())).opset_imports.clear()


@pytest.mark.parametrize(
    ("break_model", "message"),
    [
        (wrong_call, "local.missing 'y' calls a local function that does not exist"),
        (too_many_arguments, "local.f 'y' has 2 inputs and 1 outputs, its function 1 and 1"),
        (function_initializer, "function f holds an initializer, 'w'"),
        (capture_from_outside, "Neg 'b' reads 'x', which belongs to another graph"),
        (function_without_opset, "Neg 'b': the opset of domain '' is not imported"),
    ],
)
def test_functions_are_verified(parse: Parse, break_model: Break, message: str) -> None:
    model = parse(FUNCTION)
    for node in all_nodes(model):
        node.name = None
    verify(model)
    break_model(model)
    with pytest.raises(VerificationError) as caught:
        verify(model)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("s = {1, 2, 3}", "s = {1, 0, 3}", "the scale 's' is not positive and finite"),
        ("s = {1, 2, 3}", "s = {1, -2, 3}", "the scale 's' is not positive and finite"),
        ("axis = 1> (x", "axis = 2> (x", "axis 2 is out of range for 'x' of rank 2"),
        ("axis = 1> (x", "axis = 0> (x", "'s' has 3 elements for 2 along axis 0 of 'x'"),
        ("uint8[3] z = {0, 1, 2}", "uint8 z = {0}", "the zero point 'z' has shape [] and the"),
        ("float[3] s", "int32[3] s", "the scale 's' is of type INT32"),
        ("float[3] s = {1, 2, 3}", "float[1, 3] s = {1, 2, 3}", "neither a scalar nor 1-D"),
        ("axis = 1> (x", "axis = 1, block_size = 2> (x", "of a blocked node must have rank 2"),
    ],
)
def test_quantization_is_verified(parse: Parse, old: str, new: str, message: str) -> None:
    verify(parse(QDQ))
    with pytest.raises(VerificationError) as caught:
        verify(parse(QDQ.replace(old, new)))
    assert message in str(caught.value)


def test_zero_points_have_the_type_of_the_codes(parse: Parse) -> None:
    model = parse(QDQ)
    output_of(model, "QuantizeLinear").type = ir.TensorType(ir.DataType.INT8)
    with pytest.raises(VerificationError, match="'z' is UINT8 and the codes 'q' are INT8"):
        verify(model)


def test_per_channel_needs_opset_13(parse: Parse) -> None:
    text = QDQ.replace("<axis = 1>", "")
    with pytest.raises(VerificationError, match="'s' must be a scalar before opset 13"):
        verify(parse(text, opset=12))


def test_int32_codes_have_no_zero_point(parse: Parse) -> None:
    text = "g (int32[2] x) => (float[2] y) <float s = {2}, int32 z = {%d}> "
    text += "{ y = DequantizeLinear(x, s, z) }"
    verify(parse(text % 0))
    with pytest.raises(VerificationError, match="'z' of int32 codes is not 0"):
        verify(parse(text % 1))


@pytest.mark.parametrize("block", [2, 3])
def test_blocked_quantization(parse: Parse, block: int) -> None:
    scales = ", ".join("1" * 2 * -(-4 // block))
    text = f"""g (int8[2, 4] x) => (float[2, 4] y) <float[2, {-(-4 // block)}] s = {{{scales}}}>
    {{ y = DequantizeLinear <axis = 1, block_size = {block}> (x, s) }}"""
    verify(parse(text))
    with pytest.raises(VerificationError, match="'s' has 2 elements for 1 along axis 1"):
        verify(parse(text.replace(f"block_size = {block}", "block_size = 4")))


def test_the_neighbourhood_is_shown(parse: Parse) -> None:
    model = parse(BRANCHES)
    node_of(model, "Exp").name = "last"
    unknown_attribute(model)
    with pytest.raises(VerificationError) as caught:
        verify(model)
    first, second = caught.value.detail.splitlines()
    assert first.startswith("  t = Add (x, w)")
    assert second == "> z = Exp <alpha = 1> (t)  # last"


def test_custom_domains_are_left_alone(parse: Parse) -> None:
    header = '<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]> '
    verify(parse(header + "g (float[2] x) => (float[2] y) { y = com.example.Any <k = 1> (x) }"))


def test_bodies_beside_each_other_may_share_names(parse: Parse) -> None:
    verify(parse(BRANCHES.replace("j = Abs(x)", "i = Abs(x)").replace("(j)", "(i)")))


SIMPLE = "g (float[N, 2] x, float v) => (float[N, 2] y, float[N, 2] z) { y = Abs(x) z = Neg(x) }"


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (SIMPLE.replace("float v", "float u"), "input 1 was v: FLOAT[] and is u: FLOAT[]"),
        (SIMPLE.replace(", float v", ""), "input 'v' is gone"),
        (SIMPLE.replace("float v", "int32 v"), "input 1 was v: FLOAT[] and is v: INT32[]"),
        (
            SIMPLE.replace("=> (float[N, 2] y", "=> (float[M, 2] y"),
            "output 0 was y: FLOAT[N,2] and is y: FLOAT[M,2]",
        ),
        (SIMPLE.replace("float v", "float v, float u"), "input 'u' was added"),
        (
            SIMPLE.replace("(float[N, 2] y, float[N, 2] z)", "(float[N, 2] z, float[N, 2] y)"),
            "output 0 was y",
        ),
    ],
)
def test_the_interface_must_not_change(parse: Parse, after: str, message: str) -> None:
    interface = Interface.of(parse(SIMPLE))
    verify(parse(SIMPLE), interface=interface)
    with pytest.raises(VerificationError, match="the model's interface changed") as caught:
        verify(parse(after), interface=interface)
    assert message in str(caught.value)


def test_additive_rewrites_append(parse: Parse) -> None:
    interface = Interface.of(parse(SIMPLE))
    more = parse(
        SIMPLE.replace("float[N, 2] z)", "float[N, 2] z, float[N, 2] loss)").replace(
            "z = Neg(x)", "z = Neg(x) loss = Exp(x)"
        )
    )
    verify(more, interface=interface, additive=True)
    with pytest.raises(VerificationError, match="output 'loss' was added"):
        verify(more, interface=interface)


def test_unknown_dimensions_may_become_known(parse: Parse) -> None:
    before = parse(SIMPLE.replace("=> (float[N, 2] y", "=> (float[?, 2] y"))
    verify(parse(SIMPLE), interface=Interface.of(before))
    before.graph.outputs[0].shape = None
    verify(parse(SIMPLE), interface=Interface.of(before))


def shared_scale(nodes: int) -> str:
    pairs = "\n".join(
        f"q{i} = QuantizeLinear(t{i}, s, z) t{i + 1} = DequantizeLinear(q{i}, s, z)"
        for i in range(nodes // 2)
    )
    return f"""g (float[2] t0) => (float[2] t{nodes // 2}) <float s = {{1}}, uint8 z = {{0}}>
    {{ {pairs} }}"""


def test_time_is_linear(parse: Parse, growth_of_time: Callable[..., float]) -> None:
    few, many = (parse(shared_scale(nodes)) for nodes in (1000, 10_000))
    assert growth_of_time(lambda: verify(few), lambda: verify(many)) < 30
