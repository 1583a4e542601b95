from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxfold.passes.simplify.fold_constants import FoldConstants


def constant(model: ir.Model, name: str) -> Any:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_folds_a_chain_and_keeps_only_its_end(
    parse: Any, apply_pass: Any, assert_text: Any
) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 5}> {
          sum = Add(a, b)
          negative = Neg(sum)
          y = Mul(x, negative)
        }""")
    result = apply_pass("fold-constants", model)
    assert result.rules == {"fold-node": 2}
    assert list(model.graph.initializers) == ["a", "b", "negative"]
    np.testing.assert_array_equal(constant(model, "negative"), np.array([-4, -7], np.float32))
    apply_pass("remove-dead-code", model)
    assert_text(
        model,
        "g (float[2] x) => (float[2] y) <float[2] negative = {-4, -7}> { y = Mul(x, negative) }",
    )


def test_a_folded_graph_output_keeps_its_name(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y, float[2] z) <float[2] a = {1, 2}> {
          y = Neg(a)
          z = Add(x, y)
        }""")
    apply_pass("fold-constants", model)
    outputs = evaluate(model, {"x": np.zeros(2, np.float32)})
    assert [node.op_type for node in model.graph] == ["Constant", "Add"]
    np.testing.assert_array_equal(outputs["y"], np.array([-1, -2], np.float32))
    assert not apply_pass("fold-constants", model).modified


def test_leaves_initializers_a_caller_can_override(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[2] x, float[2] a) => (float[2] y) <float[2] a = {1, 2}> {
          n = Neg(a)
          y = Add(x, n)
        }""")
    assert not apply_pass("fold-constants", model).modified


BOMBS = {
    "ConstantOfShape": "big = ConstantOfShape(huge)",
    "Expand": "big = Expand(one, huge)",
    "Tile": "row = Reshape(one, ones) big = Tile(row, huge)",
    "Range": "big = Range(zero, last, step)",
    "broadcast": "column = Reshape(range, tall) sum = Add(column, range) big = Mul(sum, sum)",
    "Gather": "big = Gather(range, many)",
    "GatherND": "wide = Reshape(range, flat) big = GatherND(wide, picks)",
    "Pad": "big = Pad(range, pads)",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_never_makes_what_is_larger_than_allowed(bomb: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float x) => (float y)
        <int64[2] huge = {{9000000, 9000000}}, int64[2] ones = {{1, 1}}, float one = {{1}},
         int64 zero = {{0}}, int64 last = {{90000000000}}, int64 step = {{1}},
         int64[2] tall = {{-1, 1}}, int64[2] flat = {{1, -1}}, int64[2] pads = {{0, 90000000000}}>
        {{ {BOMBS[bomb]}
          picked = Cast <to = 1> (big)
          all = ReduceMax <keepdims = 0> (picked)
          y = Mul(x, all) }}"""
    proto = onnx.parser.parse_model(text)
    for name, array in {
        "range": np.arange(5000),
        "many": np.zeros((3000, 1000), np.int64),
        "picks": np.zeros((4000, 1), np.int64),
    }.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    FoldConstants().run(model)
    assert "big" in [output.name for node in model.graph for output in node.outputs]
    held = [value.const_value for value in model.graph.initializers.values()]
    assert sum(tensor.nbytes for tensor in held if tensor is not None) < 100 * 2**20


def test_stops_at_the_total(parse: Any, apply_pass: Any) -> None:
    model = parse(
        """
        g (float[100] x) => (float[100] y) <float[100] a> {
          b = Neg(a)
          c = Abs(a)
          d = Add(x, b)
          y = Add(d, c)
        }""".replace("float[100] a>", f"float[100] a = {{{', '.join(['1'] * 100)}}}>")
    )
    assert apply_pass("fold-constants{max-total-bytes=500}", model).rules == {"fold-node": 1}


def test_what_was_folded_away_again_does_not_count(parse: Any, apply_pass: Any) -> None:
    chain = "\n".join(f"a{i + 1} = Neg(a{i})" for i in range(50))
    model = parse(f"""
        g (float[2] x) => (float[2] y) <float[2] a0 = {{1, 2}}> {{ {chain} y = Add(x, a50) }}""")
    assert apply_pass("fold-constants{max-total-bytes=24}", model).rules == {"fold-node": 50}


def test_shape_with_start_and_end(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[N, 3, 4, 5] x) => (int64[2] y, int64[4] z, int64 s) {
          a = Shape <start = 1, end = -1> (x)
          y = Neg(a)
          b = Shape(x)
          z = Neg(b)
          s = Size(x)
        }""")
    assert apply_pass("fold-constants", model).rules == {"fold-shape": 1, "fold-node": 1}
    held = [node.attributes.get("value") for node in model.graph]
    constants = [attribute.as_tensor().numpy().tolist() for attribute in held if attribute]
    assert constants == [[-3, -4]]


@pytest.mark.parametrize(
    ("pick", "folds"),
    [
        ("Gather(s, known)", True),
        ("Gather(s, unknown)", False),
        ("Slice(s, known, end)", True),
        ("Slice(s, unknown, end)", False),
    ],
)
def test_known_dimensions_of_a_partly_known_shape(
    pick: str, folds: bool, parse: Any, apply_pass: Any, evaluate: Any
) -> None:
    model = parse(f"""
        g (float[N, 3] x) => (int64[K] y)
        <int64[1] known = {{1}}, int64[1] unknown = {{0}}, int64[1] end = {{2}}>
        {{ s = Shape(x) d = {pick} y = Mul(d, d) }}""")
    feed = {"x": np.zeros((7, 3), np.float32)}
    before = evaluate(model, feed)["y"]
    assert apply_pass("fold-constants", model).modified is folds
    np.testing.assert_array_equal(evaluate(model, feed)["y"], before)


def test_a_declared_output_shape_is_not_believed(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[N] x) => (float[1] y, int64[1] s) { y = Neg(x)  s = Shape(y) }""")
    assert not apply_pass("fold-constants", model).modified


def test_folds_in_bodies_and_functions(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (bool c, float[1] x) => (float[1] y) <float[1] one = {1}> {
          t = local.f(x)
          y = If (c) <
            then_branch = a () => (float[1] r) { k = Neg(one)  r = Add(t, k) },
            else_branch = b () => (float[1] q) { q = Neg(one) }>
        }
        <domain: "local", opset_import: ["" : 21]>
        f (v) => (w) {
          two = Constant <value = float[1] {2}> ()
          four = Mul(two, two)
          w = Add(v, four)
        }""")
    feeds = [{"c": np.array(c), "x": np.array([3], np.float32)} for c in (True, False)]
    before = [evaluate(model, feed)["y"] for feed in feeds]
    assert apply_pass("fold-constants", model).rules == {"fold-node": 3}
    assert [evaluate(model, feed)["y"] for feed in feeds] == before


def test_quantization_stays_unless_asked_for(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    text = """
        g (float[2] x) => (float[2] y) <int8[2] q = {-3, 4}, float s = {0.5}, int8 z = {1}> {
          w = DequantizeLinear(q, s, z)
          y = Mul(x, w)
        }"""
    model = parse(text)
    assert not apply_pass("fold-constants", model).modified
    before = evaluate(model, {"x": np.array([1, 1], np.float32)})["y"]
    assert apply_pass("fold-constants{fold-qdq}", model).modified
    np.testing.assert_array_equal(evaluate(model, {"x": np.array([1, 1], np.float32)})["y"], before)


def test_packed_weights_stay_packed(parse: Any) -> None:
    model = parse(
        """
        g (float[2048] x) => (float[2048] y) { w = Cast <to = 1> (q)  y = Mul(x, w) }""".replace(
            ") {", ") <int8[2048] q = {" + ", ".join(["1"] * 2048) + "}> {", 1
        )
    )
    assert not FoldConstants().run(model).modified
    assert FoldConstants(fold_qdq=True).run(model).modified


def test_float16_stays_where_it_is_wanted(parse: Any, apply_pass: Any, evaluate: Any) -> None:
    text = """
        g (float[2] x) => (float[2] y) <float16[2] half = {15, 16}, int64[2] whole = {1, 2}> {
          wide = Cast <to = 1> (half)
          real = Cast <to = 1> (whole)
          sum = Add(x, real)
          y = Mul(sum, wide)
        }"""
    model = parse(text)
    x = {"x": np.array([1, 1], np.float32)}
    before = evaluate(model, x)["y"]
    assert apply_pass("fold-constants{keep-float16}", model).rules == {"fold-node": 1}
    assert sum(node.op_type == "Cast" for node in model.graph) == 1
    assert apply_pass("fold-constants", model).rules == {"fold-node": 1}
    np.testing.assert_array_equal(evaluate(model, x)["y"], before)


def test_real_numbers_stay_where_only_integers_are_folded(parse: Any, apply_pass: Any) -> None:
    model = parse(
        """g (float[3] x) => (float[1,2] y)
        <float[3,2] w = {1, 2, 3, 4, 5, 6}, int64 three = {3}, int64[1] flat = {-1}> {
          rows = Reshape(three, flat)
          lead = Constant<value_ints = [1]>()
          shape = Concat<axis = 0>(lead, rows)
          columns = Transpose(w)
          m = Reshape(x, shape)
          turned = Transpose(columns)
          y = MatMul(m, turned)
        }"""
    )
    result = apply_pass("fold-constants{only-integers}", model)
    left = [node.op_type for node in result.model.graph if node.op_type != "Constant"]
    assert left == ["Transpose", "Reshape", "Transpose", "MatMul"]


def test_random_nodes_and_nan_stay(parse: Any, apply_pass: Any) -> None:
    model = parse("""
        g (float[1] x) => (float[1] y) <float[1] zero = {0}> {
          r = RandomUniform <shape = [1]> ()
          n = Div(zero, zero)
          like = RandomNormalLike(zero)
          a = Add(r, n)
          b = Add(a, like)
          y = Add(x, b)
        }""")
    assert not apply_pass("fold-constants", model).modified


def test_what_cannot_be_computed_is_left_for_the_runtime(parse: Any) -> None:
    model = parse("""
        g (float[1] x) => (float y) <float[2] a = {1, 2}, int64[1] i = {7}> {
          p = Gather(a, i)
          y = Mul(x, p)
        }""")
    assert not FoldConstants().run(model).modified
