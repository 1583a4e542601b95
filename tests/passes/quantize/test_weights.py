"""Weights and biases: accuracy inside the range, channel axes, and no int32 overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.affine import affine_from_range
from onnxfold.passes.quantize.weights import QuantizedWeights, quantize_weights

Array = npt.NDArray[Any]
DATA = affine_from_range(-1.0, 3.0, ir.DataType.UINT8)


def _quantize(
    op: str, weights: Array, bias: Array | None = None, *, per_channel: bool = True, **kwargs: Any
) -> QuantizedWeights:
    inputs = [ir.val("x", ir.DataType.FLOAT), _initializer("w", weights)]
    if bias is not None:
        inputs.append(_initializer("b", bias))
    node = ir.node(op, inputs, kwargs)
    ir.Graph(inputs[:1], node.outputs, nodes=[node], initializers=inputs[1:])
    quantized = quantize_weights(node, DATA, per_channel=per_channel)
    assert quantized is not None
    return quantized


def _initializer(name: str, array: Array) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(array, name=name))


def _normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "axis"),
    [
        ("Conv", (6, 2, 3, 3), {"group": 2}, 0),
        ("ConvTranspose", (4, 6, 2, 2), {}, 1),
        ("ConvTranspose", (4, 3, 2, 2), {"group": 2}, None),
        ("Gemm", (5, 7), {}, 1),
        ("Gemm", (5, 7), {"transB": 1}, 0),
        ("MatMul", (5, 7), {}, 1),
        ("MatMul", (2, 5, 7), {}, None),
    ],
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_scale_runs_along_the_output_channels(
    op: str, shape: tuple[int, ...], attributes: dict[str, Any], axis: int | None, per_channel: bool
) -> None:
    weights = _normal(*shape)
    quantized = _quantize(op, weights, per_channel=per_channel, **attributes)
    kind = quantized.weight_type
    assert kind.axis == (axis if per_channel else None)
    assert kind.scale.shape == ((shape[axis],) if per_channel and axis is not None else ())
    assert kind.symmetric
    error = np.abs(kind.dequantize(quantized.weights) - weights)
    assert error.max() <= kind.scale.max() / 2 * (1 + 1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.floats(-30, 30), st.floats(-30, 30))
def test_int32_holds_bias_and_accumulator(seed: int, log_weight: float, log_bias: float) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(3, 8, 3, 3)) * 10.0**log_weight).astype(np.float32)
    bias = (rng.normal(size=3) * 10.0**log_bias).astype(np.float32)
    quantized = _quantize("Conv", weights, bias)
    assert quantized.bias is not None
    assert quantized.bias_type is not None
    sums = np.abs(quantized.weights.astype(np.int64)).sum(axis=(1, 2, 3)) * 255
    assert (sums + np.abs(quantized.bias.astype(np.int64))).max() < 2**31
    # Half a step, and what rounding the scales to float32 adds.
    error = np.abs(quantized.bias_type.dequantize(quantized.bias) - bias)
    assert np.all(error <= quantized.bias_type.scale / 2 + np.abs(bias) * 1e-6)


def test_a_dead_channel_with_a_bias_raises_its_scale_only() -> None:
    weights, bias = _normal(2, 4, 3, 3), np.array([0.25, 8.0], np.float32)
    plain = _quantize("Conv", weights).weight_type.scale
    weights[1] *= 1e-12
    raised = _quantize("Conv", weights, bias)
    assert raised.weight_type.scale[0] == plain[0]
    assert raised.weight_type.scale[1] == np.float32(8.0 / (float(DATA.scale) * 2.0**30))
    assert raised.bias is not None
    assert abs(int(raised.bias[1]) - 2**30) <= 2**7


def test_a_channel_of_zeros_has_a_positive_scale() -> None:
    weights = _normal(3, 4)
    weights[:, 2] = 0
    quantized = _quantize("MatMul", weights)
    assert np.all(quantized.weight_type.scale > 0)
    assert not quantized.weights[:, 2].any()


def test_a_sum_too_long_for_int32_raises_the_scale() -> None:
    weights = np.ones((70_000, 1), np.float32)
    codes = _quantize("MatMul", weights).weights.astype(np.int64)
    assert 0 < codes.sum() * 255 <= 2**30 + 70_000 * 255


def test_the_bias_scale_is_the_float32_product() -> None:
    quantized = _quantize("Gemm", _normal(5, 7), _normal(1, 7))
    assert quantized.bias is not None
    assert quantized.bias_type is not None
    assert quantized.bias.shape == (7,)
    assert quantized.bias.dtype == np.int32
    product: Array = np.asarray(DATA.scale * quantized.weight_type.scale, np.float32)
    assert np.array_equal(quantized.bias_type.scale, product)
    assert quantized.bias_type.axis == 0


def test_a_scalar_bias_becomes_one_a_channel() -> None:
    quantized = _quantize("Gemm", _normal(5, 7), np.array([2.0], np.float32))
    assert quantized.bias is not None
    assert quantized.bias.shape == (7,)


@pytest.mark.parametrize(
    ("bias", "attributes"), [((7,), {"alpha": 0.5}), ((7,), {"beta": 0.5}), ((3, 7), {})]
)
def test_a_bias_that_is_not_one_a_channel_stays_in_float(
    bias: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    assert _quantize("Gemm", _normal(5, 7), _normal(*bias), **attributes).bias is None
