"""What a Gradient node means: totals through intermediates, copies, second orders, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from fixtures.gradients.check import Array, lower, relative_error, run_in_double
from fixtures.gradients.double import in_double
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.add_gradient import AddGradient
from onnxfold.passes.grad.lower_gradient import LowerGradient
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.session import Session

Parse = Callable[..., ir.Model]
HEADER = '<ir_version: 10, opset_import: ["" : 21, "ai.onnx.preview.training" : 1]>\n'


def lowered(parse: Parse, text: str) -> ir.Model:
    model = parse(HEADER + text)
    LowerGradient().run(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def run(model: ir.Model, **feeds: object) -> list[Array]:
    arrays = {name: np.asarray(value, np.float32) for name, value in feeds.items()}
    return list(Session(model).run(arrays).values())


GRADIENT = "ai.onnx.preview.training.Gradient"


def test_what_is_written(parse: Parse, assert_text: Callable[[ir.Model, str], None]) -> None:
    model = lowered(
        parse,
        f"""g (float[N,3] x) => (float loss, float[3,4] d)
        <float[3,4] w = {{0,1,2,3,4,5,6,7,8,9,10,11}}> {{
            h = MatMul(x, w)
            r = Relu(h)
            loss = ReduceSum<keepdims = 0>(r)
            d = {GRADIENT}<xs = ["w"], y = "loss">(w)
        }}""",
    )
    # The gradient of the sum is 1 everywhere: it is neither spread out nor multiplied with.
    assert_text(
        model,
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,3] x) => (float loss, float[3,4] d)
        <float[3,4] w = {0,1,2,3,4,5,6,7,8,9,10,11}, float grad_r_constant = {0}> {
            h = MatMul(x, w)
            r = Relu(h)
            loss = ReduceSum<keepdims = 0>(r)
            grad_r_Greater = Greater(r, grad_r_constant)
            grad_r_Cast = Cast<to = 1>(grad_r_Greater)
            d = Gemm<transA = 1>(x, grad_r_Cast)
        }""",
    )


def test_a_total_goes_through_named_intermediates(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float[2] x) => (float y, float[2] dx, float[2] dh) {{
            h = Mul(x, x)
            p = Mul(h, x)
            y = ReduceSum<keepdims = 0>(p)
            dx, dh = {GRADIENT}<xs = ["x", "h"], y = "y">(x, h)
        }}""",
    )
    _, d_x, d_h = run(model, x=[2, 3])
    np.testing.assert_allclose(d_x, [12, 27])
    np.testing.assert_allclose(d_h, [2, 3])


def test_zs_are_held(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float[2] x) => (float y, float[2] dx) {{
            h = Mul(x, x)
            p = Mul(h, x)
            y = ReduceSum<keepdims = 0>(p)
            dx = {GRADIENT}<xs = ["x"], zs = ["h"], y = "y">(x, h)
        }}""",
    )
    np.testing.assert_allclose(run(model, x=[2, 3])[1], [4, 9])


def test_other_inputs_than_the_named_ones(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float[2] x, float[2] z, float[2] a, float[2] c) => (float y, float[2] da) {{
            p = Mul(x, x)
            q = Mul(p, z)
            y = ReduceSum<keepdims = 0>(q)
            da = {GRADIENT}<xs = ["x"], zs = ["z"], y = "y">(a, c)
        }}""",
    )
    y, d_a = run(model, x=[1, 1], z=[1, 1], a=[2, 3], c=[5, 7])
    assert y == 2
    np.testing.assert_allclose(d_a, [20, 42])


def test_other_inputs_for_what_bodies_read(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float[2] x, bool c, float[2] a) => (float y, float[2] da) {{
            h = If(c) <
                then_branch = t () => (float[2] p) {{ p = Mul(x, x) }},
                else_branch = e () => (float[2] n) {{ n = Neg(x) }}
            >
            y = ReduceSum<keepdims = 0>(h)
            da = {GRADIENT}<xs = ["x"], y = "y">(a)
        }}""",
    )
    feeds = {"x": np.array([1, 1], np.float32), "a": np.array([2, 3], np.float32)}
    for condition, expected in ((True, [4, 6]), (False, [-1, -1])):
        found = Session(model).run({**feeds, "c": np.array(condition)})
        np.testing.assert_allclose(found["da"], expected)


def test_several_nodes_and_one_of_anothers_result(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float x) => (float y, float d1, float d2, float e) {{
            p = Mul(x, x)
            y = Mul(p, x)
            d1 = {GRADIENT}<xs = ["x"], y = "y">(x)
            d2 = {GRADIENT}<xs = ["x"], y = "d1">(x)
            e = {GRADIENT}<xs = ["x"], y = "p">(x)
        }}""",
    )
    assert [float(each) for each in run(model, x=2)] == [8, 12, 12, 4]


def test_what_the_result_does_not_depend_on_has_zeros(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float[2] x, float[N,2] z) => (float y, float[2] dx, float[N,2] dz) {{
            f = Floor(x)
            y = ReduceSum<keepdims = 0>(f)
            dx, dz = {GRADIENT}<xs = ["x", "z"], y = "y">(x, z)
        }}""",
    )
    _, d_x, d_z = run(model, x=[2, 3], z=np.ones((3, 2)))
    assert not d_x.any()
    assert d_z.shape == (3, 2)
    assert not d_z.any()


def test_an_output_without_a_name_is_skipped(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float[2] x, float[2] z) => (float y, float[2] dz) {{
            p = Mul(x, z)
            y = ReduceSum<keepdims = 0>(p)
            , dz = {GRADIENT}<xs = ["x", "z"], y = "y">(x, z)
        }}""",
    )
    np.testing.assert_allclose(run(model, x=[2, 3], z=[4, 5])[1], [2, 3])


def test_inside_a_body_with_values_of_the_graph_around(parse: Parse) -> None:
    model = lowered(
        parse,
        f"""g (float[2] x, bool c) => (float[2] d) {{
            h = Mul(x, x)
            d = If(c) <
                then_branch = t () => (float[2] p) {{
                    q = Mul(h, x)
                    s = ReduceSum<keepdims = 0>(q)
                    p = {GRADIENT}<xs = ["x"], y = "s">(x)
                }},
                else_branch = e () => (float[2] n) {{ n = Neg(x) }}
            >
        }}""",
    )
    found = Session(model).run({"x": np.array([2, 3], np.float32), "c": np.array(True)})
    np.testing.assert_allclose(found["d"], [12, 27])


MLP = """g (float[N,3] x, float[N,2] t, float[3,4] v) => (float loss)
<float[3,4] w = {0.1,-0.2,0.3,0.4,-0.5,0.6,0.7,-0.8,0.9,0.2,-0.1,0.3},
 float[4,2] u = {0.3,-0.1,0.4,0.2,0.5,-0.6,0.1,0.7}> {
    h = MatMul(x, w)
    s = Tanh(h)
    o = MatMul(s, u)
    l = LogSoftmax(o)
    m = Mul(l, t)
    total = ReduceSum<keepdims = 0>(m)
    loss = Neg(total)
}"""


def test_hessian_times_a_vector(parse: Parse) -> None:
    generator = np.random.default_rng(0)
    feeds = {
        "x": generator.standard_normal((5, 3)).astype(np.float32),
        "t": generator.uniform(size=(5, 2)).astype(np.float32),
        "v": generator.standard_normal((3, 4)).astype(np.float32),
    }
    first = lower(ir.to_proto(parse(MLP)), ["w"])
    along = onnx.ModelProto()
    along.CopyFrom(first)
    along.graph.node.extend(
        [
            helper.make_node("Mul", ["grad_w", "v"], ["slopes"]),
            helper.make_node("ReduceSum", ["slopes"], ["slope"], keepdims=0),
        ]
    )
    del along.graph.output[:]
    along.graph.output.append(helper.make_tensor_value_info("slope", 1, []))
    second = lower(along, ["w"], of="slope")
    found = Session(second).run(feeds)["grad_w_1"]
    exact = in_double(first)
    weight = next(each for each in exact.graph.initializer if each.name == "w")
    base = onnx.numpy_helper.to_array(weight)
    ends: list[Array] = []
    for step in (1e-5, -1e-5):
        moved = base + step * feeds["v"].astype(np.float64)
        weight.CopyFrom(onnx.numpy_helper.from_array(moved, "w"))
        ends.append(run_in_double(exact, feeds)["grad_w"])
    assert relative_error(found, (ends[0] - ends[1]) / 2e-5) < 1e-6


def test_the_same_bytes_every_time(parse: Parse) -> None:
    first, second = (ir.to_proto(parse(MLP)).SerializeToString() for _ in range(2))
    assert first == second
    found = [lower(onnx.load_from_string(first), ["w", "u"]) for _ in range(2)]
    assert found[0].SerializeToString(deterministic=True) == found[1].SerializeToString(
        deterministic=True
    )


def test_nothing_is_written_in_vain(parse: Parse) -> None:
    model = ir.from_proto(lower(ir.to_proto(parse(MLP)), ["w"]))
    for node in all_nodes(model):
        assert any(output.uses() or output.is_graph_output() for output in node.outputs)
    for value in model.graph.initializers.values():
        assert value.uses() or value.name == "u"


REFUSED: list[tuple[str, str]] = [
    (
        "g (float[2] x) => (float y, float[2] d) { h = Exp(x) u = Unique(h) "
        f'y = ReduceSum<keepdims = 0>(u) d = {GRADIENT}<xs = ["x"], y = "y">(x) }}',
        r"no gradient of Unique 'u': Unique has no rule; on the path Unique 'u' -> ReduceSum 'y'",
    ),
    (
        "g (float[4] x) => (float[] y, float[4] d) <int64 i = {0}> "
        "{ s = SplitToSequence(x, ) y = SequenceAt(s, i) "
        f'd = {GRADIENT}<xs = ["x"], y = "y">(x) }}',
        r"no gradient of SequenceAt 'y': gradients do not flow through sequences",
    ),
    (
        "g (float[2] x) => (float[2] y, float[2] d) { y = Exp(x) "
        f'd = {GRADIENT}<xs = ["x"], y = "q">(x) }}',
        "names 'q', which is no tensor",
    ),
    (
        "g (float[2] x) => (float[2] y, float[2] d) { y = Exp(x) "
        f'd = {GRADIENT}<xs = ["x"]>(x) }}',
        "no attribute y",
    ),
    (
        f"g (float[2] x) => (float[2] y, float[2] d) {{ y = Exp(x) "
        f'd = {GRADIENT}<xs = ["x"], zs = ["y"], y = "y">(x) }}',
        "no input 1",
    ),
    (
        "g (int64[2] x) => (int64[2] y, int64[2] d) { y = Neg(x) "
        f'd = {GRADIENT}<xs = ["x"], y = "y">(x) }}',
        "'y' is not real",
    ),
    (
        "g (int64[2] x) => (float[2] y, int64[2] d) { y = Cast<to = 1>(x) "
        f'd = {GRADIENT}<xs = ["x"], y = "y">(x) }}',
        "'x' is not real",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(parse: Parse, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LowerGradient().run(parse(HEADER + text))


def test_an_old_opset_is_refused(parse: Parse) -> None:
    text = "g (float[2] x) => (float[2] y) { y = Exp(x) }"
    model = parse(text, opset=17)
    AddGradient(of="y", wrt=("x",)).run(model)
    with pytest.raises(
        UsageError, match=r"needs opset 18 or later .* 17: run upgrade-opset\{to=21\}"
    ):
        LowerGradient().run(model)


FUNCTIONS = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[2] x) => (float[2] y) { y = own.square(x) }
<domain: "own", opset_import: ["" : 21]>
square (a) => (b) { b = Mul(a, a) }"""


def test_functions_are_inlined_first(
    parse: Parse, apply_pass: Callable[[str, ir.Model], Any]
) -> None:
    model = parse(FUNCTIONS)
    AddGradient(of="y", wrt=("x",)).run(model)
    with pytest.raises(UsageError, match="calls a function; run inline-functions"):
        LowerGradient().run(model)
    model = parse(FUNCTIONS)
    apply_pass("inline-functions{which=all}", model)
    AddGradient(of="y", wrt=("x",)).run(model)
    LowerGradient().run(model)
    np.testing.assert_allclose(run(model, x=[2, 3])[1], [4, 6])


def test_a_gradient_in_a_function_is_refused(parse: Parse) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) {{ y = own.slope(x) }}
    <domain: "own", opset_import: ["" : 21, "ai.onnx.preview.training" : 1]>
    slope (a) => (b) {{ c = Mul(a, a) b = {GRADIENT}<xs = ["a"], y = "c">(a) }}"""
    with pytest.raises(UsageError, match="stands in a function: run inline-functions"):
        LowerGradient().run(parse(text))


def test_time_is_linear(growth_of_time: Callable[..., float]) -> None:
    few, many = _layers(10), _layers(100)
    runs = (lambda model=model: LowerGradient().run(model.clone()) for model in (few, many))
    assert growth_of_time(*runs) < 30


def _layers(count: int) -> ir.Model:
    """As many layers, and the gradient of the mean."""
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    last = "x"
    for layer in range(count):
        for name, shape in (("w", (8, 8)), ("b", (8,)), ("s", (8,))):
            array = np.full(shape, 0.1, np.float32)
            stored.append(onnx.numpy_helper.from_array(array, f"{name}{layer}"))
        names = [f"{kind}{layer}" for kind in "mapr"]
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], names[:1]),
            helper.make_node("Add", [names[0], f"b{layer}"], names[1:2]),
            helper.make_node("Mul", [names[1], f"s{layer}"], names[2:3]),
            helper.make_node("Relu", [names[2]], names[3:]),
            helper.make_node("Add", [names[3], last], [f"h{layer}"]),
        ]
        last = f"h{layer}"
    nodes.append(helper.make_node("ReduceMean", [last], ["loss"], keepdims=0))
    ends = [
        helper.make_tensor_value_info("x", 1, ["N", 8]),
        helper.make_tensor_value_info("loss", 1, []),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    AddGradient().run(model)
    return model
