"""What compile leaves alone: ids, grids, counts, boxes, integers, and models in codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest

import onnxfold
from fixtures.compiled_nets import (
    HELD_OUT,
    both,
    compiled,
    decibels,
    draw,
    holds,
    images,
    net,
    products,
    singly,
)
from onnxfold.passes.errors import UsageError


def test_ids_are_left_alone_and_so_is_a_number_that_only_becomes_an_index() -> None:
    model = net(
        """g (int64[N,T] ids, float[N,1] length, float[N,3,8,8] x)
             => (float[N,T,4] y, float[K,8,8,8] z) {
          e = Gather(table, ids)
          h = MatMul(e, w3)
          a = Add(h, b3)
          r = Relu(a)
          y = MatMul(r, w4)
          c = Conv<pads=[1,1,1,1]>(x, w1, b1)
          flat = Reshape(length, one)
          end = Cast<to=7>(flat)
          z = Slice(c, zero, end, zero)
        }""",
        table=draw(20, 8, scale=1.0),
        w4=draw(4, 4),
        one=np.array([1]),
        zero=np.array([0]),
    )
    random = np.random.default_rng(0)
    feeds = [
        {**feed, "ids": random.integers(0, 20, (1, 5)), "length": np.array([[257.4]], np.float32)}
        for feed in singly()
    ]
    outcome = compiled(model, feeds)
    assert products(outcome) == 3
    inputs = {value.name: value for value in outcome.model.graph.inputs}
    assert [use.node.op_type for use in inputs["ids"].uses()] == ["Gather"]
    assert [use.node.op_type for use in inputs["length"].uses()] == ["Reshape"]
    holds(model, outcome, feeds[0], 25)


DETECTOR = """
g (float[N,3,8,8] x, float[1,4,1] anchors, int64[N] count)
  => (float[N,5,64] y, float[N,4,64] scaled, bool[N] many) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(c1)
  boxes = Conv(r1, wb)
  scores = Conv(r1, ws)
  bf = Reshape(boxes, four)
  sf = Reshape(scores, single)
  placed = Add(bf, grid)
  y = Concat<axis=1>(placed, sf)
  scaled = Mul(bf, anchors)
  many = Greater(count, zero)
}"""
HEADS: dict[str, Any] = {
    "wb": draw(4, 8, 1, 1, scale=10.0),
    "ws": draw(1, 8, 1, 1, scale=0.3),
    "four": np.array([0, 4, -1]),
    "single": np.array([0, 1, -1]),
}


def test_grids_anchors_and_counts_stay_exact_and_scores_keep_their_own_scale() -> None:
    grid = (np.linspace(0, 600, 64).reshape(1, 1, 64) * np.ones((1, 4, 1))).astype(np.float32)
    model = net(DETECTOR, **HEADS, grid=grid, zero=np.array(0))
    anchors = np.array([1, 2, 30, 400], np.float32).reshape(1, 4, 1)
    feeds = singly(anchors=anchors, count=np.array([3]))
    outcome = compiled(model, feeds)
    assert products(outcome) == 3
    old, new = both(
        model, outcome, {"x": images(1, 99), "anchors": anchors, "count": np.ones(1, int)}
    )
    assert decibels(old["y"][:, 4:], new["y"][:, 4:]) > 20
    assert np.abs(old["y"][:, :4] - new["y"][:, :4]).max() < 600 / 255
    assert decibels(old["scaled"], new["scaled"]) > 20


def test_boxes_beside_scores_in_one_output_are_not_tied_to_one_scale() -> None:
    model = net(
        """g (float[N,3,8,8] x) => (float[N,5,64] y) {
          c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
          r1 = Relu(c1)
          boxes = Conv(r1, wb)
          scores = Conv(r1, ws)
          joined = Concat<axis=1>(boxes, scores)
          y = Reshape(joined, shape)
        }""",
        wb=draw(4, 8, 1, 1, scale=300.0),
        ws=HEADS["ws"],
        shape=np.array([0, 5, -1]),
    )
    outcome = compiled(model)
    assert products(outcome) == 3
    old, new = both(model, outcome, HELD_OUT)
    assert np.abs(old["y"][:, :4]).max() > 200 * np.abs(old["y"][:, 4:]).max()
    assert decibels(old["y"][:, 4:], new["y"][:, 4:]) > 18


def test_selection_behind_boxes_sees_numbers() -> None:
    model = net(
        """g (float[1,3,8,8] x) => (float[1,4,64] boxes, int64[K,3] kept, float[1,1,9] best,
             int64[1,1,9] where, float[1,1,64] sums) {
          c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
          r1 = Relu(c1)
          b = Conv(r1, wb)
          s = Conv(r1, ws)
          boxes = Reshape(b, four)
          scores = Reshape(s, single)
          rates = Sigmoid(scores)
          corners = Transpose<perm=[0,2,1]>(boxes)
          kept = NonMaxSuppression(corners, rates, most, overlap, least)
          best, where = TopK(scores, nine)
          sums = CumSum(scores, axis)
        }""",
        **HEADS,
        most=np.array([5]),
        overlap=np.array([0.5], np.float32),
        least=np.array([0.5], np.float32),
        nine=np.array([9]),
        axis=np.array(2),
    )
    outcome = compiled(model, singly(), budget="sqnr=5,cosine=0.5")
    assert products(outcome) == 3
    old, new = both(model, outcome, {"x": images(1, 99)})
    assert decibels(old["best"], new["best"]) > 20
    assert decibels(old["sums"], new["sums"]) > 20


def test_integer_inputs_and_outputs_keep_their_types() -> None:
    model = net(
        """g (int8[N,3,8,8] q, uint8[N,3,8,8] u) => (float[N,8,8,8] y, uint8[N,8,8,8] z) {
          x = Cast<to=1>(q)
          xs = Mul(x, fiftieth)
          c1 = Conv<pads=[1,1,1,1]>(xs, w1, b1)
          y = Relu(c1)
          v = Cast<to=1>(u)
          vs = Mul(v, fiftieth)
          c2 = Conv<pads=[1,1,1,1]>(vs, w1, b1)
          r2 = Clip(c2, none, full)
          z = Cast<to=2>(r2)
        }""",
        fiftieth=np.array(0.02, np.float32),
        none=np.array(0, np.float32),
        full=np.array(255, np.float32),
    )
    random = np.random.default_rng(0)
    data = {
        "q": random.integers(-128, 128, (12, 3, 8, 8)).astype(np.int8),
        "u": random.integers(0, 256, (12, 3, 8, 8)).astype(np.uint8),
    }
    outcome = compiled(model, data)
    assert products(outcome) == 2
    assert [v.dtype for v in outcome.model.graph.outputs] == [ir.DataType.FLOAT, ir.DataType.UINT8]


@pytest.mark.parametrize(
    ("op_type", "domain", "attributes"),
    [
        ("QLinearSigmoid", "com.microsoft", {}),
        ("MatMulNBits", "com.microsoft", {"K": 32, "N": 4, "bits": 4, "block_size": 32}),
        ("QuantizeLinear", "", {}),
    ],
)
def test_a_quantized_model_is_refused_and_sent_to_fold(
    op_type: str, domain: str, attributes: dict[str, Any]
) -> None:
    node = onnx.helper.make_node(op_type, ["x", "s"], ["z"], domain=domain, **attributes)
    model = net(
        "g (float[N,32] x, float s) => (float[N,32] y) { y = Relu(x) }",
        domains={"com.microsoft": 1},
    )
    model.graph.node.append(node)
    with pytest.raises(UsageError, match=rf"quantized already .*{op_type}.*: use onnxfold fold"):
        onnxfold.compile(model, data={"x": np.zeros((4, 32), np.float32), "s": np.zeros(4)})
