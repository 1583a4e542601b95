"""Where functions have no derivative, operators that the standard defines by others, Dropout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from fixtures.gradients.check import (
    Array,
    check_gradient,
    differences,
    lower,
    relative_error,
    run_in_double,
    weighted_sum,
)
from onnxfold.runtime.session import (
    DEPLOYMENT,
    REFERENCE,
    Session,
    max_opset_version,
    version,
)

INF = math.inf


def gradients(body: str, **feeds: object) -> dict[str, Any]:
    """The gradients of the sum of ``y``, with and without ONNX Runtime's optimizations."""
    arrays = {name: np.asarray(value, np.float32) for name, value in feeds.items()}
    inputs = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in arrays.items())
    inputs = inputs.replace("[]", "")
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    text = f"{header} g ({inputs}) => (float loss) {{ {body} loss = ReduceSum<keepdims = 0>(y) }}"
    model = lower(onnx.parser.parse_model(text), list(arrays))
    runs = [Session(model, config).run(arrays) for config in (REFERENCE, DEPLOYMENT)]
    for name in arrays:
        np.testing.assert_array_equal(runs[0][f"grad_{name}"], runs[1][f"grad_{name}"])
    return {name: runs[0][f"grad_{name}"].tolist() for name in arrays}


# What torch gives, and 0 where torch gives an infinity or not a number.
AT_KINKS: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("y = Abs(x)", {"x": [0]}, {"x": [0]}),
    ("y = Relu(x)", {"x": [0]}, {"x": [0]}),
    ("y = LeakyRelu<alpha = 0.5>(x)", {"x": [0]}, {"x": [0.5]}),
    ("y = PRelu(x, s)", {"x": [0, -2], "s": [0.5]}, {"x": [0.5, 0.5], "s": [-2]}),
    ("y = Elu<alpha = 2.0>(x)", {"x": [0]}, {"x": [2]}),
    ("y = HardSigmoid<alpha = 0.5, beta = 0.5>(x)", {"x": [-1, 0, 1]}, {"x": [0, 0.5, 0]}),
    ("y = HardSwish(x)", {"x": [-3, 3]}, {"x": [0, 1]}),
    ("y = ThresholdedRelu(x)", {"x": [1, 2]}, {"x": [0, 1]}),
    ("y = Softsign(x)", {"x": [0]}, {"x": [1]}),
    ("y = Sqrt(x)", {"x": [0, 4]}, {"x": [0, 0.25]}),
    ("y = Log(x)", {"x": [0, 2]}, {"x": [0, 0.5]}),
    ("y = Max(x, z)", {"x": [1, 2], "z": [1, 0]}, {"x": [0.5, 1], "z": [0.5, 0]}),
    ("y = Min(x, z, x)", {"x": [1, 2], "z": [1, 0]}, {"x": [2 / 3, 0], "z": [1 / 3, 1]}),
    ("y = ReduceMax(x)", {"x": [2, 1, 2]}, {"x": [0.5, 0, 0.5]}),
    ("y = ReduceMin(x)", {"x": [1, 1, 2]}, {"x": [0.5, 0.5, 0]}),
    ("y = ReduceL2(x)", {"x": [0, 0]}, {"x": [0, 0]}),
    ("y = ReduceL1(x)", {"x": [0, -1]}, {"x": [0, -1]}),
    ("y = ReduceLogSumExp(x)", {"x": [-INF, -INF]}, {"x": [0, 0]}),
    ("y = ReduceLogSumExp(x)", {"x": [-INF, 0]}, {"x": [0, 1]}),
    ("y = ReduceLogSum(x)", {"x": [0, 0]}, {"x": [0, 0]}),
    ("y = ReduceProd(x)", {"x": [0, 2, 3]}, {"x": [6, 0, 0]}),
    ("y = ReduceProd(x)", {"x": [0, 0, 3]}, {"x": [0, 0, 0]}),
    ("s = Softmax(x) y = Mul(s, w)", {"x": [-INF, 0], "w": [1, 2]}, {"x": [0, 0], "w": [0, 1]}),
    ("y = Clip(x, l, h)", {"x": [1, 2, 0, 3], "l": 1, "h": 2}, {"x": [1, 1, 0, 0], "l": 1, "h": 1}),
    ("y = Clip(x, l, h)", {"x": [1, 2], "l": 3, "h": 2}, {"x": [0, 0], "l": 0, "h": 2}),
    ("y = Pow(x, p)", {"x": [0, 0, -2], "p": [0, 2, 2]}, {"x": [0, 0, -4], "p": [0, 0, 0]}),
    ("h = Constant<value_float = 0.5>() y = Pow(x, h)", {"x": [0, 4]}, {"x": [0, 0.25]}),
]


@pytest.mark.parametrize(("body", "feeds", "expected"), AT_KINKS, ids=[c[0] for c in AT_KINKS])
def test_where_there_is_no_derivative(
    body: str, feeds: dict[str, object], expected: dict[str, object]
) -> None:
    if feeds == {"x": [-INF, -INF]} and version().startswith("1.23."):
        pytest.skip("onnxruntime 1.23 itself gives no number for infinities alone")
    found = gradients(body, **feeds)
    for name, numbers in expected.items():
        np.testing.assert_allclose(found[name], np.asarray(numbers, np.float32), rtol=1e-6)


def test_all_labels_ignored() -> None:
    text = """g (float[2,3] x, int64[2] l) => (float y) {
        y = SoftmaxCrossEntropyLoss<ignore_index = -1>(x, l)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    lowered = lower(model, ["x"], of="y")
    feeds = {"x": np.ones((2, 3), np.float32), "l": np.array([-1, -1])}
    assert not Session(lowered).run(feeds)["grad_x"].any()


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def mean_variance_normalized(feeds: Mapping[str, Array]) -> list[Array]:
    x = feeds["x"]
    spread = np.sqrt(np.mean(x**2, (0, 2), keepdims=True) - np.mean(x, (0, 2), keepdims=True) ** 2)
    return [(x - np.mean(x, (0, 2), keepdims=True)) / (spread + np.float32(1e-9))]


def turned(feeds: Mapping[str, Array]) -> list[Array]:
    x, angles = feeds["x"], feeds["a"][np.arange(3)][None, None]
    real, imaginary = x[..., :2], x[..., 2:]
    cos, sin = np.cos(angles), np.sin(angles)
    return [np.concatenate([cos * real - sin * imaginary, sin * real + cos * imaginary], -1)]


def attended(feeds: Mapping[str, Array]) -> list[Array]:
    heads = [np.split(feeds[name], 2, -1) for name in "qkv"]
    outputs: list[Array] = []
    states: list[Array] = []
    for q, k, v in zip(*heads, strict=True):
        state = np.zeros((2, 4, 4))
        steps: list[Array] = []
        for step in range(3):
            state = state + k[:, step, :, None] * v[:, step, None, :]
            steps.append((q[:, step, None, :] @ state)[:, 0] / 2)
        outputs.append(np.stack(steps, 1))
        states.append(state)
    return [np.concatenate(outputs, -1), np.stack(states, 1)]


def warped(feeds: Mapping[str, Array]) -> list[Array]:
    height, width = (np.arange(size) * 2 / size + 1 / size - 1 for size in (3, 4))
    points = np.stack([*np.meshgrid(width, height), np.ones((3, 4))], -1)
    return [np.einsum("hwj,nij->nhwi", points, feeds["t"])]


OPSET_OF_OTHERS = 28
DEFINED_BY_OTHERS: dict[str, tuple[str, dict[str, Array], dict[str, Any]]] = {
    "MeanVarianceNormalization": (
        "g (float[2,3,4] x) => (float[] y) { y = MeanVarianceNormalization<axes = [0, 2]>(x) }",
        {"x": numbers(2, 3, 4)},
        {"double": False, "forward": mean_variance_normalized},
    ),
    "Attention": (
        "g (float[2,3,4,2] q, float[2,3,5,2] k, float[2,3,5,2] v) => (float[] y) "
        "{ y = Attention(q, k, v) }",
        {"q": numbers(2, 3, 4, 2), "k": numbers(2, 3, 5, 2), "v": numbers(2, 3, 5, 2)},
        {},
    ),
    "Attention, causal, of merged heads": (
        "g (float[2,3,4] q, float[2,3,4] k, float[2,3,4] v) => (float[] y) "
        "{ y = Attention<q_num_heads = 2, kv_num_heads = 2, is_causal = 1>(q, k, v) }",
        {"q": numbers(2, 3, 4), "k": numbers(2, 3, 4), "v": numbers(2, 3, 4)},
        {},
    ),
    "Attention of groups, with a mask": (
        "g (float[1,4,3,2] q, float[1,2,5,2] k, float[1,2,5,2] v, float[3,5] m) => (float[] y) "
        "{ y = Attention(q, k, v, m) }",
        {
            "q": numbers(1, 4, 3, 2),
            "k": numbers(1, 2, 5, 2),
            "v": numbers(1, 2, 5, 2),
            "m": numbers(3, 5),
        },
        {},
    ),
    "RotaryEmbedding": (
        "g (float[2,2,3,4] x, float[5,2] a) => (float[] y) <int64[2,3] p = {0,1,2,0,1,2}> "
        "{ c = Cos(a) s = Sin(a) y = RotaryEmbedding(x, c, s, p) }",
        {"x": numbers(2, 2, 3, 4), "a": numbers(5, 2)},
        {"double": False, "forward": turned},
    ),
    "CausalConvWithState": (
        "g (float[2,3,6] x, float[3,1,3] w, float[3] b) => (float[] y, float[] s) "
        "{ y, s = CausalConvWithState(x, w, b) }",
        {"x": numbers(2, 3, 6), "w": numbers(3, 1, 3), "b": numbers(3)},
        {"double": False},
    ),
    "LinearAttention": (
        "g (float[2,3,8] q, float[2,3,8] k, float[2,3,8] v) => (float[] y, float[] s) { y, s = "
        'LinearAttention<update_rule = "linear", q_num_heads = 2, kv_num_heads = 2>(q, k, v) }',
        {"q": numbers(2, 3, 8), "k": numbers(2, 3, 8), "v": numbers(2, 3, 8)},
        {"double": False, "forward": attended},
    ),
    "TensorScatter": (
        "g (float[2,5,3] c, float[2,2,3] u, int64[2] w) => (float[] y) "
        "{ y = TensorScatter<axis = 1>(c, u, w) }",
        {"c": numbers(2, 5, 3), "u": numbers(2, 2, 3), "w": np.array([1, 3])},
        {},
    ),
    "TensorScatter, circular": (
        "g (float[2,5,3] c, float[2,2,3] u, int64[2] w) => (float[] y) "
        '{ y = TensorScatter<axis = 1, mode = "circular">(c, u, w) }',
        {"c": numbers(2, 5, 3), "u": numbers(2, 2, 3), "w": np.array([1, 4])},
        {},
    ),
    "AffineGrid": (
        "g (float[2,2,3] t) => (float[] y) <int64[4] s = {2,1,3,4}> { y = AffineGrid(t, s) }",
        {"t": numbers(2, 2, 3)},
        {"double": False, "forward": warped},
    ),
}


@pytest.mark.parametrize("name", DEFINED_BY_OTHERS)
def test_operators_that_others_define(name: str) -> None:
    if max_opset_version() < OPSET_OF_OTHERS:
        pytest.skip(f"onnxruntime {version()} does not load opset {OPSET_OF_OTHERS}")
    text, feeds, options = DEFINED_BY_OTHERS[name]
    check_gradient(text, feeds, opset=OPSET_OF_OTHERS, symbols="batch", **options)


def test_swiglu() -> None:
    # ONNX Runtime has no kernel for it: the reference evaluator alone.
    text = "g (double[2,3] x, double[2,3] z) => (double[2,3] y) { y = SwiGLU(x, z) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 28]> {text}')
    names = ["x", "z"]
    feeds = {name: numbers(2, 3) + index for index, name in enumerate(names)}
    lowered = lower(weighted_sum(model), names)
    weights = {"weights_of_y": np.random.default_rng(1000).standard_normal((2, 3))}
    single = {"weights_of_y": weights["weights_of_y"].astype(np.float32)}
    found = run_in_double(lowered, {**feeds, **single})
    for name, expected in differences(model, feeds, names).items():
        assert relative_error(found[f"grad_{name}"], expected) < 1e-7


@pytest.mark.parametrize("outputs", ["y", "y, mask"])
@pytest.mark.parametrize("training", ["= {1}", None])
def test_dropout_passes_back_what_it_kept(outputs: str, training: str | None) -> None:
    constant = "" if training is None else f", bool t {training}"
    given = "" if training else ", bool t"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[40] x{given}) => (float[40] y, float loss) <float r = {{0.25}}{constant}> {{
        {outputs} = Dropout(x, r, t)
        loss = ReduceSum<keepdims = 0>(y)
    }}"""
    model = lower(onnx.parser.parse_model(text), ["x"])
    x = np.arange(1, 41, dtype=np.float32)
    feeds: dict[str, Array] = {"x": x}
    if not training:
        feeds["t"] = np.array(True)
    found = Session(model).run(feeds)
    assert (found["y"] == 0).any()
    np.testing.assert_allclose(found["grad_x"], found["y"] / x, rtol=1e-6)
    if not training:
        found = Session(model).run({**feeds, "t": np.array(False)})
        np.testing.assert_array_equal(found["grad_x"], np.ones(40))


def test_dropout_that_drops_nothing() -> None:
    text = "g (float[4] x) => (float[] y) { y = Dropout(x) }"
    check_gradient(text, {"x": numbers(4)})
