"""lower-optimizer: ONNX's own optimizers, against onnx's reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.passes.train.lower_optimizer import LowerOptimizer

Parse = Callable[..., ir.Model]
Apply = Callable[[str, ir.Model], PassResult]
Evaluate = Callable[[ir.Model, Mapping[str, Array]], dict[str, Any]]

HEADER = '<ir_version: 10, opset_import: ["" : 21, "ai.onnx.preview.training" : 1]>\n'
ATTRIBUTES = {
    "Adam": "alpha = 0.8, beta = 0.95, epsilon = 0.001, norm_coefficient = 0.1",
    "Momentum": 'alpha = 0.9, beta = 0.7, mode = "standard", norm_coefficient = 0.05',
    "Adagrad": "epsilon = 0.01, decay_factor = 0.2, norm_coefficient = 0.1",
}


def _model(op_type: str, attributes: str, tensors: int = 1, dtype: str = "float") -> str:
    """A call on tensors of [2, 3] and [3], ..., all inputs and outputs of the graph."""
    groups = ["x", "g", "v", "h"][: 4 if op_type == "Adam" else 3]
    names = [f"{group}{index}" for group in groups for index in range(tensors)]
    results = [f"new_{name}" for name in names if name[0] != "g"]
    shapes = {str(index): "[2,3]" if index == 0 else "[3]" for index in range(tensors)}
    inputs = ", ".join(f"{dtype}{shapes[name[1:]]} {name}" for name in names)
    outputs = ", ".join(f"{dtype}{shapes[name[-1]]} {name}" for name in results)
    call = f"ai.onnx.preview.training.{op_type}<{attributes}>(R, T, {', '.join(names)})"
    body = f"{{ {', '.join(results)} = {call} }}"
    return f"{HEADER}g ({dtype} R, int64 T, {inputs}) => ({outputs}) {body}"


def _feed(model: ir.Model, count: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    feed: dict[str, Array] = {"R": np.array(0.1), "T": np.array(count, np.int64)}
    for value in model.graph.inputs[2:]:
        assert value.shape is not None
        feed[value.name or ""] = random.random(tuple(value.shape.numpy())) + 0.1
    dtype = model.graph.inputs[0].dtype
    assert dtype is not None
    return {name: a if a.dtype == np.int64 else a.astype(dtype.numpy()) for name, a in feed.items()}


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("op_type", list(ATTRIBUTES))
def test_numbers_are_those_of_the_specification(
    op_type: str, dtype: str, count: int, parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    text = _model(op_type, ATTRIBUTES[op_type], 2, dtype)
    model = parse(text)
    feed = _feed(model, count)
    wanted = ReferenceEvaluator(onnx.parser.parse_model(text)).run(None, feed)
    assert isinstance(wanted, list)
    result = apply_pass("lower-optimizer", model)
    assert result.rules == {f"lower-{op_type.lower()}": 1}
    found = evaluate(model, feed)
    # The reference evaluator computes in float32 what is float64 here: 1 - beta^T cancels.
    for got, expected in zip(found.values(), wanted, strict=True):
        assert got.dtype == feed["R"].dtype
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-8)


def _adam(feed: Mapping[str, Array], count: int, post: float) -> Array:
    x, g, v, h = (feed[f"{name}0"].astype(np.float64) for name in "xgvh")
    alpha, beta = float(np.float32(0.9)), float(np.float32(0.999))
    v, h = alpha * v + (1 - alpha) * g, beta * h + (1 - beta) * g * g
    rate = 0.1 * np.sqrt(1 - beta**count) / (1 - alpha**count) if count else 0.1
    return (1 - post) * (x - rate * v / (np.sqrt(h) + 1e-6))


@pytest.mark.parametrize("count", [0, 1, 100])
def test_adam_with_default_attributes_and_decay_after_the_step(
    count: int, parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse(_model("Adam", "norm_coefficient_post = 0.25"))
    feed = _feed(model, count)
    apply_pass("lower-optimizer", model)
    found = evaluate(model, feed)["new_x0"]
    np.testing.assert_allclose(found, _adam(feed, count, 0.25), rtol=1e-6)


@pytest.mark.parametrize("alpha", ["0.0", "0.5"])
def test_nesterov(alpha: str, parse: Parse, apply_pass: Apply, evaluate: Evaluate) -> None:
    attributes = f'alpha = {alpha}, beta = 1.0, mode = "nesterov", norm_coefficient = 0.0'
    model = parse(_model("Momentum", attributes))
    feed = _feed(model, 3)
    apply_pass("lower-optimizer", model)
    found = evaluate(model, feed)
    velocity = float(alpha) * feed["v0"] + feed["g0"]
    moved = feed["x0"] - feed["R"] * (feed["g0"] + float(alpha) * velocity)
    np.testing.assert_allclose(found["new_v0"], velocity, rtol=1e-6)
    np.testing.assert_allclose(found["new_x0"], moved, rtol=1e-6)


def test_a_count_of_0_is_told_from_the_rest_in_the_graph(
    parse: Parse, apply_pass: Apply, assert_text: Callable[[ir.Model, str], None]
) -> None:
    model = parse(_model("Adagrad", "decay_factor = 0.5, epsilon = 0.25"))
    apply_pass("lower-optimizer", model)
    assert_text(
        model,
        """g (float R, int64 T, float[2,3] x0, float[2,3] g0, float[2,3] v0)
           => (float[2,3] new_x0, float[2,3] new_v0)
        <int64 number = {1}, double number_1 = {1}, double number_2 = {0.5},
         float number_3 = {0.25}> {
            step = Add(T, number)
            R_as_double = Cast<to = 11>(R)
            step_as_double = Cast<to = 11>(step)
            steps_before = Sub(step_as_double, number_1)
            rate_fall = Mul(steps_before, number_2)
            rate_divisor = Add(rate_fall, number_1)
            rate = Div(R_as_double, rate_divisor)
            rate_as_float = Cast<to = 1>(rate)
            x0_gradient_square = Mul(g0, g0)
            new_v0 = Add(v0, x0_gradient_square)
            x0_root = Sqrt(new_v0)
            x0_bounded = Add(x0_root, number_3)
            x0_direction = Div(g0, x0_bounded)
            x0_change = Mul(x0_direction, rate_as_float)
            new_x0 = Sub(x0, x0_change)
        }""",
    )


INSIDE = f"""{HEADER}
g (bool c, float R, int64 T, float[2] x, float[2] h) => (float[2] y, float[2] z) {{
    y, z = If (c) <
        then_branch = a () => (float[2] p, float[2] q)
            {{ p, q = ai.onnx.preview.training.Adagrad(R, T, x, x, h) }},
        else_branch = b () => (float[2] r, float[2] s) {{ r = Neg(x)  s = Neg(h) }}>
}}"""


def test_inside_a_body(parse: Parse, apply_pass: Apply, evaluate: Evaluate) -> None:
    model = parse(INSIDE)
    assert apply_pass("lower-optimizer", model).rules == {"lower-adagrad": 1}
    feed = {
        "c": np.array(True),
        "R": np.array(1, np.float32),
        "T": np.array(0),
        "x": np.array([3, 4], np.float32),
        "h": np.array([16, 9], np.float32),
    }
    found = evaluate(model, feed)
    assert found["z"].tolist() == [25, 25]
    np.testing.assert_allclose(found["y"], [3 - 3 / 5, 4 - 4 / 5], rtol=1e-6)


FUNCTION = f"""{HEADER.replace("]>", ', "local" : 1]>')}
g (float R, int64 T, float[2] x, float[2] h) => (float[2] y, float[2] z) {{
    y, z = local.f<decay = 0.5>(R, T, x, h)
}}
<domain: "local", opset_import: ["ai.onnx.preview.training" : 1]>
f <decay> (r, t, a, b) => (p, q) {{
    p, q = ai.onnx.preview.training.Adagrad<decay_factor : float = @decay>(r, t, a, a, b)
}}"""


def test_attributes_of_a_function_are_not_known(parse: Parse) -> None:
    result = LowerOptimizer().run(parse(FUNCTION))
    assert not result.modified
    (remark,) = result.remarks
    assert remark.advice == "run inline-functions first"


def test_a_wrong_number_of_inputs(parse: Parse) -> None:
    text = _model("Adagrad", "epsilon = 0.1").replace("v0) }", "v0, v0) }")
    with pytest.raises(
        InvalidModelError, match=r"Adagrad.*wanted the rate, the count and 3 inputs"
    ):
        LowerOptimizer().run(parse(text))


def test_old_opsets_are_refused(parse: Parse) -> None:
    with pytest.raises(UsageError, match="opset 9 or later"):
        LowerOptimizer().run(parse(_model("Adagrad", "epsilon = 0.1").replace("21", "8")))
