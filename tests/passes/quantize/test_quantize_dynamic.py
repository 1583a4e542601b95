"""quantize-dynamic: what it writes, and its numbers against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.quantize.quantize_dynamic import QuantizeDynamic
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Array = npt.NDArray[Any]
Apply = Callable[[Pass | str, ir.Model], PassResult]
AssertText = Callable[[ir.Model, str], None]

ALL = "quantize-dynamic{smallest=0}"


def _normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _model(text: str, opset: int = 17, **constants: Array) -> ir.Model:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    proto = onnx.parser.parse_model(header + text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def _dynamic(x: Array) -> tuple[Array, np.float32]:
    """x rounded as DynamicQuantizeLinear does, as codes less their zero point, and the scale."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point, scale


def _product(x: Array, weights: Array) -> Array:
    scales = np.abs(weights).max(axis=0) / np.float32(127)
    codes = np.rint(weights / scales)
    data, scale = _dynamic(x)
    result: Array = (data @ codes) * (scale * scales)
    return result


@pytest.mark.parametrize("opset", [11, 13, 21, 23])
@pytest.mark.parametrize("shape", [(1, 64), (7, 64), (2, 3, 64)])
def test_products(apply_pass: Apply, shape: tuple[int, ...], opset: int) -> None:
    rank = ",".join(f"d{axis}" for axis in range(len(shape)))
    weights, x = _normal(64, 40), _normal(*shape, seed=1)
    text = f"g (float[{rank}] x) => (float[{rank}] y) {{ y = MatMul(x, w) }}"
    model = _model(text, opset, w=weights)
    result = apply_pass(ALL, model)
    assert result.rules == {"quantize-product": 1}
    assert "w" not in model.graph.initializers
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run({"x": x})["y"]
        np.testing.assert_allclose(found, _product(x, weights), atol=1e-4)


def test_the_chain_is_one_that_onnxruntime_fuses(
    apply_pass: Apply, assert_text: AssertText, tmp_path: Any
) -> None:
    model = _model(
        "g (float[m,32] x) => (float[m,n] y) { y = Gemm(x, w, b) }",
        w=_normal(32, 40),
        b=np.ones(40, np.float32),
    )
    apply_pass(ALL, model)
    assert [node.op_type for node in model.graph] == [
        *("DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add"),
    ]
    step = next(node for node in model.graph if node.op_type == "Mul")
    assert [value and value.name for value in step.inputs] == ["x_quantized_1", "w_scale"]
    path = tmp_path / "optimized.onnx"
    Session(ir.to_proto(model), DEPLOYMENT, optimized_model_path=path)
    optimized = onnx.load(path)
    assert [node.op_type for node in optimized.graph.node] == ["DynamicQuantizeMatMul"]


def test_data_that_several_products_read_is_quantized_once(apply_pass: Apply) -> None:
    model = _model(
        """g (float[m,32] x) => (float[m,32] y) {
             q = MatMul(x, w) k = MatMul(x, v) s = Add(q, k) y = MatMul(s, w) }""",
        w=_normal(32, 32),
        v=_normal(32, 32, seed=2),
    )
    apply_pass(ALL, model)
    ops = [node.op_type for node in model.graph]
    assert ops.count("DynamicQuantizeLinear") == 2
    assert ops.count("MatMulInteger") == 3
    weights, other, x = _normal(32, 32), _normal(32, 32, seed=2), _normal(5, 32, seed=3)
    summed = (_product(x, weights) + _product(x, other)).astype(np.float32)
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run({"x": x})["y"]
        np.testing.assert_allclose(found, _product(summed, weights), atol=2.0)
        float_result = (x @ weights + x @ other) @ weights
        assert np.abs(found - float_result).max() < 0.03 * np.abs(float_result).max()


def test_the_factors_of_gemm_are_taken_in(apply_pass: Apply) -> None:
    weights, bias, x = _normal(40, 32), _normal(40, seed=1), _normal(3, 32, seed=2)
    model = _model(
        "g (float[m,32] x) => (float[m,40] y) {"
        " y = Gemm<alpha = -2.0, beta = 0.5, transB = 1>(x, w, b) }",
        w=weights,
        b=bias,
    )
    apply_pass(ALL, model)
    doubled = -2 * np.moveaxis(weights, 1, 0)
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run({"x": x})["y"]
        np.testing.assert_allclose(found, _product(x, doubled) + 0.5 * bias, atol=1e-4)


def _lstm(
    x: Array, weights: Array, recurrence: Array, bias: Array, *, reverse: bool = False
) -> Array:
    """The states of one direction in float, [steps, batch, hidden]."""
    hidden = recurrence.shape[1]
    h: Array = np.zeros((x.shape[1], hidden))
    c: Array = np.zeros((x.shape[1], hidden))
    total = bias[: 4 * hidden] + bias[4 * hidden :]
    states: list[Array] = []
    for step in x[::-1] if reverse else x:
        gates = step @ np.moveaxis(weights, 1, 0) + h @ np.moveaxis(recurrence, 1, 0) + total
        i, o, f, g = np.split(gates, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        states.append(h)
    return np.array(states[::-1] if reverse else states)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("biased", [True, False])
def test_lstm(apply_pass: Apply, direction: str, biased: bool) -> None:
    count, hidden, inputs = (2 if direction == "bidirectional" else 1), 24, 20
    weights = 0.2 * _normal(count, 4 * hidden, inputs)
    recurrence = 0.2 * _normal(count, 4 * hidden, hidden, seed=1)
    # Gates of different size: one scale for all of them would not do.
    weights[:, : 2 * hidden] *= 0.01
    bias = 0.1 * _normal(count, 8 * hidden, seed=2)
    constants = {"w": weights, "r": recurrence} | ({"b": bias} if biased else {})
    model = _model(
        f"g (float[s,n,20] x) => (float[s,d,n,24] y, float[d,n,24] h) {{ y, h = "
        f'LSTM<hidden_size = 24, direction = "{direction}">(x, w, r{", b" if biased else ""}) }}',
        17,
        **constants,
    )
    result = apply_pass(ALL, model)
    assert result.rules == {"quantize-lstm": 1}
    (node,) = model.graph
    assert (node.domain, node.op_type) == ("com.microsoft", "DynamicQuantizeLSTM")
    assert [value and (value.dtype, value.shape) for value in node.inputs[1:3]] == [
        (ir.DataType.INT8, ir.Shape((count, 20, 96))),
        (ir.DataType.INT8, ir.Shape((count, 24, 96))),
    ]
    x = _normal(6, 3, 20, seed=3)
    zeros: Array = np.zeros(8 * hidden, np.float32)
    expected = np.stack(
        [
            _lstm(
                x,
                weights[d],
                recurrence[d],
                bias[d] if biased else zeros,
                reverse=direction == "reverse" or d == 1,
            )
            for d in range(count)
        ],
        axis=1,
    )
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run({"x": x})
        np.testing.assert_allclose(found["y"], expected, atol=0.02)
        last = [expected[0 if direction == "reverse" or d else -1, d] for d in range(count)]
        np.testing.assert_allclose(found["h"], np.stack(last), atol=0.02)


def test_lengths_states_and_peepholes_of_an_lstm_stay(apply_pass: Apply) -> None:
    constants = {
        "w": 0.3 * _normal(1, 32, 8),
        "r": 0.3 * _normal(1, 32, 8, seed=1),
        "p": 0.3 * _normal(1, 24, seed=2),
    }
    text = """g (float[s,n,8] x, int32[n] lengths, float[1,n,8] h, float[1,n,8] c)
              => (float[s,1,n,8] y, float[1,n,8] yh, float[1,n,8] yc)
              { y, yh, yc = LSTM<hidden_size = 8, clip = 2.0>(x, w, r, , lengths, h, c, p) }"""
    feed = {
        "x": _normal(5, 2, 8, seed=3),
        "lengths": np.array([5, 3], np.int32),
        "h": _normal(1, 2, 8, seed=4),
        "c": _normal(1, 2, 8, seed=5),
    }
    model = _model(text, 17, **constants)
    expected = Session(ir.to_proto(model)).run(feed)
    apply_pass(ALL, model)
    found = Session(ir.to_proto(model)).run(feed)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=0.03)


def test_products_in_bodies(apply_pass: Apply) -> None:
    model = _model(
        """g (float[1,64] x, bool b) => (float[1,64] y) {
             a = MatMul(x, k)
             y = If (b) <then_branch = yes () => (float[1,64] p) { p = MatMul(x, k) },
                         else_branch = no () => (float[1,64] q) { q = MatMul(a, k) }> }""",
        k=_normal(64, 64),
    )
    assert apply_pass(ALL, model).rules["quantize-product"] == 3
    x = _normal(1, 64, seed=1)
    once = _product(x, _normal(64, 64))
    twice = _product(once.astype(np.float32), _normal(64, 64))
    for branch, expected in ((True, once), (False, twice)):
        found = Session(ir.to_proto(model)).run({"x": x, "b": np.array(branch)})["y"]
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        (
            "g (float[1,m] x) => (float[1,n] y) { y = MatMul(x, w) }",
            {"w": (66400, 1)},
            "sums of 66400 products may be more than int32 holds",
        ),
        (
            "g (float[2,m,64] x) => (float[2,m,64] y) { y = MatMul(x, w) }",
            {"w": (2, 64, 64)},
            "its weights have 3 axes, not 2",
        ),
        (
            "g (float[n,s,8] x) => (float[n,s,1,8] y) "
            "{ y = LSTM<hidden_size = 8, layout = 1>(x, w, r) }",
            {"w": (1, 32, 8), "r": (1, 32, 8)},
            "its data are batches of sequences (layout=1)",
        ),
        (
            "g (float[s,n,8] x, float[1,32,8] w) => (float[s,1,n,8] y) "
            "{ y = LSTM<hidden_size = 8>(x, w, r) }",
            {"r": (1, 32, 8)},
            "its weights are computed at run time",
        ),
    ],
)
def test_what_stays_in_float_has_a_reason(
    apply_pass: Apply, text: str, shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    model = _model(text, 17, **{name: _normal(*shape) for name, shape in shapes.items()})
    result = apply_pass(ALL, model)
    assert not result.modified
    assert [each.reason for each in result.remarks] == [f"it stays in float: {reason}"]


def test_small_operators_stay_with_a_remark(apply_pass: Apply) -> None:
    model = _model(
        "g (float[m,64] x) => (float[m,64] y) { y = MatMul(x, w) }",
        w=_normal(64, 64),
    )
    result = apply_pass("quantize-dynamic", model)
    assert not result.modified
    reason = "it stays in float: its 4096 weights are less than 32768 (option smallest)"
    assert [each.reason for each in result.remarks] == [reason]
    assert not apply_pass("quantize-dynamic{smallest=0 skip=y}", model).modified
    assert not apply_pass("quantize-dynamic{smallest=0 op-types=Gemm,LSTM}", model).modified


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        (
            "g (float[n,4,s] x) => (float[n,4,t] y) { y = Conv(x, w) }",
            {"w": (4, 4, 3)},
            "ConvInteger is slower than Conv",
        ),
        (
            "g (float[n,4,s] x) => (float[n,4,t] y) { y = ConvTranspose(x, w) }",
            {"w": (4, 4, 3)},
            "there is no operator for it on codes",
        ),
    ],
)
def test_operators_without_a_form_have_a_remark(
    apply_pass: Apply, text: str, shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    weights = {name: _normal(*shape) for name, shape in shapes.items()}
    result = apply_pass("quantize-dynamic", _model(text, 17, **weights))
    assert not result.modified
    assert [each.reason for each in result.remarks] == [f"it stays in float: {reason}"]
    asked = apply_pass("quantize-dynamic{op-types=MatMul}", _model(text, 17, **weights))
    assert asked.remarks == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op_types": ("Conv",)}, "'Conv' has no such form; it can be MatMul, Gemm, LSTM"),
        ({"skip": ("z",)}, "the model has no node 'z'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    model = _model("g (float[m,64] x) => (float[m,64] y) { y = MatMul(x, w) }", w=_normal(64, 64))
    with pytest.raises(UsageError, match=message):
        QuantizeDynamic(**options).run(model)


def test_an_old_opset_is_refused_with_advice() -> None:
    text = "g (float[m,64] x) => (float[m,64] y) { y = MatMul(x, w) }"
    with pytest.raises(PassError, match="needs opset 11, the model has 10: run upgrade-opset"):
        QuantizeDynamic(smallest=0).run(_model(text, 10, w=_normal(64, 64)))
