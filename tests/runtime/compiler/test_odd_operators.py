"""Branches, training modes and operators that are no layers, compiled beside some."""

from __future__ import annotations

import numpy as np
import pytest

from fixtures.compiled_nets import (
    CNN,
    HELD_OUT,
    WEIGHTS,
    both,
    compiled,
    holds,
    images,
    net,
    ops,
    products,
    reasons,
    singly,
)
from onnxfold.passes.errors import InvalidModelError

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
