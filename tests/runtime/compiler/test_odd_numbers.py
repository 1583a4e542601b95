"""Numbers and sizes at the ends of what there is, compiled."""

from __future__ import annotations

import numpy as np
import pytest

from fixtures.compiled_nets import (
    CNN,
    HELD_OUT,
    WEIGHTS,
    Array,
    both,
    compiled,
    decibels,
    holds,
    images,
    net,
    products,
    reasons,
    singly,
)
from onnxfold.passes.errors import InvalidModelError, UsageError


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
