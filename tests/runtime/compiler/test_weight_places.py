"""Weights are found by compile wherever exporters leave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

from fixtures.compiled_nets import (
    CNN,
    HELD_OUT,
    WEIGHTS,
    compiled,
    draw,
    holds,
    net,
    ops,
    products,
    reasons,
)
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.session import DEPLOYMENT, Session


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
