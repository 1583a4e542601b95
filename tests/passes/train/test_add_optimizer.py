"""add-optimizer: steps as torch makes them, the choice of weights, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fixtures.vectors.optimizers import CASES, STEPS
from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.train.manifest import State, read_manifest
from onnxfold.runtime.session import REFERENCE, Session

Parse = Callable[..., ir.Model]
Apply = Callable[[str, ir.Model], PassResult]
Evaluate = Callable[[ir.Model, Mapping[str, Array]], dict[str, Any]]

_KINDS = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw", "Adagrad": "adagrad"}
_OPTIONS = {
    "lr": "learning-rate",
    "eps": "epsilon",
    "clip": "clip-norm",
    "lr_decay": "rate-decay",
    "initial_accumulator_value": "initial-sum",
}
FEED = {"x": np.ones((4, 3), np.float32), "labels": np.zeros((4, 2), np.float32)}


def _text(optimizer: str, options: Mapping[str, Any]) -> str:
    """What torch's options are called here."""
    kind = "momentum" if "momentum" in options else _KINDS[optimizer]
    words = [f"kind={kind}"]
    for name, value in options.items():
        if name == "betas":
            words += [f"beta1={value[0]}", f"beta2={value[1]}"]
        elif value is True:
            words.append(name)
        else:
            words.append(f"{_OPTIONS.get(name, name.replace('_', '-'))}={value}")
    return f"add-optimizer{{{' '.join(words)}}}"


@pytest.fixture(scope="module")
def vectors() -> dict[str, Array]:
    path = Path(__file__).parents[3] / "fixtures" / "vectors" / "optimizers.npz"
    with np.load(path) as found:
        return dict(found)


@pytest.mark.parametrize("case", CASES)
def test_500_steps_follow_torch(
    case: str, linear: ir.Model, apply_pass: Apply, vectors: dict[str, Array]
) -> None:
    apply_pass(_text(*CASES[case]), linear)
    session = Session(linear, REFERENCE)
    state: dict[str, Array] = {"state_w": vectors["w"], "state_b": vectors["b"]}
    for count in range(1, max(STEPS) + 1):
        batch = {name: vectors[name][count - 1] for name in ("x", "labels")}
        found = session.run({**batch, **state})
        state = {name[4:]: new for name, new in found.items() if name.startswith("new_state")}
        assert state["state_step"] == count
        if count in STEPS:
            for name in ("w", "b"):
                wanted = vectors[f"{case}/{name}_{count}"]
                np.testing.assert_allclose(state[f"state_{name}"], wanted, rtol=0, atol=3e-7)


def test_the_graph_of_plain_descent(
    linear: ir.Model, apply_pass: Apply, assert_text: Callable[[ir.Model, str], None]
) -> None:
    result = apply_pass("add-optimizer{kind=sgd learning-rate=0.5 trainable=b}", linear)
    assert result.rules == {"add-optimizer": 1}
    assert_text(
        linear,
        """g (float[N,3] x, float[N,2] labels, float[2] state_b, int64 state_step,
              float learning_rate)
           => (float[N,2] y, float loss, float[3,2] grad_w, float[2] grad_b,
               float[2] new_state_b, int64 new_state_step)
        <float[3,2] w = {1, -2, 0.5, 0.25, -1, 2}, float[2] state_b = {0.5, -0.5}, float two = {2},
         int64[1] first = {0}, int64 state_step = {0}, float learning_rate = {0.5},
         int64 number = {1}> {
            y = Gemm(x, w, state_b)
            error = Sub(y, labels)
            square = Mul(error, error)
            loss = ReduceMean<keepdims = 0>(square)
            count = Size(error)
            counted = CastLike(count, error)
            double = Mul(two, error)
            slope = Div(double, counted)
            turned = Transpose(x)
            grad_w = MatMul(turned, slope)
            grad_b = ReduceSum<keepdims = 0>(slope, first)
            new_state_step = Add(state_step, number)
            b_change = Mul(grad_b, learning_rate)
            new_state_b = Sub(state_b, b_change)
        }""",
    )
    assert read_manifest(linear).states == (State("state_b", "new_state_b", "b"),)


def test_the_original_outputs_keep_their_bits(
    linear: ir.Model, apply_pass: Apply, evaluate: Evaluate
) -> None:
    before = evaluate(linear, FEED)
    apply_pass("add-optimizer", linear)
    after = evaluate(linear, FEED)
    assert list(after)[: len(before)] == list(before)
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes()


def test_moments_are_state(linear: ir.Model, apply_pass: Apply) -> None:
    apply_pass("add-optimizer{kind=adam trainable=w}", linear)
    manifest = read_manifest(linear)
    assert manifest.all_states == (
        State("state_w", "new_state_w", "w"),
        State("state_w_mean", "new_state_w_mean", "w", "mean"),
        State("state_w_square", "new_state_w_square", "w", "square"),
        State("state_step", "new_state_step"),
    )
    assert manifest.learning_rate == "learning_rate"
    assert manifest.gradients == ("grad_w", "grad_b")


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ("", ["w", "b"]),
        ("trainable=b", ["b"]),
        ("trainable=b,w", ["w", "b"]),
        ('trainable="[wv]"', ["w"]),
        ('trainable=".*"', ["w", "b"]),
    ],
)
def test_weights_are_chosen(
    options: str, trained: list[str], linear: ir.Model, apply_pass: Apply
) -> None:
    apply_pass(f"add-optimizer{{kind=sgd {options}}}", linear)
    assert [state.tensor for state in read_manifest(linear).states] == trained


def test_some_weights_do_not_decay(linear: ir.Model, apply_pass: Apply, evaluate: Evaluate) -> None:
    still = {"x": np.zeros((4, 3), np.float32), "labels": np.zeros((4, 2), np.float32)}
    options = "kind=adamw learning-rate=1 weight-decay=0.25 trainable=w,b no-decay=b epsilon=1"
    apply_pass(f"add-optimizer{{{options}}}", linear)
    found = evaluate(linear, {**still, "state_b": np.zeros(2, np.float32)})
    assert found["new_state_w"].tolist() == [[0.75, -1.5], [0.375, 0.1875], [-0.75, 1.5]]
    assert found["new_state_b"].tolist() == [0, 0]


def test_a_weight_that_is_an_input_keeps_its_name(
    linear: ir.Model, apply_pass: Apply, evaluate: Evaluate
) -> None:
    linear.graph.inputs.append(linear.graph.initializers["b"])
    apply_pass("add-optimizer{kind=sgd trainable=b}", linear)
    assert read_manifest(linear).states == (State("b", "new_state_b", "b"),)
    zero = np.zeros(2, np.float32)
    assert evaluate(linear, {**FEED, "b": zero})["new_state_b"].any()


TIED = """g (float[N,2] x) => (float[N,2] y, float loss, float[2,2] grad_w)
<float[2,2] w = {1, 2, 3, 4}> {
    t = MatMul(x, w)  u = Transpose(w)  y = MatMul(t, u)
    loss = ReduceSum<keepdims = 0>(y)
    grad_w = Identity(w)
}"""


def test_a_weight_used_twice_is_updated_once(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(TIED)
    apply_pass("add-optimizer{kind=sgd learning-rate=0.5}", model)
    found = evaluate(model, {"x": np.ones((1, 2), np.float32)})
    assert found["new_state_w"].tolist() == [[0.5, 1], [1.5, 2]]
    assert sum(name.startswith("new_state_w") for name in found) == 1
    moved = evaluate(model, {"x": np.ones((1, 2), np.float32), "state_w": np.eye(2, dtype="f4")})
    assert moved["y"].tolist() == [[1, 1]]


CAPTURED = """g (bool c, float[2] x) => (float[2] y, float loss, float[2] grad_w)
<float[2] w = {1, 2}> {
    y = If (c) <
        then_branch = a () => (float[2] p) { p = Mul(x, w) },
        else_branch = b () => (float[2] q) { q = Sub(x, w) }>
    loss = ReduceSum<keepdims = 0>(y)
    grad_w = Identity(x)
}"""


def test_a_weight_used_in_bodies_is_updated(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(CAPTURED)
    apply_pass("add-optimizer{kind=sgd learning-rate=1}", model)
    feed = {"x": np.array([1, 1], np.float32)}
    state = evaluate(model, {**feed, "c": np.array(True)})["new_state_w"]
    assert state.tolist() == [0, 1]
    for condition, wanted in ((True, [0, 1]), (False, [1, 0])):
        fed = {**feed, "c": np.array(condition), "state_w": state}
        assert evaluate(model, fed)["y"].tolist() == wanted


def test_weights_of_two_dtypes_are_clipped_together(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(
        """g (float x) => (float loss, float grad_a, double grad_b)
        <float a = {0}, double b = {0}, float three = {3}, double four = {4}> {
            loss = Mul(x, a)  grad_a = Mul(x, three)  grad_b = Identity(four)
        }"""
    )
    apply_pass("add-optimizer{kind=adam learning-rate=1 clip-norm=1 epsilon=1}", model)
    found = evaluate(model, {"x": np.array(1, np.float32)})
    # The clipped gradients are 0.6 and 0.8; Adam's first step is lr g / (|g| + epsilon).
    assert found["new_state_a"] == pytest.approx(-0.375, abs=1e-6)
    assert found["new_state_b"] == pytest.approx(-0.8 / 1.8, abs=1e-6)
    assert found["new_state_b"].dtype == np.float64


def test_names_that_are_taken(linear: ir.Model, apply_pass: Apply) -> None:
    linear.graph.initializers["two"].name = "learning_rate"
    apply_pass("add-optimizer{kind=sgd}", linear)
    assert read_manifest(linear).learning_rate == "learning_rate_1"


def test_the_same_bytes_each_time(parse: Parse, linear: ir.Model, apply_pass: Apply) -> None:
    text = onnx.printer.to_text(ir.to_proto(linear))
    models = [ir.from_proto(onnx.parser.parse_model(text)) for _ in range(2)]
    for model in models:
        apply_pass("add-optimizer{clip-norm=1}", model)
    first, second = (ir.to_proto(model).SerializeToString() for model in models)
    assert first == second


def test_frozen_operators_are_named(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float[N,2] x) => (float loss, float[2] grad_s)
        <float[2] s = {1, 1}, float[2] b = {0, 0}> {
            n = BatchNormalization(x, s, b, b, s)
            d = Dropout(n)
            loss = ReduceSum<keepdims = 0>(d)
            grad_s = Identity(s)
        }"""
    )
    remarks = apply_pass("add-optimizer{kind=sgd}", model).remarks
    assert [(each.node, "frozen" in each.reason) for each in remarks] == [("n", True), ("d", True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("kind=adamm", "did you mean 'adam'"),
        ("kind=sgd nesterov", "nesterov is an option of momentum, not sgd"),
        ("kind=adagrad beta1=0.5", "beta1 is an option of adam or adamw, not adagrad"),
        ("beta2=1", r"beta2 has to be in \[0, 1\), got 1"),
        ("weight-decay=-1", "weight-decay has to be 0 or more, got -1"),
        ("learning-rate=nan", "learning-rate has to be 0 or more, got nan"),
        ("clip-norm=0", "clip-norm has to be positive"),
        ("kind=momentum nesterov dampening=0.1", "no dampening"),
        ("loss=los", "no output 'los'; did you mean 'loss'"),
        ("trainable=ww", "no weight of the model matches 'ww'; did you mean 'w'"),
        ('trainable="*"', r"'\*' is no regular expression"),
        ("trainable=first", "'first' holds int64.*quantize"),
        ("trainable=two", "no output grad_two.*add-gradient's wrt"),
        ("trainable=w no-decay=b", "no-decay: no trained weight matches 'b'"),
    ],
)
def test_wrong_options(options: str, message: str, linear: ir.Model, apply_pass: Apply) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        apply_pass(f"add-optimizer{{{options}}}", linear)
    assert "\n" not in str(caught.value)
    assert "state_w" not in linear.graph.initializers


@pytest.mark.parametrize(
    ("drop", "message"),
    [("loss", "no output 'loss'; inject-loss"), ("grad_", "no outputs grad_<tensor>")],
)
def test_models_that_lack_something(
    drop: str, message: str, linear: ir.Model, apply_pass: Apply
) -> None:
    for value in [each for each in linear.graph.outputs if (each.name or "").startswith(drop)]:
        linear.graph.outputs.remove(value)
    with pytest.raises(UsageError, match=message):
        apply_pass("add-optimizer", linear)


def test_a_second_optimizer_is_refused(linear: ir.Model, apply_pass: Apply) -> None:
    apply_pass("add-optimizer", linear)
    with pytest.raises(UsageError, match="has an optimizer already; strip-training"):
        apply_pass("add-optimizer", linear)


def test_gradients_have_to_be_lowered(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 21, "ai.onnx.preview.training" : 1]>
        g (float x) => (float loss, float grad_w) <float w = {1}> {
            loss = Mul(x, w)
            grad_w = ai.onnx.preview.training.Gradient<xs = ["w"], y = "loss">(w)
        }"""
    )
    with pytest.raises(UsageError, match="run lower-gradient"):
        apply_pass("add-optimizer", model)


def test_float16_weights_are_refused(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        """g (float16 x) => (float16 loss, float16 grad_w) <float16 w = {1}> {
            loss = Mul(x, w)  grad_w = Identity(x)
        }"""
    )
    with pytest.raises(UsageError, match=r"'w' holds float16.*convert-float32"):
        apply_pass("add-optimizer", model)


def test_a_weight_named_like_the_moment_of_another(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(
        """g (float x) => (float loss, float grad_w, float grad_w_mean)
        <float w = {1}, float w_mean = {5}> {
            loss = Mul(w, w_mean)  grad_w = Identity(x)  grad_w_mean = Mul(x, x)
        }"""
    )
    apply_pass("add-optimizer{kind=adam learning-rate=1}", model)
    states = {(each.tensor, each.slot): each for each in read_manifest(model).states}
    assert len({each.input for each in states.values()}) == len(states) == 6
    found = evaluate(model, {"x": np.array(2, np.float32)})
    assert found[states["w", ""].output] == pytest.approx(0, abs=1e-6)
    assert found[states["w_mean", ""].output] == pytest.approx(4, abs=1e-6)
    assert found[states["w", "mean"].output] == pytest.approx(0.2)
    assert found[states["w_mean", "mean"].output] == pytest.approx(0.4)
