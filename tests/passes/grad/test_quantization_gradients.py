"""Quantization is passed straight through inside the range; scales learn as step sizes do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from onnxfold.passes.affine import INTEGER_LIMITS
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.add_gradient import AddGradient
from onnxfold.passes.grad.lower_gradient import LowerGradient
from onnxfold.runtime.session import REFERENCE, Session, max_opset_version, version

Array = npt.NDArray[Any]

_TYPES = ("int8", "uint8", "int16", "uint16", "int4", "uint4")


def _lower(
    text: str,
    *wrt: str,
    opset: int = 21,
    steps: Literal["exact", "normalized"] = "exact",
) -> onnx.ModelProto:
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = ir.from_proto(parser.parse_model(f"{header} {text}"))
    AddGradient(wrt=wrt).run(model)
    LowerGradient(steps=steps).run(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _gradients(
    text: str, feeds: Mapping[str, Array], *wrt: str, opset: int = 21
) -> dict[str, Array]:
    results = Session(_lower(text, *wrt, opset=opset), REFERENCE).run(dict(feeds))
    return {name: np.asarray(results[f"grad_{name}"]) for name in wrt}


def _expected(
    x: Array, scale: Array, zero: Array, gradient: Array, dtype: str
) -> tuple[Array, Array]:
    """The gradients of x and, for every element, of its scale (Esser et al. 2020, eq. 3)."""
    low, high = INTEGER_LIMITS[ir.DataType[dtype.upper()]]
    ratio = x.astype(np.float64) / scale
    rounded = np.rint(ratio + zero)
    inside = (rounded >= low) & (rounded <= high)
    step = np.where(inside, np.rint(ratio) - ratio, np.clip(rounded, low, high) - zero)
    return gradient * inside, gradient * step


def _feeds(shape: tuple[int, ...], low: int, high: int) -> tuple[Array, Array]:
    random = np.random.default_rng(5)
    x = random.uniform(1.5 * low, 1.5 * high, shape) * 0.1
    return x.astype(np.float32), random.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("opset", sorted({21, min(25, max_opset_version())}))
def test_a_scale_of_the_tensor(dtype: str, opset: int) -> None:
    if opset == 23 and version().startswith("1.23."):
        pytest.skip("onnxruntime 1.23 has no QuantizeLinear of opset 23")
    low, high = INTEGER_LIMITS[ir.DataType[dtype.upper()]]
    x, weights = _feeds((4, 5), low, high)
    # Just inside the limits, and just outside.
    x[0, :4] = [(low - 3.3) * 0.1, (low - 3.7) * 0.1, (high - 2.7) * 0.1, (high - 2.3) * 0.1]
    text = f"""
    g (float[N, 5] x, float s, float[N, 5] g) => (float loss) <{dtype} z = {{3}}>
    {{ q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z)
       p = Mul (y, g)  loss = ReduceSum <keepdims = 0> (p) }}"""
    scale = np.array(0.1, np.float32)
    found = _gradients(text, {"x": x, "s": scale, "g": weights}, "x", "s", opset=opset)
    d_x, d_scale = _expected(x, scale, np.array(3), weights, dtype)
    np.testing.assert_array_equal(found["x"], d_x)
    np.testing.assert_allclose(found["s"], d_scale.sum(), rtol=2e-5)
    assert 0 < np.count_nonzero(d_x) < d_x.size


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_a_channel(axis: int, domain: str) -> None:
    x, weights = _feeds((2, 3, 4), -128, 127)
    channels = x.shape[axis]
    scale = np.linspace(0.05, 0.2, channels).astype(np.float32)
    zero: Array = np.arange(channels, dtype=np.int8)
    listed = ", ".join(map(str, zero))
    text = f"""
    g (float[N, 3, 4] x, float[{channels}] s, float[N, 3, 4] g) => (float loss)
    <int8[{channels}] z = {{{listed}}}, float[N, 3, 4] y>
    {{ q = {domain}QuantizeLinear <axis = {axis}> (x, s, z)
       y = {domain}DequantizeLinear <axis = {axis}> (q, s, z)
       p = Mul (y, g)  loss = ReduceSum <keepdims = 0> (p) }}"""
    found = _gradients(text, {"x": x, "s": scale, "g": weights}, "x", "s")
    shape = [1, 1, 1]
    shape[axis] = channels
    d_x, d_scale = _expected(x, scale.reshape(shape), zero.reshape(shape), weights, "int8")
    others = tuple(each for each in range(3) if each != axis % 3)
    np.testing.assert_array_equal(found["x"], d_x)
    np.testing.assert_allclose(found["s"], d_scale.sum(others), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "block"), [(6, 3), (5, 3), (4, 2)])
@pytest.mark.parametrize("dims", ["static", "symbolic"])
def test_a_scale_a_block(rows: int, block: int, dims: str) -> None:
    x, weights = _feeds((rows, 2), -8, 7)
    blocks = -(-rows // block)
    scale = np.linspace(0.05, 0.2, 2 * blocks).astype(np.float32).reshape(blocks, 2)
    shape = f"{rows}, 2" if dims == "static" else "N, M"
    text = f"""
    g (float[{shape}] x, float[{blocks}, 2] s, float[{shape}] g) => (float loss)
    {{ q = QuantizeLinear <axis = 0, block_size = {block}, output_dtype = 22> (x, s)
       y = DequantizeLinear <axis = 0, block_size = {block}> (q, s)
       p = Mul (y, g)  loss = ReduceSum <keepdims = 0> (p) }}"""
    found = _gradients(text, {"x": x, "s": scale, "g": weights}, "x", "s")
    repeated = np.repeat(scale, block, axis=0)[:rows]
    d_x, d_scale = _expected(x, repeated, np.array(0), weights, "int4")
    sums = [d_scale[start : start + block].sum(0) for start in range(0, rows, block)]
    np.testing.assert_array_equal(found["x"], d_x)
    np.testing.assert_allclose(found["s"], sums, rtol=2e-5, atol=1e-5)


def test_codes_may_be_moved_between() -> None:
    x, _ = _feeds((2, 3), -128, 127)
    other = np.array([[0.3, 20, -0.2]], np.float32)
    text = """
    g (float[N, 3] x, float[1, 3] w, float s, float[M, 2] g) => (float loss)
    <int8 z = {0}, int64[2] to = {-1, 2}, int64[4] pads = {1, 0, 0, 0}, int64[2] axes = {0, 1},
     int64[2] order = {1, 0}>
    {
       qx = QuantizeLinear (x, s, z)
       qw = QuantizeLinear (w, s, z)
       joined = Concat <axis = 0> (qx, qw)
       turned = Transpose <perm = [1, 0]> (joined)
       padded = Pad (turned, pads, z)
       flat = Reshape (padded, to)
       y = DequantizeLinear (flat, s, z)
       p = Mul (y, g)
       loss = ReduceSum <keepdims = 0> (p)
    }"""
    gradient = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    scale = np.array(0.1, np.float32)
    feeds = {"x": x, "w": other, "s": scale, "g": gradient}
    found = _gradients(text, feeds, "x", "w", "s")
    back = np.transpose(gradient.reshape(4, 3)[1:])
    real = np.concatenate([x, other])
    d_real, d_scale = _expected(real, scale, np.array(0), back, "int8")
    np.testing.assert_array_equal(found["x"], d_real[:2])
    np.testing.assert_array_equal(found["w"], d_real[2:])
    np.testing.assert_allclose(found["s"], d_scale.sum(), rtol=1e-4)


def test_scales_that_differ() -> None:
    text = """
    g (float[N] x, float s, float t) => (float loss) <uint8 z = {0}>
    { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, t, z)
      loss = ReduceSum <keepdims = 0> (y) }"""
    x = np.array([-0.4, 1.3, 2.1, 40], np.float32)
    feeds = {"x": x, "s": np.array(0.1, np.float32), "t": np.array(0.5, np.float32)}
    found = _gradients(text, feeds, "x", "s", "t")
    np.testing.assert_allclose(found["x"], [0, 5, 5, 0], rtol=1e-6)
    np.testing.assert_allclose(found["s"], -0.5 * (1.3 + 2.1) / 0.1**2, rtol=1e-5)
    np.testing.assert_allclose(found["t"], 0 + 13 + 21 + 255, rtol=1e-6)


def test_dynamic_quantization() -> None:
    text = """
    g (float[N] x, float[N] g) => (float loss)
    { q, s, z = DynamicQuantizeLinear (x)  y = DequantizeLinear (q, s, z)
      p = Mul (y, g)  loss = ReduceSum <keepdims = 0> (p) }"""
    x, weights = _feeds((7,), -128, 127)
    found = _gradients(text, {"x": x, "g": weights}, "x")
    np.testing.assert_array_equal(found["x"], weights)


def test_the_scale_of_stored_codes() -> None:
    text = """
    g (float[N, 2] x, float[2] s) => (float loss)
    <int8[2, 2] w = {1, 2, 3, -4}, int8[2] z = {1, 0}>
    { y = DequantizeLinear <axis = 1> (w, s, z)  p = MatMul (x, y)
      loss = ReduceSum <keepdims = 0> (p) }"""
    x = np.array([[1, 2], [3, 5]], np.float32)
    found = _gradients(text, {"x": x, "s": np.ones(2, np.float32)}, "s")
    np.testing.assert_array_equal(found["s"], [4 * 0 + 7 * 2, 4 * 2 - 7 * 4])


@pytest.mark.parametrize(
    "middle",
    [
        "i = MatMulInteger (q, w)  c = Cast <to = 1> (i)  y = Mul (c, s)",
        "i = QLinearMatMul (q, s, z, w, s, zw, s, z)  y = DequantizeLinear (i, s, z)",
    ],
)
def test_integer_arithmetic_is_refused(middle: str) -> None:
    text = f"""
    g (float[N, 2] x) => (float loss)
    <float s = {{0.1}}, uint8 z = {{0}}, int8 zw = {{0}}, int8[2, 2] w = {{1, 2, 3, 4}}>
    {{ q = QuantizeLinear (x, s, z)  {middle}  loss = ReduceSum <keepdims = 0> (y) }}"""
    with pytest.raises(UsageError, match="computes on integers; differentiate the float model"):
        _lower(text, "x")


def test_float8_codes_are_refused() -> None:
    text = """
    g (float[N] x, float s) => (float loss)
    { q = QuantizeLinear <output_dtype = 17> (x, s)  y = DequantizeLinear (q, s)
      loss = ReduceSum <keepdims = 0> (y) }"""
    with pytest.raises(UsageError, match="codes of type FLOAT8E4M3FN"):
        _lower(text, "x")


@pytest.mark.parametrize("wrt", ["weights", "w"])
def test_stored_codes_are_no_weights(wrt: str) -> None:
    text = """
    g (float[N, 2] x) => (float loss) <float s = {0.1}, int8 z = {0}, int8[2, 2] w = {1, 2, 3, 4}>
    { y = DequantizeLinear (w, s, z)  p = MatMul (x, y)  loss = ReduceSum <keepdims = 0> (p) }"""
    with pytest.raises(UsageError, match="'w' holds integer codes, which cannot be trained; train"):
        _lower(text, wrt)


def test_normalized_steps() -> None:
    text = """
    g (float[N, 3] x, float[3] s) => (float loss)
    { q = QuantizeLinear <output_dtype = 3> (x, s)  y = DequantizeLinear (q, s)
      p = Mul (y, y)  loss = ReduceSum <keepdims = 0> (p) }"""
    x, _ = _feeds((5, 3), -128, 127)
    feeds = {"x": x, "s": np.full(3, 0.1, np.float32)}
    exact = _gradients(text, feeds, "x", "s")
    normalized = Session(_lower(text, "x", "s", steps="normalized"), REFERENCE).run(dict(feeds))
    np.testing.assert_array_equal(normalized["grad_x"], exact["x"])
    np.testing.assert_allclose(normalized["grad_s"], exact["s"] / np.sqrt(5 * 127), rtol=1e-6)


def test_float_weights_that_are_quantized_inside_are_weights() -> None:
    text = """
    g (float[N, 2] x) => (float loss)
    <float s = {0.1}, int8 z = {0}, float[2, 2] w = {0.5, 1.04, 2, 50}>
    { q = QuantizeLinear (w, s, z)  y = DequantizeLinear (q, s, z)  p = MatMul (x, y)
      loss = ReduceSum <keepdims = 0> (p) }"""
    model = _lower(text, "weights")
    found = Session(model, REFERENCE).run({"x": np.array([[1, 2]], np.float32)})
    np.testing.assert_array_equal(found["grad_w"], [[1, 1], [2, 0]])


def test_torch_agrees() -> None:
    """torch._fake_quantize_learnable_per_tensor_affine(x, s, 3, -128, 127, 1.0), torch 2.13."""
    text = """
    g (float[N] x, float s, float[N] g) => (float loss) <int8 z = {3}>
    { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z)
      p = Mul (y, g)  loss = ReduceSum <keepdims = 0> (p) }"""
    feeds = {
        "x": np.array([-14, -13.12, -0.22, 0.04, 3.33, 12.41, 12.6], np.float32),
        "s": np.array(0.1, np.float32),
        "g": np.arange(1, 8).astype(np.float32),
    }
    found = _gradients(text, feeds, "x", "s")
    np.testing.assert_array_equal(found["x"], [0, 2, 3, 4, 5, 6, 0])
    np.testing.assert_allclose(found["s"], 734.3, rtol=1e-6)
