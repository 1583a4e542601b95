"""Islands: every Q, DQ and float operator that a fold leaves has a reason, and the right one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from fixtures.fake_quant.random_graph import draw
from onnxfold.passes.island_reasons import Cause
from onnxfold.passes.islands import Island, find_islands
from onnxfold.passes.kept_remarks import KEY
from onnxfold.passes.op_kinds import OpKind, node_kinds
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import FOLD, TIDY
from onnxfold.passes.registry import parse_passes

FIXTURES = sorted(path.name for path in (Path(__file__).parents[3] / "fixtures").glob("*.onnx"))
TARGETS = ("ort", "standard", "qdq", "integer")


def folded(model: ir.Model, target: str = "ort") -> tuple[ir.Model, tuple[Island, ...]]:
    passes = parse_passes(f"{FOLD},fold-qdq{{target={target}}},{TIDY}")
    done = Pipeline(passes).run(model.clone())
    remarks = [remark for _, result in done.results for remark in result.remarks]
    return done.model, find_islands(done.model, remarks, qdq_form=target == "qdq")


@functools.cache
def drawn(seed: int) -> onnx.ModelProto:
    """A random graph, drawn once for all targets."""
    return draw(random.Random(seed)).proto()


def assert_complete(model: ir.Model, islands: tuple[Island, ...], target: str) -> None:
    """Each Q, DQ and float operator is in exactly one island, and each island has a reason."""
    assert [island for island in islands if not island.reason] == []
    nodes = [name for island in islands for name in island.nodes]
    assert len(nodes) == len(set(nodes))
    if target == "qdq":
        return
    kinds = (OpKind.FLOAT, OpKind.QUANTIZE, OpKind.DEQUANTIZE)
    left = {node.name or node.outputs[0].name for node, kind in node_kinds(model).kinds.items()
            if kind in kinds}  # fmt: skip
    assert left <= set(nodes)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FIXTURES)
def test_no_island_of_a_fixture_is_without_a_reason(
    name: str, target: str, fixtures_dir: Path
) -> None:
    model, islands = folded(ir.load(fixtures_dir / name), target)
    assert_complete(model, islands, target)
    again, islands = folded(ir.from_proto(ir.to_proto(model)), target)
    assert_complete(again, islands, target)


@pytest.mark.parametrize("target", TARGETS)
def test_no_island_of_a_random_graph_is_without_a_reason(target: str) -> None:
    for seed in range(60):
        model, islands = folded(ir.from_proto(drawn(seed)), target)
        assert_complete(model, islands, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_island_of_many_random_graphs_is_without_a_reason(target: str) -> None:
    for seed in range(1000, 1200):
        model, islands = folded(ir.from_proto(drawn(seed)), target)
        assert_complete(model, islands, target)


_W = "int8[2,2,1,1] w = {9, -20, 33, 4}, float sw = {0.02}"
_TEXT = """
agraph (%s) => (%s) <float s = {0.05}, uint8 z = {120}, float t = {0.07}, uint8 u = {90}, %s>
{ %s }
"""
_QUANTIZED_INPUT = "uint8[1,2,4,4] q"
_CODES = "uint8[1,2,4,4] y"
_REAL = "float[1,2,4,4] y"

ON_PURPOSE = {
    "a Concat ahead of the first quantizer": (
        "float[1,1,4,4] f",
        _CODES,
        "m = Concat<axis = 1> (f, f) y = QuantizeLinear (m, s, z)",
        "Concat",
    ),
    "float arithmetic that ends in a quantizer": (
        "float[1,2,4,4] f",
        _CODES,
        "m = Mul (f, f) y = QuantizeLinear (m, s, z)",
        "Mul",
    ),
    "float arithmetic on the result": (
        _QUANTIZED_INPUT,
        _REAL,
        "x = DequantizeLinear (q, s, z) m = Add (x, k) y = Erf (m)",
        "Add",
    ),
    "a float convolution beside the integer ones": (
        _QUANTIZED_INPUT,
        _REAL,
        "x = DequantizeLinear (q, s, z) y = Conv (x, wf)",
        "Conv",
    ),
}


@pytest.mark.parametrize("case", ON_PURPOSE)
def test_what_is_float_on_one_side_is_so_on_purpose(
    case: str, parse: Callable[..., ir.Model]
) -> None:
    inputs, outputs, body, op_type = ON_PURPOSE[case]
    constants = "float[2,1,1] k = {0.1, 0.2}, float[2,2,1,1] wf = {0.1, 0.2, 0.3, 0.4}"
    _, islands = folded(parse(_TEXT % (inputs, outputs, constants, body)))
    (island,) = [each for each in islands if op_type in each.ops]
    assert island.cause is Cause.EDGE
    assert "QuantizeLinear" in island.reason or "DequantizeLinear" in island.reason
    assert island.advice.startswith("quantize '")


def test_real_numbers_that_a_cast_gives_are_not_followed(parse: Callable[..., ir.Model]) -> None:
    body = "r = Cast<to = 1> (q) m = Sin (r) y = Cast<to = 2> (m)"
    _, islands = folded(parse(_TEXT % (_QUANTIZED_INPUT, _CODES, _W, body)))
    (island,) = islands
    assert island.cause is Cause.FIXABLE
    assert island.reason == "Cast 'r' gives it real numbers, and no type with them"


def test_a_second_fold_knows_what_the_first_put_in_float(
    fake_quant: Callable[..., Any],
) -> None:
    graph = fake_quant()
    x = graph.fake(graph.input((1, 16, 12, 12)), 0.03, 120)
    pooled = graph.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    graph.outputs.append(graph.fake(pooled, 0.03, 120))
    model = graph.model()
    once, islands = folded(model.clone())
    assert {island.cause for island in islands} == {Cause.EDGE, Cause.SLOWER}
    assert all("--target standard" in each.advice for each in islands if each.cause is Cause.SLOWER)
    _, standard = folded(model.clone(), "standard")
    assert {island.cause for island in standard} == {Cause.EDGE}
    _, again = folded(ir.from_proto(ir.to_proto(once)))
    assert [each.nodes for each in again] == [each.nodes for each in islands]
    (pool,) = [island for island in again if "MaxPool" in island.ops]
    assert pool.cause is Cause.SLOWER
    assert pool.reason == next(each.reason for each in islands if "MaxPool" in each.ops)
    for node in once.graph:
        node.metadata_props.pop(KEY, None)
    _, without = folded(once)
    (pool,) = [island for island in without if "MaxPool" in island.ops]
    assert "earlier fold" in pool.reason, "all that there is to say of older folds"


def test_dynamic_quantization_says_what_it_would_take(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (float[2,4] x) => (float[2,4] y)
        <int8[4,4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, int8 v = {0}>
        {
            c, s, z = DynamicQuantizeLinear (x)
            a = MatMulInteger (c, w, z, v)
            r = Cast<to = 1> (a)
            y = Mul (r, s)
        }
    """)
    _, islands = folded(model)
    assert {each.cause for each in islands} == {Cause.FIXABLE}
    assert all("at run time" in each.reason and "compile" in each.advice for each in islands)


def test_an_island_goes_on_in_the_body_it_flows_into(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (uint8[2,4] q, bool b) => (uint8[2,4] y)
        <float s = {0.1}, uint8 z = {3}>
        {
            d = DequantizeLinear (q, s, z)
            m = If (b) <
                then_branch = t () => (float[2,4] o) { o = Hardmax (d) },
                else_branch = e () => (float[2,4] p) { p = Identity (d) }>
            y = QuantizeLinear (m, s, z)
        }
    """)
    _, islands = folded(model)
    (island,) = islands
    assert {"DequantizeLinear", "Hardmax", "QuantizeLinear"} <= set(island.ops)
    assert island.cause is Cause.IMPOSSIBLE
    assert island.reason == "there is no integer rule for Hardmax"


def test_what_leaves_the_graph_through_a_branch_is_at_its_edge(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse("""
        g (uint8[2,4] q, bool b) => (float[2,4] y)
        <float s = {0.1}, uint8 z = {3}>
        {
            y = If (b) <
                then_branch = t () => (float[2,4] o) { o = DequantizeLinear (q, s, z) },
                else_branch = e () => (float[2,4] p) { p = DequantizeLinear (q, s, z) }>
        }
    """)
    (island,) = find_islands(model)
    assert (island.cause, island.reason) == (Cause.EDGE, "the graph output 'y' is float")


def test_constants_quantized_in_the_graph_belong_to_what_reads_them(
    parse: Callable[..., ir.Model],
) -> None:
    body = "c = QuantizeLinear (k, s, z) d = DequantizeLinear (c, s, z) y = Add (f, d)"
    constants = "float[2,1,1] k = {0.1, 0.2}"
    model = parse(_TEXT % ("float[1,2,4,4] f", _REAL, constants, body))
    (island,) = find_islands(model)
    assert island.ops == {"Add": 1, "DequantizeLinear": 1, "QuantizeLinear": 1}
    assert (island.reads, island.writes) == (("f",), ("y",))


SAID = {
    "an op between codes": (
        f"{_QUANTIZED_INPUT}, float[1,2,4,4] f",
        _CODES,
        "x = DequantizeLinear (q, s, z) m = Add (x, f) y = QuantizeLinear (m, t, u)",
        ("Add", "'f' is not quantized", "quantize 'f' per tensor to 8 bits"),
    ),
    "a constant between codes": (
        _QUANTIZED_INPUT,
        _CODES,
        "x = DequantizeLinear (q, s, z) m = Add (x, k) y = QuantizeLinear (m, t, u)",
        ("Add", "its integer kernel is slower than the float one (measured)",
         "--target standard takes its integer kernel all the same"),
    ),
    "quantized weights that stay float": (
        "float[1,2,4,4] f",
        _REAL,
        "wf = DequantizeLinear (w, sw) y = Conv (f, wf)",
        ("Conv", "only its weights are quantized: 'f' is not quantized",
         "quantize the activation 'f'"),
    ),
    "an op between codes without a rule": (
        _QUANTIZED_INPUT,
        _CODES,
        "x = DequantizeLinear (q, s, z) m = Hardmax (x) y = QuantizeLinear (m, t, u)",
        ("Hardmax", "there is no integer rule for Hardmax", ""),
    ),
    "behind more float arithmetic": (
        _QUANTIZED_INPUT,
        _CODES,
        "x = DequantizeLinear (q, s, z) l = Mul (x, x) m = Hardmax (l) "
        "y = QuantizeLinear (m, t, u)",
        ("Hardmax", "there is no integer rule for Hardmax", ""),
    ),
    "codes of 16 bits": (
        "uint16[1,2,4,4] h",
        "uint16[1,2,4,4] y",
        "x = DequantizeLinear (h, s, z16) m = Mul (x, x) y = QuantizeLinear (m, s, z16)",
        ("DequantizeLinear", "'x' is quantized to uint16, which no integer kernel takes",
         "use one constant float32 scale per tensor and 8 bits"),
    ),
    "a float output": (
        _QUANTIZED_INPUT,
        _REAL,
        "y = DequantizeLinear (q, s, z)",
        ("", "the graph output 'y' is float", "read it as codes"),
    ),
    "two scales for one value": (
        _QUANTIZED_INPUT,
        _CODES,
        "x = DequantizeLinear (q, s, z) y = QuantizeLinear (x, t, u)",
        ("", "'q' is requantized: its readers disagree about its scale",
         "use one scale and zero point on both sides"),
    ),
    "a float input": (
        "float[1,2,4,4] f",
        _CODES,
        "y = QuantizeLinear (f, s, z)",
        ("", "the graph input 'f' is float", "feed it as codes"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_was_meant_to_be_integer_is(case: str, parse: Callable[..., ir.Model]) -> None:
    inputs, outputs, body, expected = SAID[case]
    constants = f"{_W}, float[2,1,1] k = {{0.1, 0.2}}"
    constants += ", uint16 z16 = {0}"
    _, islands = folded(parse(_TEXT % (inputs, outputs, constants, body)))
    reasons = [reason for island in islands for reason in island.reasons]
    assert expected in [(each.op_type, each.reason, each.advice) for each in reasons]
