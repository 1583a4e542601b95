"""What the fold leaves in float, the reason it gives, and that the numbers stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq

_HEADER = "agraph (uint8[1,2,3,3] q) => (uint8[1,2,3,3] y)"
_GRID = "float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}"
_W = "int8[2,2,1,1] w = {1, 2, 3, 4}"
_CONV = "{ x = DequantizeLinear (q, sx, zx) %s y = QuantizeLinear (c, sy, zy) }"


def _conv(declarations: str, body: str, header: str = _HEADER) -> str:
    return f"{header} <{_GRID}, {_W}, {declarations}> {_CONV % body}"


_CLEANING = {"remove-replaced", "remove-replaced-constant"}

REFUSED = {
    "weights scaled along the input channels": (
        _conv(
            "float[2] sw = {0.5, 0.25}",
            "wf = DequantizeLinear <axis: int = 1> (w, sw) c = Conv (x, wf)",
        ),
        "Conv",
        "one scale per index of axis 1",
    ),
    "different zero points per channel": (
        _conv(
            "float[2] sw = {0.5, 0.25}, int8[2] zw = {-127, 125}",
            "wf = DequantizeLinear <axis: int = 0> (w, sw, zw) c = Conv (x, wf)",
        ),
        "Conv",
        "different zero points per channel",
    ),
    "bias beyond int32": (
        _conv(
            "float sw = {0.5}, float[2] b = {1e9, 0.0}",
            "wf = DequantizeLinear (w, sw) c = Conv (x, wf, b)",
        ),
        "Conv",
        "could overflow",
    ),
    "bias computed at run time": (
        _conv(
            "float sw = {0.5}",
            "wf = DequantizeLinear (w, sw) c = Conv (x, wf, b)",
            "agraph (uint8[1,2,3,3] q, float[2] b) => (uint8[1,2,3,3] y)",
        ),
        "Conv",
        "is not one constant a channel",
    ),
    "transposed convolution": (
        _conv("float sw = {0.5}", "wf = DequantizeLinear (w, sw) c = ConvTranspose (x, wf)"),
        "ConvTranspose",
        "no integer kernel for ConvTranspose",
    ),
    "not a number for some codes": (
        _conv("float k = {0.5}", "c = Log (x)"),
        "Log",
        "it is not a number for some codes of 'x'",
    ),
    "unknown operator": (
        _conv("float k = {0.5}", "c = Hardmax (x)"),
        "Hardmax",
        "no integer rule for Hardmax",
    ),
    "interpolation": (
        _conv(
            "float[4] scales = {1.0, 1.0, 1.0, 1.0}",
            'c = Resize <mode: string = "linear"> (x, , scales)',
        ),
        "Resize",
        "sizes are not known",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("target", ["ort", "qdq"])
def test_refused_op_stays_float_with_a_reason(
    case: str,
    target: Literal["ort", "qdq"],
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, np.ndarray]],
) -> None:
    text, op_type, reason = REFUSED[case]
    before, model = parse(text), parse(text)
    result = apply_pass(FoldQdq(target), model)
    assert any(node.op_type == op_type for node in model.graph)
    (remark,) = [each for each in result.remarks if each.op_type == op_type]
    assert reason in remark.reason
    feed = _feed(before)
    np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(before, feed)["y"])


def _feed(model: ir.Model) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        shape = value.shape.numpy()
        if value.dtype == ir.DataType.FLOAT:
            feed[value.name] = numbers.standard_normal(shape).astype(np.float32)
        else:
            feed[value.name] = numbers.integers(0, 256, shape).astype(value.dtype.numpy())
    return feed


def test_per_channel_activations_stay_float(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        "agraph (uint8[1,2,3,3] q) => (uint8[1,2,3,3] y)"
        " <float[2] sx = {0.5, 0.25}, uint8[2] zx = {100, 3}, float sw = {0.5},"
        " float sy = {0.25}, uint8 zy = {7}, int8[2,2,1,1] w = {1, 2, 3, 4}>"
        "{ x = DequantizeLinear <axis: int = 1> (q, sx, zx) wf = DequantizeLinear (w, sw)"
        " c = Conv (x, wf) y = QuantizeLinear (c, sy, zy) }"
    )
    result = apply_pass("fold-qdq", model)
    assert result.rules.keys() <= {"guard-float", "dequantize-weights"} | _CLEANING
    assert "'x' is quantized per channel" in result.remarks[0].reason


def test_accumulator_overflow_is_refused(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    depth = 120_000
    model = parse(
        f"agraph (uint8[1,{depth}] q) => (uint8[1,1] y) <{_GRID}, float sw = {{0.5}},"
        f" int8[{depth},1] w = {{{', '.join(['127'] * depth)}}}>"
        "{ x = DequantizeLinear (q, sx, zx) wf = DequantizeLinear (w, sw)"
        " m = MatMul (x, wf) y = QuantizeLinear (m, sy, zy) }"
    )
    result = apply_pass("fold-qdq", model)
    assert "int32 accumulator could overflow" in result.remarks[0].reason
    assert [node.op_type for node in model.graph][-2:] == ["MatMul", "QuantizeLinear"]


def test_output_read_unrounded_names_the_reader(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        f"agraph (uint8[1,2,3,3] q) => (uint8[1,2,3,3] y, float[1,2,3,3] e) <{_GRID}, {_W},"
        " float sw = {0.5}>"
        "{ x = DequantizeLinear (q, sx, zx) wf = DequantizeLinear (w, sw) c = Conv (x, wf)"
        " e = Erf (c) y = QuantizeLinear (c, sy, zy) }"
    )
    result = apply_pass("fold-qdq", model)
    reasons = {remark.op_type: remark.reason for remark in result.remarks}
    assert reasons["Conv"].startswith("its output is read unrounded by Erf")
    (conv,) = [node for node in model.graph if node.op_type == "Conv"]
    data, weights = conv.inputs[:2]
    assert data is not None
    assert weights is not None
    assert weights.const_value is not None
    producer = data.producer()
    assert producer is not None
    assert producer.op_type == "Mul", "ONNX Runtime would requantize float weights"


def test_float_convolution_gets_its_weights_dequantized_ahead_of_time(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        f"agraph (uint8[1,2,3,3] q) => (float[1,2,3,3] y) <{_GRID}, {_W}, float sw = {{0.5}}>"
        "{ x = DequantizeLinear (q, sx, zx) wf = DequantizeLinear (w, sw) y = Conv (x, wf) }"
    )
    apply_pass("fold-qdq", model)
    (conv,) = [node for node in model.graph if node.op_type == "Conv"]
    weights = conv.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    np.testing.assert_array_equal(
        weights.const_value.numpy().reshape(-1), np.array([0.5, 1.0, 1.5, 2.0], np.float32)
    )


@pytest.mark.parametrize("body", ["Sum (x, m)", "Mean (x, m)", "Neg (m)"])
def test_sum_of_an_unrounded_product_says_so(body: str, parse: Callable[..., ir.Model]) -> None:
    model = parse(
        "agraph (uint8[2,2] q) => (uint8[2,2] y)"
        " <float s = {0.1}, uint8 z = {3}, int8[2,2] w = {1, 2, 3, 4}, float[2] b = {0.1, 0.2}> {"
        " x = DequantizeLinear (q, s, z) v = DequantizeLinear (w, s) p = MatMul (x, v)"
        f" m = Softmax (p) n = {body} y = QuantizeLinear (n, s, z) }}"
    )
    reasons = {each.node: each.reason for each in FoldQdq().run(model).remarks}
    assert reasons["n"] == "'m' is not quantized"
