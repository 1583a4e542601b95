"""Models that break other quantizers, compiled end to end: one test for each trap."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.passes.serialization import model_bytes
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, max_opset_version

Array = Any  # of numpy; as keywords beside others their types would have to agree
Data = Mapping[str, Array] | Sequence[Mapping[str, Array]]

LOOSE = "sqnr=15,cosine=0.9"
"""What tiny random networks keep in 8 bits."""

INTEGER = {"QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"}

CNN = """
g (float[N,3,8,8] x) => (float[N,4] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
  r2 = Relu(c2)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = Gemm(f, w3, b3)
}"""


def draw(*shape: int, scale: float | None = None) -> Array:
    fan_in = math.prod(shape[1:] if len(shape) > 2 else shape[:1])
    deviation = (2 / fan_in) ** 0.5 if scale is None else scale
    random = np.random.default_rng(sum(shape))
    return (random.standard_normal(shape) * deviation).astype(np.float32)


WEIGHTS: dict[str, Any] = {
    "w1": draw(8, 3, 3, 3),
    "b1": draw(8, scale=0.1),
    "w2": draw(8, 8, 3, 3),
    "b2": draw(8, scale=0.2),
    "w3": draw(8, 4, scale=0.3),
    "b3": draw(4, scale=0.3),
}


def net(
    text: str = CNN,
    /,
    *,
    opset: int = 17,
    domains: Mapping[str, int] | None = None,
    ir_version: int = 8,
    **arrays: Array,
) -> onnx.ModelProto:
    """A model from ONNX text; initializers by name, those of ``CNN`` where they are read."""
    opsets = "".join(f', "{name}" : {number}' for name, number in (domains or {}).items())
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{opsets}]>\n'
    model = onnx.parser.parse_model(header + text)
    read = set(words(text))
    for name, array in {**WEIGHTS, **arrays}.items():
        if name in arrays or name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def words(text: str) -> list[str]:
    return "".join(each if each.isalnum() or each == "_" else " " for each in text).split()


def images(count: int = 12, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


IMAGES = {"x": images()}


def singly(**others: Array) -> list[Mapping[str, Array]]:
    """Feeds of one image each, with ``others``."""
    return [{"x": images(1, seed), **others} for seed in range(12)]


def compiled(model: onnx.ModelProto | str, data: Data = IMAGES, **options: Any) -> onnxfold.Outcome:
    """``model`` compiled fast, however slow it gets; valid, and with the same interface."""
    chosen: dict[str, Any] = {"preset": "fast", "keep_slower": True, "budget": LOOSE, **options}
    outcome = onnxfold.compile(model, data=data, **chosen)
    proto = ir.to_proto(outcome.model)
    onnx.checker.check_model(proto, full_check=True)
    before = load_model(model).graph
    assert [(v.name, v.dtype) for v in proto_values(before.inputs)] == [
        (v.name, v.dtype) for v in proto_values(outcome.model.graph.inputs)
    ]
    assert [v.name for v in before.outputs] == [v.name for v in outcome.model.graph.outputs]
    return outcome


def proto_values(values: Sequence[ir.Value]) -> list[ir.Value]:
    return [value for value in values if not value.is_initializer()]


def ops(outcome: onnxfold.Outcome) -> list[str]:
    return [node.op_type for node in all_nodes(outcome.model)]


def products(outcome: onnxfold.Outcome) -> int:
    """How many layers compute in integers."""
    return sum(each in INTEGER for each in ops(outcome))


def reasons(outcome: onnxfold.Outcome) -> dict[str, str]:
    return {each.node: each.reason for each in outcome.report.remarks}


def both(
    model: onnx.ModelProto, outcome: onnxfold.Outcome, feed: Mapping[str, Array]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the float model and of the compiled one."""
    old = Session(load_model(model), REFERENCE).run(feed)
    return dict(old), dict(Session(outcome.model, DEPLOYMENT).run(feed))


def decibels(wanted: Array, got: Array) -> float:
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    error = float(np.square(wanted - got).sum())
    return math.inf if error == 0 else 10 * math.log10(float(np.square(wanted).sum()) / error)


def holds(
    model: onnx.ModelProto, outcome: onnxfold.Outcome, feed: Mapping[str, Array], least: float = 15
) -> None:
    """All outputs are near those of float on data that compile did not see."""
    old, new = both(model, outcome, feed)
    assert list(old) == list(new)
    for name, wanted in old.items():
        assert decibels(np.asarray(wanted), np.asarray(new[name])) >= least, name


HELD_OUT = {"x": images(4, 99)}


# What is no activation


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


# What is quantized already


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


def test_int8_weights_behind_cast_and_mul_are_weights() -> None:
    scale = np.float32(np.abs(WEIGHTS["w3"]).max() / 127)
    model = net(
        CNN.replace(
            "  y = Gemm(f, w3, b3)", "  i = Cast<to=1>(q3)\n  w = Mul(i, s)\n  y = Gemm(f, w, b3)"
        ),
        q3=np.rint(WEIGHTS["w3"] / scale).astype(np.int8),
        s=np.array(scale),
    )
    outcome = compiled(model)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


# Where weights are


def test_weights_in_constant_nodes_behind_identities_of_unnamed_nodes() -> None:
    text = CNN.replace(
        "  c1 = ", "  k = Constant<value=float[1] {0}>()\n  i = Identity(k)\n  c1 = "
    )
    model = net(
        text.replace("(x, w1,", "(x, i,")
        .replace("  c2", "  j = Identity(w2)\n  j2 = Identity(j)\n  c2")
        .replace("(r1, w2", "(r1, j2")
    )
    model.graph.node[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(WEIGHTS["w1"]))
    assert not any(node.name for node in model.graph.node)
    outcome = compiled(model)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


def test_weights_behind_cast_transpose_and_reshape() -> None:
    text = (
        CNN.replace("(x, w1", "(x, cast")
        .replace("(r1, w2", "(r1, turned")
        .replace("(f, w3", "(f, shaped")
    )
    text = text.replace(
        "  c1 =",
        """  cast = Cast<to=1>(h1)
  turned = Transpose<perm=[3,2,0,1]>(t2)
  shaped = Reshape(f3, s3)
  c1 =""",
    )
    model = net(
        text,
        h1=WEIGHTS["w1"].astype(np.float16),
        t2=WEIGHTS["w2"].transpose(2, 3, 1, 0).copy(),
        f3=WEIGHTS["w3"].reshape(-1),
        s3=np.array([8, 4]),
    )
    outcome = compiled(model)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


def test_shared_weights_and_biases_of_layers_that_need_different_scales() -> None:
    model = net(
        """g (float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] z) {
          c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
          r1 = Relu(c1)
          c2 = Conv<pads=[1,1,1,1]>(r1, w2, b1)
          r2 = Relu(c2)
          y = Conv<pads=[1,1,1,1]>(r2, w2, b1)
          t = Transpose<perm=[1,0,2,3]>(w2)
          z = Conv<pads=[1,1,1,1]>(r2, t, large)
        }""",
        large=WEIGHTS["b2"] * 1000,
    )
    outcome = compiled(model)
    assert products(outcome) == 4
    holds(model, outcome, HELD_OUT)


def test_weights_a_caller_may_override_stay_inputs() -> None:
    model = net(CNN.replace("g (float[N,3,8,8] x)", "g (float[N,3,8,8] x, float[8,3,3,3] w1)"))
    outcome = compiled(model)
    assert products(outcome) == 2
    assert "computed at run time" in reasons(outcome)["c1"]
    holds(model, outcome, HELD_OUT)
    assert "w1" in outcome.model.graph.initializers
    assert "w1" in [value.name for value in outcome.model.graph.inputs]


def test_weights_in_files_beside_the_model(tmp_path: Path) -> None:
    path = str(tmp_path / "model.onnx")
    onnx.save_model(net(), path, save_as_external_data=True, location="model.bin", size_threshold=0)
    outcome = compiled(path)
    outcome.save(tmp_path / "alone.onnx")
    (tmp_path / "model.bin").unlink()
    Session(load_model(tmp_path / "alone.onnx"), DEPLOYMENT).run(HELD_OUT)
    assert products(outcome) == 3


def test_layers_in_local_functions() -> None:
    text = CNN.replace("c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)", "c2 = my.Block(r1, w2, b2)")
    function = """
    <domain: "my", opset_import: ["" : 17]>
    Block (a, w, b) => (o) { p = Conv<pads=[1,1,1,1]>(a, w, b)
      o = Relu(p) }"""
    model = net(text + function, domains={"my": 1})
    outcome = compiled(model)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


# Types and versions


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 22, 25, 26])
def test_opsets_old_and_new(opset: int) -> None:
    if opset > max_opset_version():
        pytest.skip(f"this onnxruntime ends with opset {max_opset_version()}")
    model = net(opset=opset, ir_version=8 if opset < 21 else 10)
    outcome = compiled(model)
    assert products(outcome) == 3
    assert outcome.model.opset_imports[""] >= opset
    holds(model, outcome, HELD_OUT)


def test_a_float16_model_computes_in_integers_and_keeps_its_interface() -> None:
    halves = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    model = net(CNN.replace("float[", "float16["), **halves)
    outcome = compiled(model, {"x": images().astype(np.float16)})
    assert products(outcome) == 3
    assert outcome.model.graph.outputs[0].dtype == ir.DataType.FLOAT16
    holds(model, outcome, {"x": images(4, 99).astype(np.float16)})


def test_a_double_model_computes_in_integers_and_keeps_its_interface() -> None:
    model = net(
        """g (double[N,8] x) => (double[N,4] y, double[N,8] h) {
          a = MatMul(x, square)
          h = Relu(a)
          y = Gemm(h, w3, b3)
        }""",
        square=draw(8, 8).astype(np.float64),
        w3=WEIGHTS["w3"].astype(np.float64),
        b3=WEIGHTS["b3"].astype(np.float64),
    )
    data = np.random.default_rng(0).standard_normal((24, 8))
    outcome = compiled(model, {"x": data})
    assert products(outcome) == 2
    assert [each.dtype for each in outcome.model.graph.outputs] == [ir.DataType.DOUBLE] * 2
    holds(model, outcome, {"x": data[:6]})


# What declares itself wrongly, or hardly at all


@pytest.mark.parametrize("declared", ["float[N,7] y", "float[N,4,1] y", "float[1,1] y"])
def test_declared_shapes_and_ranks_of_outputs_may_be_wrong(declared: str) -> None:
    model = net(CNN.replace("float[N,4] y", declared))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("r1", 1, [1, 2, 3]))
    outcome = onnxfold.compile(model, data=IMAGES, preset="fast", keep_slower=True, budget=LOOSE)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


def test_names_that_are_anything() -> None:
    names = {
        "x": "in put:0",
        "c1": '{"layer": [1, "a"]}',
        "r1": "ns::r1",
        "c2": "Schicht/\u5c42",
        "w1": "w 1::\u00e9",
        "b1": "model/b1:0/Read{x}",
        "w2": "a,b=c",
        "y": "out:0",
    }
    model = net()
    for node in model.graph.node:
        node.input[:] = [names.get(each, each) for each in node.input]
        node.output[:] = [names.get(each, each) for each in node.output]
        node.name = f"{{node}} {node.output[0]}, a=b"
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    outcome = compiled(model, {"in put:0": images()})
    assert products(outcome) == 3
    holds(model, outcome, {"in put:0": images(4, 99)})


def test_nodes_that_share_one_name() -> None:
    model = net()
    for node in model.graph.node:
        node.name = "same"
    outcome = compiled(model, skip=["same"])
    assert products(outcome) == 2
    assert set(reasons(outcome)) >= {"same"}
    holds(net(), outcome, HELD_OUT)


def test_unused_initializers_go_and_do_not_disturb() -> None:
    model = net()
    for index in range(42):
        extra = onnx.numpy_helper.from_array(np.ones(3, np.float32), f"unused_{index}")
        model.graph.initializer.append(extra)
    outcome = compiled(model)
    assert not [each for each in outcome.model.graph.initializers if each.startswith("unused")]
    assert products(outcome) == 3


def test_outputs_are_all_there_in_order_and_may_be_read_inside_or_be_no_result_at_all() -> None:
    outputs = "(float[N,8,8,8] r1, float[4] b3, float[N,4] y, float[N,3,8,8] x, float[N,8,8,8] c2)"
    model = net(CNN.replace("(float[N,4] y)", outputs))
    outcome = compiled(model)
    assert products(outcome) == 3
    old, new = both(model, outcome, HELD_OUT)
    assert list(new) == ["r1", "b3", "y", "x", "c2"]
    np.testing.assert_array_equal(new["b3"], old["b3"])
    np.testing.assert_array_equal(new["x"], old["x"])
    holds(model, outcome, HELD_OUT)


def test_inputs_that_are_left_out_or_never_read() -> None:
    model = net(
        """g (float[N,3,8,8] x, int64[N] length, float[7] extra)
             => (float[N,8,16,16] y, float[N,8,8,8] d) {
          c1 = Conv<pads=[1,1,1,1]>(x, w1, "")
          r1 = Clip(c1, "", six)
          u = Resize<mode="nearest">(r1, "", sizes)
          y = Conv<pads=[1,1,1,1]>(u, w2)
          d, mask = Dropout(c1)
        }""",
        six=np.array(6, np.float32),
        sizes=np.array([1, 1, 2, 2], np.float32),
    )
    others = {"length": np.array([3]), "extra": np.zeros(7, np.float32)}
    outcome = compiled(model, singly(**others))
    assert products(outcome) == 2
    holds(model, outcome, {"x": images(1, 99), **others})


# Shapes that vary


def test_heights_and_widths_vary_and_a_batch_may_be_empty() -> None:
    model = net(CNN.replace("float[N,3,8,8] x", "float[N,3,H,W] x"))
    random = np.random.default_rng(1)
    sizes = [(1, 6, 9), (0, 8, 8), (2, 9, 12), (1, 16, 7), (0, 5, 5), (1, 11, 11), (1, 8, 20)]
    feeds = [
        {"x": random.standard_normal((count, 3, height, width)).astype(np.float32)}
        for count, height, width in sizes
    ]
    outcome = compiled(model, feeds)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


def test_batches_that_are_all_empty_leave_the_model_in_float_with_a_reason() -> None:
    outcome = compiled(net(), [{"x": images(0)}] * 4)
    assert products(outcome) == 0
    assert set(reasons(outcome)) == {"c1", "c2", "y"}
    assert "calibration data has no value" in reasons(outcome)["c1"]


def test_a_sequence_as_output() -> None:
    model = net(
        """g (float[N,3,8,8] x) => (seq(float[N,8,8,8]) parts, float[N,8,8,8] z) {
          c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
          z = Conv<pads=[1,1,1,1]>(c1, w2, b2)
          parts = SequenceConstruct(c1, z)
        }"""
    )
    outcome = compiled(model, singly())
    assert products(outcome) == 2
    old, new = both(model, outcome, {"x": images(1, 99)})
    assert all(decibels(*pair) > 15 for pair in zip(old["parts"], new["parts"], strict=True))


# Numbers


@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param({"w1": WEIGHTS["w1"] * (np.arange(8) != 2).reshape(8, 1, 1, 1)}, id="channel"),
        pytest.param({"w1": WEIGHTS["w1"] * 0, "b1": -np.abs(WEIGHTS["b1"])}, id="all zero"),
        pytest.param({"b1": WEIGHTS["b1"] + np.float32(1e6)}, id="large bias"),
        pytest.param({"b2": WEIGHTS["b2"] + 1e6 * (np.arange(8) == 3)}, id="one large bias"),
        pytest.param(
            {name: WEIGHTS[name] * 1e30 for name in ("w1", "b1")} | {"w2": WEIGHTS["w2"] * 1e-30},
            id="huge",
        ),
        pytest.param(
            {name: WEIGHTS[name] * 1e-30 for name in ("w1", "b1")} | {"w2": WEIGHTS["w2"] * 1e30},
            id="tiny",
        ),
        pytest.param({name: WEIGHTS[name] * 1e-40 for name in ("w1", "b1")}, id="denormal"),
    ],
)
def test_weights_and_biases_of_any_size(arrays: dict[str, Array]) -> None:
    model = net(**{name: array.astype(np.float32) for name, array in arrays.items()})
    outcome = compiled(model)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e30])
def test_data_that_never_changes(value: float) -> None:
    same = np.full((12, 3, 8, 8), value, np.float32)
    model = net()
    outcome = compiled(model, {"x": same})
    assert products(outcome) == 3
    holds(model, outcome, {"x": same[:1]}, 30)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_name_the_tensor_they_reach(value: float) -> None:
    weights: Array = WEIGHTS["w1"].copy()
    weights[2, 0, 0, 0] = value
    with pytest.raises(InvalidModelError, match=r"tensor 'r1' has .* on calibration sample 0"):
        compiled(net(w1=weights))


def test_data_that_is_no_number_names_sample_and_tensor() -> None:
    bad = images()
    bad[4, 1, 2, 3] = np.nan
    with pytest.raises(UsageError, match="sample 4: input 'x' holds nan at"):
        compiled(net(), {"x": bad})


def test_a_tensor_inside_that_becomes_infinite_is_named_with_the_users_sample() -> None:
    text = CNN.replace("  c1 =", "  top = ReduceMax<axes=[1]>(x)\n  per = Reciprocal(top)\n  c1 =")
    model = net(text.replace("  r1 = Relu(c1)", "  m = Mul(c1, per)\n  r1 = Relu(m)"))
    data = images()
    data[6, :, 0, 0] = 0
    with pytest.raises(InvalidModelError, match=r"tensor '\w+' has .* on calibration sample 6"):
        compiled(model, {"x": data})


# What is computed elsewhere, sometimes, or by chance


BRANCH = """
g (float[N,3,8,8] x, bool c) => (float[N,8,8,8] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  z = If(c) <then_branch = t () => (float[N,8,8,8] o1) { o1 = Conv<pads=[1,1,1,1]>(c1, w2, b2) },
             else_branch = e () => (float[N,8,8,8] o2) {
      c2 = Conv<pads=[1,1,1,1]>(c1, w4, b2)
      o2 = Relu(c2) }>
  y = Conv<pads=[1,1,1,1]>(z, w2, b2)
}"""


def test_a_branch_that_calibration_never_takes_is_right_all_the_same() -> None:
    model = net(BRANCH, w4=-WEIGHTS["w2"])
    outcome = compiled(model, singly(c=np.array(True)))
    assert products(outcome) >= 2
    for taken in (True, False):
        holds(model, outcome, {"x": images(1, 99), "c": np.array(taken)})


def test_layers_that_nothing_reaches_in_calibration_stay_in_float() -> None:
    model = net(
        """g (float[N,3,8,8] x, bool c) => (float[N,8,8,8] y) {
          y = If(c) <then_branch = t () => (float[N,8,8,8] o1) {
              o1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
            }, else_branch = e () => (float[N,8,8,8] o2) {
              a = Concat<axis=1>(x, x, x)
              o2 = Slice(a, zero, eight, one)
            }>
        }""",
        zero=np.array([0]),
        one=np.array([1]),
        eight=np.array([8]),
    )
    outcome = compiled(model, singly(c=np.array(False)))
    assert products(outcome) == 0
    assert "calibration" in reasons(outcome)["o1"]


DROPOUT = """
g (float[N,3,8,8] x) => (float[N,8,8,8] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  d = Dropout(c1, half, training)
  y = Conv<pads=[1,1,1,1]>(d, w2)
}"""


def test_dropout_in_training_mode_is_refused_and_named() -> None:
    half = np.array(0.5, np.float32)
    with pytest.raises(InvalidModelError, match=r"different outputs: Dropout .* export the model"):
        compiled(net(DROPOUT, half=half, training=np.array(True)))
    assert products(compiled(net(DROPOUT, half=half, training=np.array(False)))) == 2


def test_batch_normalization_in_training_mode_keeps_computing_its_statistics() -> None:
    model = net(
        """g (float[N,3,8,8] x) => (float[N,8,8,8] y) {
          c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
          n, mean, variance = BatchNormalization<training_mode=1>(c1, b2, b1, b1, b2)
          y = Conv<pads=[1,1,1,1]>(n, w2)
        }"""
    )
    outcome = compiled(model)
    assert products(outcome) == 2
    assert "BatchNormalization" in ops(outcome)
    holds(model, outcome, HELD_OUT)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Relu(x)\n  y = Softmax(a) }",
        "g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Identity(x) }",
        "g (float[N,3,8,8] x) => (float[N,3,8,8] x) { }",
    ],
)
def test_a_model_without_layers_stays_as_it_is(text: str) -> None:
    model = net(text)
    outcome = compiled(model)
    old, new = both(model, outcome, HELD_OUT)
    for name in old:
        np.testing.assert_allclose(new[name], old[name], rtol=1e-6)


def test_nodes_of_classical_learning_beside_a_network() -> None:
    model = net(
        CNN.replace("(float[N,4] y)", "(float[N,4] y, float[N,2] z)").replace(
            "y = Gemm(f, w3, b3)",
            """y = Gemm(f, w3, b3)
  z = ai.onnx.ml.LinearRegressor<coefficients=[1.0,2.0,3.0,4.0,1.0,0.0,0.0,0.5],
                                 intercepts=[0.0,1.0], targets=2>(y)""",
        ),
        domains={"ai.onnx.ml": 3},
    )
    outcome = compiled(model)
    assert products(outcome) == 3
    holds(model, outcome, HELD_OUT)


def test_a_map_as_output_is_refused_with_advice() -> None:
    model = net(
        CNN.replace("float[N,4] y", "seq(map(int64,float[])) y").replace(
            "y = Gemm(f, w3, b3)",
            """g0 = Gemm(f, w3, b3)
  y = ai.onnx.ml.ZipMap<classlabels_int64s=[0,1,2,3]>(g0)""",
        ),
        domains={"ai.onnx.ml": 3},
    )
    with pytest.raises(InvalidModelError, match="zipmap=False"):
        compiled(model)


# The same again


def test_the_same_model_and_data_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    outcome = compiled(net())
    first = model_bytes(outcome.model)
    assert outcome.plan is not None
    outcome.plan.save(tmp_path / "plan.json")
    again = onnxfold.compile(net(), data=IMAGES, plan=tmp_path / "plan.json", budget=LOOSE)
    assert model_bytes(again.model) == first
    (tmp_path / "model.onnx").write_bytes(net().SerializeToString())
    np.save(tmp_path / "x.npy", images())
    script = (
        "import sys, numpy, onnxfold; from pathlib import Path; folder = Path(sys.argv[1]);"
        "onnxfold.compile(folder / 'model.onnx', data={'x': numpy.load(folder / 'x.npy')},"
        f"preset='fast', keep_slower=True, budget='{LOOSE}').save(folder / sys.argv[2])"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
    saved = [(tmp_path / seed).read_bytes() for seed in ("1", "2")]
    assert saved[0] == saved[1]
    assert model_bytes(load_model(tmp_path / "1")) == first


def test_factors_of_a_wide_spread_are_not_made_part_of_the_weights() -> None:
    """Features of ranges from 1 to 1/200: as codes of one scale, the small ones would be lost."""
    factors = np.geomspace(1, 200, 32).astype(np.float32)
    data = {"x": (np.random.default_rng(0).uniform(-1, 1, (16, 32)) / factors).astype(np.float32)}
    model = net(
        "g (float[N,32] x) => (float[N,32] y) { s = Mul(x, factors)  y = MatMul(s, w) }",
        factors=factors,
        w=draw(32, 32),
    )
    outcome = compiled(model, data, op_types=["MatMul"])
    assert "QuantizeLinear" in ops(outcome)
    holds(model, outcome, data, least=30)
