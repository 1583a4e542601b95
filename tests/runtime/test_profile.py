"""Where the time goes: the executed nodes, and whose work in the model each of them does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxfold.passes.provenance import node_name
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.profile import NodeTime, Profile, execution_profile
from onnxfold.runtime.trial import feeds_for

FIXTURES = sorted(path.name for path in (Path(__file__).parents[2] / "fixtures").glob("*.onnx"))


def profiled(model: ir.Model) -> Profile:
    return execution_profile(model, list(feeds_for(model, None).first(1)), runs=1)


@pytest.mark.parametrize("name", FIXTURES)
def test_every_executed_node_does_the_work_of_nodes_of_the_model(
    name: str, fixtures_dir: Path
) -> None:
    model = ir.load(fixtures_dir / name)
    profile = profiled(model)
    known = {node_name(node) for node in all_nodes(model)}
    assert profile.times
    assert all(each.covers and known.issuperset(each.covers) for each in profile.times)
    assert sum(profile.shares([[each] for each in known])) == pytest.approx(1.0)


def test_a_fused_node_does_the_work_of_all_it_is_made_of(
    parse: Callable[..., ir.Model],
) -> None:
    weights = ", ".join(str(code - 32) for code in range(64))
    model = parse(f"""
        g (float[4,8] x) => (float[4,8] y)
        <float s = {{0.1}}, uint8 z = {{128}}, int8[8,8] w = {{{weights}}},
         float t = {{0.02}}, int8 v = {{0}}>
        {{
            [q] c = QuantizeLinear(x, s, z)
            [d] r = DequantizeLinear(c, s, z)
            [dw] k = DequantizeLinear(w, t, v)
            [product] m = MatMul(r, k)
            [q2] n = QuantizeLinear(m, s, z)
            [d2] o = DequantizeLinear(n, s, z)
            y = Softmax(o)
        }}
    """)
    covers = {each.op_type: set(each.covers) for each in profiled(model).times}
    assert covers["QLinearMatMul"] == {"d", "dw", "product", "q2"}
    assert covers["QuantizeLinear"] == {"q"}
    assert covers["Softmax"] == {"y"}


def test_names_that_json_cannot_hold_as_they_are(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (float[2,2] x) => (float[2,2] y) { [first] h = Sin(x)  [second] y = MatMul(h, x) }
    """)
    first, second = model.graph
    first.name, second.name = '{"layer": [1]}', "back\\slash\n"
    profile = profiled(model)
    assert {each.covers for each in profile.times} == {(first.name,), (second.name,)}
    assert [each.name for each in model.graph] == ['{"layer": [1]}', "back\\slash\n"]


def test_changes_of_layout_count_for_what_they_are_made_for(fixtures_dir: Path) -> None:
    times = profiled(ir.load(fixtures_dir / "conv_net.onnx")).times
    covers = {each.node: set(each.covers) for each in times}
    reorder = [each for each in times if each.op_type == "ReorderOutput"]
    first = [each for each in times if "conv_1" in each.covers]
    assert len(first) == 1
    assert all("maxpool_2" in covers[each.node] for each in reorder)


def test_an_inlined_function_does_the_work_of_its_body(fixtures_dir: Path) -> None:
    model = ir.load(fixtures_dir / "local_functions.onnx")
    (dense,) = [each for each in model.functions.values() if each.name == "Dense"]
    covered = {name for each in profiled(model).times for name in each.covers}
    assert covered.issuperset(node_name(node) for node in dense.graph)


def test_time_is_shared_out_evenly_and_bodies_count_once() -> None:
    profile = Profile(
        (
            NodeTime("loop", "Loop", "cpu", 90.0, 1, ("loop",)),
            NodeTime("inner", "Add", "cpu", 10.0, 3, ("inner",)),
            NodeTime("fused", "QLinearConv", "cpu", 70.0, 1, ("q", "conv")),
        )
    )
    assert profile.total == 100.0
    assert profile.shares([["inner"], ["conv", "loop"], ["other"]]) == [0.3, 0.35, 0.0]
    assert [each.node for each in profile.slowest()] == ["loop", "fused", "inner"]


def test_a_profile_ends_in_time(fixtures_dir: Path) -> None:
    model = ir.load(fixtures_dir / "conv_net.onnx")
    feeds = list(feeds_for(model, None).first(1))
    profile = execution_profile(model, feeds, runs=10**9, max_seconds=0.0)
    assert all(each.calls == 1 for each in profile.times)
