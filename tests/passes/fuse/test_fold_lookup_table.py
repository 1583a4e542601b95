from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.fuse.fold_lookup_table import FoldLookupTable
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
AssertText = Callable[[ir.Model, str], None]
Apply = Callable[[Pass | str, ir.Model], PassResult]

TABLE = "float[3,2] table = {0, 1, 2, 3, 4, -5}"
IDS = np.array([[0, 1, 2, -1, -3], [2, 2, 1, 0, -2]], dtype=np.int64)


def close(model: ir.Model, rewritten: ir.Model, feed: dict[str, Array]) -> None:
    """Both compute the same, within the gate of REASSOCIATED, optimizations off and on."""
    for config in (REFERENCE, DEPLOYMENT):
        wanted, got = Session(model, config).run(feed), Session(rewritten, config).run(feed)
        assert list(wanted) == list(got)
        for name, array in wanted.items():
            assert got[name].dtype == array.dtype
            assert got[name].shape == array.shape
            tolerance = 1e-5 * np.abs(array).max(initial=0) + 1e-7
            assert np.abs(got[name] - array).max(initial=0) <= tolerance, name


def test_bias_and_activation_are_computed_on_the_table(
    parse: Parse, assert_text: AssertText, apply_pass: Apply
) -> None:
    text = f"""g (int64[N,5] ids) => (float[N,5,2] y)
        <{TABLE}, float[1,1,2] bias = {{1, -1}}>
        {{ r = Gather(table, ids)  b = Add(bias, r)  y = Relu(b) }}"""
    model = parse(text)
    result = apply_pass(FoldLookupTable(), model)
    assert_text(
        model,
        f"""g (int64[N,5] ids) => (float[N,5,2] y)
        <{TABLE}, float[1,1,2] bias = {{1, -1}}, float[3,2] y_table = {{1, 0, 3, 2, 5, 0}}>
        {{ y = Gather(y_table, ids) }}""",
    )
    assert result.rules == {"fold-lookup-table": 1}
    assert result.statistics == {
        "initializers_added": 1, "inserted": 1, "replaced": 1, "erased": 3
    }  # fmt: skip
    close(parse(text), model, {"ids": IDS})


def test_a_gelu_that_reads_its_input_several_times_is_folded(
    parse: Parse, apply_pass: Apply
) -> None:
    text = f"""g (int32[N,5] ids) => (float[N,5,2] y)
        <{TABLE}, float c = {{0.044715}}, float k = {{0.7978845}}, float one = {{1}},
         float half = {{0.5}}>
        {{ x = Gather<axis = -2>(table, ids)  a = Mul(x, x)  b = Mul(a, x)  d = Mul(c, b)
           e = Add(x, d)  f = Mul(k, e)  t = Tanh(f)  u = Add(t, one)  v = Mul(u, half)
           w = Mul(x, v)  y = Identity(w) }}"""
    model = parse(text)
    apply_pass("fold-lookup-table", model)
    assert [node.op_type for node in model.graph] == ["Gather"]
    close(parse(text), model, {"ids": IDS.astype(np.int32)})


@pytest.mark.parametrize(
    ("operators", "opset"),
    [
        ("y = LayerNormalization<axis = 2, epsilon = 0.01>(r, scale, scale)", 21),
        ("y = LayerNormalization(r, scale)", 17),
        ("y = Softmax(r)", 21),
        ("y = Softmax<axis = 2>(r)", 11),
        ("y = LogSoftmax<axis = -1>(r)", 13),
        ("y = Clip<min = -0.5, max = 1.5>(r)", 10),
        ("y = Clip(r, , scalar)", 21),
        ("y = Pow(scalar, r)", 21),
        ("y = PRelu(r, scale)", 16),
        ("y = Max(r, scale, scalar)", 21),
    ],
)
def test_operators_that_work_row_by_row(
    parse: Parse, apply_pass: Apply, operators: str, opset: int
) -> None:
    text = f"""g (int64[N,5] ids) => (float[N,5,2] y)
        <{TABLE}, float[2] scale = {{0.5, 2}}, float scalar = {{1.5}}>
        {{ r = Gather(table, ids)  {operators} }}"""
    model = parse(text, opset)
    apply_pass(FoldLookupTable(), model)
    assert [node.op_type for node in model.graph] == ["Gather"]
    close(parse(text, opset), model, {"ids": IDS})


@pytest.mark.parametrize(
    "unary",
    [
        *("Abs", "Celu", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"),
        *("Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"),
        *("Gelu<approximate = \"tanh\">", "Celu<alpha = 0.5>", "Elu<alpha = 2.0>"),
        *("HardSigmoid<alpha = 0.1, beta = 0.3>", "LeakyRelu<alpha = 0.2>"),
    ],
)  # fmt: skip
def test_every_unary_operator(parse: Parse, apply_pass: Apply, unary: str) -> None:
    text = f"g (int64[N,5] ids) => (float[N,5,2] y) <{TABLE}> {{ r = Gather(table, ids) " + (
        f"y = {unary}(r) }}"
    )
    model = parse(text)
    apply_pass(FoldLookupTable(), model)
    assert [node.op_type for node in model.graph] == ["Gather"]
    close(parse(text), model, {"ids": IDS})


@pytest.mark.parametrize("unary", ["Log", "Reciprocal", "Sqrt"])
def test_operators_defined_for_positive_numbers(
    parse: Parse, apply_pass: Apply, unary: str
) -> None:
    text = f"""g (int64[N] ids) => (double[N] y) <double[3] table = {{0.5, 1.0, 9.0}}>
        {{ r = Gather(table, ids)  y = {unary}(r) }}"""
    model = parse(text)
    apply_pass(FoldLookupTable(), model)
    assert [node.op_type for node in model.graph] == ["Gather"]
    close(parse(text), model, {"ids": IDS[0]})


REFUSED = {
    "bias that differs between positions": (
        f"g (int64[N,5] ids) => (float[N,5,2] y) <{TABLE}, float[5,1] c = {{1, 2, 3, 4, 5}}>"
        "{ r = Gather(table, ids)  y = Add(r, c) }"
    ),
    "constant that adds an axis": (
        f"g (int64[N] ids) => (float[1,N,2] y) <{TABLE}, float[1,1,2] c = {{1, 2}}>"
        "{ r = Gather(table, ids)  y = Add(r, c) }"
    ),
    "constant that widens the row": (
        "g (int64[N] ids) => (float[N,2] y) <float[2,1] table = {1, 2}, float[2] c = {1, 2}>"
        "{ r = Gather(table, ids)  y = Add(r, c) }"
    ),
    "table that a caller can override": (
        "g (int64[N] ids, float[3,2] table) => (float[N,2] y) <float[3,2] table = {0,1,2,3,4,5}>"
        "{ r = Gather(table, ids)  y = Relu(r) }"
    ),
    "operand that a caller can override": (
        f"g (int64[N] ids, float c) => (float[N,2] y) <{TABLE}, float c = {{1}}>"
        "{ r = Gather(table, ids)  y = Add(r, c) }"
    ),
    "rows that are an output too": (
        f"g (int64[N] ids) => (float[N,2] r, float[N,2] y) <{TABLE}>"
        "{ r = Gather(table, ids)  y = Relu(r) }"
    ),
    "columns": (
        f"g (int64[N] ids) => (float[3,N] y) <{TABLE}>"
        "{ r = Gather<axis = 1>(table, ids)  y = Relu(r) }"
    ),
    "half precision": (
        "g (int64[N] ids) => (float16[N] y) <float16[3] table = {0, 1, 2}>"
        "{ r = Gather(table, ids)  y = Relu(r) }"
    ),
    "softmax over the ids": (
        f"g (int64[N] ids) => (float[N,2] y) <{TABLE}>"
        "{ r = Gather(table, ids)  y = Softmax<axis = 0>(r) }"
    ),
    "softmax before opset 13 over more than the row": (
        '<ir_version: 8, opset_import: ["" : 11]>'
        f"g (int64[N,5] ids) => (float[N,5,2] y) <{TABLE}>"
        "{ r = Gather(table, ids)  y = Softmax(r) }"
    ),
    "steps, where rounding decides": (
        f"g (int64[N] ids) => (float[N,2] y) <{TABLE}>{{ r = Gather(table, ids)  y = Floor(r) }}"
    ),
    "reader in a body": (
        f"""g (int64[N] ids, bool c) => (float[N,2] y) <{TABLE}>
        {{ r = Gather(table, ids)
           y = If(c) <then_branch = t () => (float[N,2] u) {{ u = Relu(r) }},
                      else_branch = e () => (float[N,2] v) {{ v = Neg(r) }}> }}"""
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_left_alone(
    parse: Parse, text_of: Callable[[ir.Model], str], apply_pass: Apply, reason: str
) -> None:
    model = parse(REFUSED[reason])
    before = text_of(model)
    assert not apply_pass(FoldLookupTable(), model).modified
    assert text_of(model) == before


@pytest.mark.parametrize(
    ("operators", "reason"),
    [
        ("b = Mul(r, c)  a = Exp(b)  y = Reciprocal(a)", "infinite or NaN"),
        ("a = Sqrt(r)  y = Relu(a)", "infinite or NaN"),
        ("a = Add(r, huge)  y = Sub(a, huge)", "hangs on how"),
    ],
)
def test_what_rounding_once_would_change_is_explained(
    parse: Parse, apply_pass: Apply, operators: str, reason: str
) -> None:
    model = parse(
        f"""g (int64[N] ids) => (float[N,2] y) <{TABLE}, float huge = {{1e8}}, float c = {{100}}>
        {{ r = Gather(table, ids)  {operators} }}"""
    )
    result = apply_pass(FoldLookupTable(), model)
    assert not result.modified
    assert reason in result.remarks[0].reason


def test_a_result_that_nothing_reads_is_no_exit(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        f"""g (int64[N] ids) => (float[N,2] y) <{TABLE}>
        {{ r = Gather(table, ids)  dead = Exp(r)  y = Relu(r) }}"""
    )
    apply_pass(FoldLookupTable(), model)
    assert [node.op_type for node in model.graph] == ["Gather"]


def test_only_what_leads_to_one_exit_is_folded(
    parse: Parse, assert_text: AssertText, apply_pass: Apply
) -> None:
    header = "g (int64[N] ids) => (float[N,2] y, float[N,2] z) "
    text = f"{header} <{TABLE}> {{ r = Gather(table, ids)  a = Neg(r)  y = Relu(a)  z = Abs(a) }}"
    model = parse(text)
    apply_pass(FoldLookupTable(), model)
    assert_text(
        model,
        f"""{header} <{TABLE}, float[3,2] a_table = {{-0.0, -1, -2, -3, -4, 5}}>
        {{ a_row = Gather(a_table, ids)  y = Relu(a_row)  z = Abs(a_row) }}""",
    )
    close(parse(text), model, {"ids": IDS[0]})


def test_more_exits_on_request(parse: Parse, assert_text: AssertText, apply_pass: Apply) -> None:
    header = "g (int64[N] ids) => (float[N,2] r, float[N,2] y, float[N,2] z) "
    text = f"{header} <{TABLE}> {{ r = Gather(table, ids)  y = Relu(r)  z = Abs(y) }}"
    model = parse(text)
    assert not apply_pass(FoldLookupTable(max_exits=1), model).modified
    apply_pass(FoldLookupTable(max_exits=3), model)
    assert_text(
        model,
        f"""{header} <{TABLE}, float[3,2] y_table = {{0, 1, 2, 3, 4, 0}},
          float[3,2] z_table = {{0, 1, 2, 3, 4, 0}}>
        {{ y = Gather(y_table, ids)  z = Gather(z_table, ids)  r = Gather(table, ids) }}""",
    )
    close(parse(text), model, {"ids": IDS[0]})


def test_a_captured_table_in_a_body(parse: Parse, apply_pass: Apply) -> None:
    text = f"""g (int64[N] ids, bool c) => (float[N,2] y) <{TABLE}, float[2] w = {{1, 2}}>
        {{ y = If(c) <then_branch = t () => (float[N,2] u) {{ r = Gather(table, ids)
                                                              u = Add(r, w) }},
                      else_branch = e () => (float[N,2] v) {{ s = Gather(table, ids)
                                                              v = Identity(s) }}> }}"""
    model = parse(text)
    assert apply_pass(FoldLookupTable(), model).rules == {"fold-lookup-table": 2}
    for condition in (True, False):
        close(parse(text), model, {"ids": IDS[0], "c": np.array(condition)})


def test_a_shared_table_stays_as_it_is(
    parse: Parse, assert_text: AssertText, apply_pass: Apply
) -> None:
    header = "g (int64[N] ids) => (float[N,2] y, float[N,2] z)"
    text = f"""{header} <{TABLE}>
        {{ r = Gather(table, ids)  y = Relu(r)  s = Gather(table, ids)  z = Neg(s) }}"""
    model = parse(text)
    assert apply_pass(FoldLookupTable(), model).rules == {"fold-lookup-table": 2}
    assert_text(
        model,
        f"""{header} <{TABLE}, float[3,2] y_table = {{0, 1, 2, 3, 4, 0}},
          float[3,2] z_table = {{-0.0, -1, -2, -3, -4, 5}}>
        {{ y = Gather(y_table, ids)  z = Gather(z_table, ids) }}""",
    )


@pytest.mark.parametrize(
    ("ids", "shared", "folded"),
    [("5", False, True), ("2", False, False), ("N", False, False), ("5", True, False)],
)
def test_large_tables(
    parse: Parse, apply_pass: Apply, ids: str, shared: bool, folded: bool
) -> None:
    more = "z = Relu(table)" if shared else "z = Relu(unused)"
    model = parse(
        f"""g (int64[{ids}] ids) => (float[{ids},2] y, float[3,2] z)
        <{TABLE}, float[3,2] unused = {{0, 0, 0, 0, 0, 0}}>
        {{ r = Gather(table, ids)  y = Relu(r)  {more} }}"""
    )
    result = apply_pass(FoldLookupTable(max_rows=2), model)
    assert result.modified == folded
    assert len(result.remarks) == (not folded)


UNARY = ("Abs", "Erf", "HardSwish", "LeakyRelu", "Mish", "Neg", "Relu", "Sigmoid", "Tanh")
BINARY = ("Add", "Max", "Min", "Mul", "Sub")


@st.composite
def regions(draw: st.DrawFn) -> str:
    """Random acyclic regions of elementwise nodes behind a lookup, some with other readers."""
    lines, names = ["v0 = Gather(table, ids)"], ["v0"]
    for index in range(1, draw(st.integers(1, 8)) + 1):
        if draw(st.booleans()):
            call = f"{draw(st.sampled_from(UNARY))}({draw(st.sampled_from(names))})"
        else:
            operands = [*names, "scalar", "row", "padded"]
            first, second = draw(st.sampled_from(names)), draw(st.sampled_from(operands))
            pair = (second, first) if draw(st.booleans()) else (first, second)
            call = f"{draw(st.sampled_from(BINARY))}({pair[0]}, {pair[1]})"
        names.append(f"v{index}")
        lines.append(f"v{index} = {call}")
    outputs = {names[-1], draw(st.sampled_from(names))}
    declared = ", ".join(f"float[N,5,2] {name}" for name in sorted(outputs))
    return f"""<ir_version: 10, opset_import: ["" : 21]> g (int64[N,5] ids) => ({declared})
        <{TABLE}, float scalar = {{-0.75}}, float[2] row = {{0.5, -1.5}},
         float[1,1,2] padded = {{1.25, 0.25}}>
        {{ {" ".join(lines)} }}"""


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=regions(), exits=st.integers(1, 3))
def test_random_regions(text: str, exits: int) -> None:
    original = ir.from_proto(onnx.parser.parse_model(text))
    model = ir.from_proto(onnx.parser.parse_model(text))
    FoldLookupTable(max_exits=exits).run(model)
    onnx.checker.check_model(ir.to_proto(model))
    close(original, model, {"ids": IDS})
