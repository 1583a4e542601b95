"""Placement: which operators form quantized regions, and which tensors need a range."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.placement import Placement, PlacementOptions, tensors_to_observe

Parse = Callable[..., ir.Model]
ALL = PlacementOptions()


def _names(placement: Placement) -> list[str]:
    return [node_name(unit.node) for unit in placement.units]


def _groups(placement: Placement) -> list[list[str]]:
    return [[value.name or "" for value in group.values] for group in placement.groups]


CHAIN = """
g (float[N,4,8,8] x) => (float[N,4,8,8] y)
<float[4,4,1,1] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
  lone = Add(x, x)
  c1 = Conv(lone, w)
  r1 = Relu(c1)
  s1 = Sigmoid(c1)
  a = Add(r1, s1)
  t = Transpose<perm=[0,1,3,2]>(a)
  c2 = Conv(t, w)
  y = Add(c2, c2)
}
"""


def test_only_what_lies_between_linear_operators_is_quantized(parse: Parse) -> None:
    # "lone" reads nothing quantized, and nothing quantized reads "y".
    placement = Placement.of(parse(CHAIN), ALL)
    assert _names(placement) == ["c1", "r1", "a", "t", "c2"]
    assert _groups(placement) == [["lone"], ["c1"], ["r1"], ["s1"], ["a", "t"], ["c2"]]


def test_a_movement_shares_the_range_of_what_it_moves(parse: Parse) -> None:
    assert tensors_to_observe(parse(CHAIN), ALL) == ("lone", "c1", "r1", "s1", "a", "c2")


def test_a_clamp_is_merged_into_the_operator_before_it(parse: Parse) -> None:
    model = parse("""
    g (float[N,4,8,8] x) => (float[N,4,8,8] y)
    <float[4,4,1,1] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float low = {0}, float high = {6}>
    {
      c1 = Conv(x, w)
      r1 = Clip(c1, low, high)
      c2 = Conv(r1, w)
      y = Relu(c2)
    }""")
    placement = Placement.of(model, ALL)
    assert [[node.op_type for node in unit.tail] for unit in placement.units] == [
        ["Clip"],
        ["Relu"],
    ]
    assert _groups(placement) == [["x"], ["r1"], ["y"]]


def test_the_bias_after_a_matmul_is_merged_and_a_float_tail_has_no_pair(parse: Parse) -> None:
    model = parse("""
    g (float[N,3,4] x) => (float[N,3,2] y)
    <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float[4] b = {1,2,3,4},
     float[4,2] v = {1,0,0,0, 0,1,0,0}>
    {
      m = MatMul(x, w)
      a = Add(b, m)
      r = Relu(a)
      p = MatMul(r, v)
      y = Softmax(p)
    }""")
    placement = Placement.of(model, ALL)
    assert [[node.op_type for node in unit.tail] for unit in placement.units] == [
        ["Add", "Relu"],
        [],
    ]
    assert _groups(placement) == [["x"], ["r"]]


def test_the_inputs_and_the_output_of_concat_are_one_group(parse: Parse) -> None:
    model = parse("""
    g (float[N,1,4,4] x, float[N,1,4,4] z) => (float[N,2,4,4] y)
    <float[1,1,1,1] w = {2}, float[2,3,1,1] v = {1,0,0,1,0,0}, float[1,1,4,4] k = {9,0,0,0,0,0,0,0,
     0,0,0,0,0,0,0,0}>
    {
      c1 = Conv(x, w)
      c2 = Conv(z, w)
      c = Concat<axis=1>(c1, k, c2)
      y = Conv(c, v)
    }""")
    placement = Placement.of(model, ALL)
    together = next(group for group in placement.groups if len(group.values) > 1)
    assert {value.name for value in together.values} == {"c1", "c2", "c"}
    assert [value.name for value in together.observed] == ["c1", "c2"]
    assert [value.name for value in together.constants] == ["k"]


def test_shapes_ids_and_scalars_are_left_alone(parse: Parse) -> None:
    model = parse("""
    g (int64[N] ids, float[4,6] table) => (float[N,6] y)
    <float[6,6] w = {1,0,0,0,0,0, 0,1,0,0,0,0, 0,0,1,0,0,0, 0,0,0,1,0,0, 0,0,0,0,1,0, 0,0,0,0,0,1},
     float half = {0.5}, int64[1] last = {6}>
    {
      rows = Gather(table, ids)
      m1 = MatMul(rows, w)
      scaled = Mul(m1, half)
      m2 = MatMul(scaled, w)
      s = Shape(ids)
      shape = Concat<axis=0>(s, last)
      moved = Reshape(m2, shape)
      y = MatMul(moved, w)
    }""")
    placement = Placement.of(model, ALL)
    assert _names(placement) == ["m1", "m2", "moved", "y"]
    assert _groups(placement) == [["rows"], ["scaled"], ["m2", "moved"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PlacementOptions(op_types=("Conv",)), ["c1", "c2"]),
        (PlacementOptions(skip=("c1",)), ["c2"]),
        (PlacementOptions(only=("c1",)), ["c1"]),
        (PlacementOptions(skip=("a",)), ["c1", "c2"]),
    ],
)
def test_selection(parse: Parse, options: PlacementOptions, expected: list[str]) -> None:
    assert _names(Placement.of(parse(CHAIN), options)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlacementOptions(op_types=("Conf",)), r"'Conf' cannot be quantized; did you mean 'Conv'"),
        (PlacementOptions(skip=("c3",)), "no node 'c3'; did you mean"),
        (PlacementOptions(only=("nothing",)), "no node 'nothing'"),
    ],
)
def test_selecting_what_is_not_there_is_an_error(
    parse: Parse, options: PlacementOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Placement.of(parse(CHAIN), options)


def test_every_linear_operator_left_in_float_has_a_reason(parse: Parse) -> None:
    model = parse("""
    g (float16[1,1] h, float[1,1,1,1] x, float[1,1,1,1] w, bool b) => (float16[1,1] y, float z)
    <float16[1,1] v = {1}, float[1,1] k = {1}>
    {
      y = MatMul(h, v)
      c = Conv(x, w)
      const = MatMul(k, k)
      z = If (b) <then_branch = yes () => (float[1,1] p) { p = MatMul(k, k) },
                  else_branch = no () => (float[1,1] q) { q = Identity(k) }>
    }""")
    left_out = {node_name(each.node): each for each in Placement.of(model, ALL).left_out}
    assert set(left_out) == {"y", "c", "const", "p"}
    assert left_out["y"].reason == "its data is float16, not float32"
    assert "convert" in left_out["y"].advice
    assert left_out["c"].reason == "its weights are computed at run time"
    assert left_out["const"].reason == "all of its operands are constants"
    assert left_out["p"].reason == left_out["const"].reason


def test_what_has_no_range_stays_in_float_and_the_rest_is_decided_again(parse: Parse) -> None:
    model = parse(CHAIN)
    placement = Placement.of(model, ALL, ranges={"lone", "c1", "r1", "a", "c2"})
    # Without "s1" the Add stays in float, and nothing but the convolutions is left.
    assert _names(placement) == ["c1", "c2"]
    assert placement.left_out == ()
    # The range of "t" is that of "a", which the Transpose only moves.
    assert [[v.name for v in g.observed] for g in placement.groups] == [
        ["lone"],
        ["c1"],
        ["a"],
        ["c2"],
    ]
    missing = Placement.of(model, ALL, ranges={"c1", "r1", "s1", "a", "c2"})
    assert [each.reason for each in missing.left_out] == [
        "there is no calibration range for tensor 'lone'"
    ]


def test_types_need_not_be_declared(parse: Parse) -> None:
    model = parse(CHAIN)
    expected = _groups(Placement.of(model, ALL))
    for node in model.graph:
        for output in node.outputs:
            output.type = None
    assert _groups(Placement.of(model, ALL)) == expected
