"""What ONNX Runtime's optimizer misreads is not in a folded model.

Each case shows the wrong numbers (or the failure) of the unfolded graph with optimizations on, so
that a guard no longer needed is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import ExecutionError
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig, version

_GRID = "float s = {0.05}, uint8 z = {120}, float t = {0.1}, uint8 u = {0}"
_STEPS = "{0.002, 0.01, 0.03, 0.06}"
_CHANNELS = "float[4] sc = {0.05, 0.01, 0.02, 0.1}, uint8[4] zc = {120, 3, 90, 0}"
_CONV = "agraph (uint8[1,4,5,5] q) => (uint8[1,4,5,5] y)"
_PRODUCT = "agraph (uint8[8,4] q) => (%s[8,4] y)"


def _numbers(count: int) -> str:
    return ", ".join(map(str, np.random.default_rng(3).integers(-120, 121, count)))


_W4 = f"int8[4,4] w = {{{_numbers(16)}}}, int8[4] zw = {{0, 0, 0, 0}}, float[4] sw = {_STEPS}"
_W1 = _W4.replace("[4,4]", "[4,4,1,1]")
_FLOAT = ", ".join(f"{x * (-1) ** i:.3f}" for i, x in enumerate(np.geomspace(0.003, 5, 16)))

MISREAD = {
    "Gemm with a bias of another scale": (
        f"{_PRODUCT % 'uint8'} <{_GRID}, {_W4}, int32[4] b = {{700, -900, 400, 1200}},"
        " float sb = {0.003}, int32 zb = {0}, float sv = {0.02}, int8 zv = {0}>"
        "{ x = DequantizeLinear (q, s, z) v = DequantizeLinear (w, sv, zv)"
        " c = DequantizeLinear (b, sb, zb) g = Gemm (x, v, c) y = QuantizeLinear (g, t, u) }"
    ),
    "Conv weights scaled along the input channels": (
        f"{_CONV} <{_GRID}, {_W1}>"
        "{ x = DequantizeLinear (q, s, z) v = DequantizeLinear <axis = 1> (w, sw, zw)"
        " c = Conv (x, v) y = QuantizeLinear (c, t, u) }"
    ),
    "MatMul weights with one scale a row": (
        f"{_PRODUCT % 'float'} <{_GRID}, {_W4}>"
        "{ x = DequantizeLinear (q, s, z) v = DequantizeLinear <axis = 0> (w, sw, zw)"
        " y = MatMul (x, v) }"
    ),
    "activations with one scale a channel": (
        f"{_CONV} <{_GRID}, {_CHANNELS}, {_W1}, float sv = {{0.02}}, int8 zv = {{0}}>"
        "{ x = DequantizeLinear <axis = 1> (q, sc, zc) v = DequantizeLinear (w, sv, zv)"
        " c = Conv (x, v) y = QuantizeLinear (c, t, u) }"
    ),
    "results with one scale a channel": (
        f"{_CONV} <{_GRID}, {_CHANNELS}, {_W1}, float sv = {{0.02}}, int8 zv = {{0}}>"
        "{ x = DequantizeLinear (q, s, z) v = DequantizeLinear (w, sv, zv)"
        " c = Conv (x, v) y = QuantizeLinear <axis = 1> (c, sc, zc) }"
    ),
    "two roundings in a row": (
        f"agraph (float[1,4,5,5] q) => (float[1,4,5,5] y) <{_GRID}, float r = {{0.07}}>"
        "{ p = QuantizeLinear (q, s, z) x = DequantizeLinear (p, s, z)"
        " o = QuantizeLinear (x, r, u) y = DequantizeLinear (o, r, u) }"
    ),
    "float weights": (
        f"{_CONV} <{_GRID}, float[4,4,1,1] w = {{{_FLOAT}}}, float[4] b = {{0.1, 0.2, 0.3, 0.4}}>"
        "{ x = DequantizeLinear (q, s, z) c = Conv (x, w, b) y = QuantizeLinear (c, t, u) }"
    ),
    "float weights behind a Relu": (
        f"{_CONV} <{_GRID}, float[4,4,1,1] w = {{{_FLOAT}}}>"
        "{ x = DequantizeLinear (q, s, z) c = Conv (x, w) r = Relu (c)"
        " y = QuantizeLinear (r, t, u) }"
    ),
}


def _feed(model: ir.Model) -> dict[str, Any]:
    value = model.graph.inputs[0]
    assert value.shape is not None
    shape = value.shape.numpy()
    numbers = np.random.default_rng(0)
    if value.dtype == ir.DataType.FLOAT:
        return {"q": (3 * numbers.standard_normal(shape)).astype(np.float32)}
    return {"q": numbers.integers(0, 256, shape).astype(np.uint8)}


@pytest.mark.parametrize("case", MISREAD)
@pytest.mark.parametrize("target", ["ort", "qdq"])
def test_folded_model_means_the_same_with_optimizations_on(
    case: str, target: Literal["ort", "qdq"], parse: Callable[..., ir.Model]
) -> None:
    model = parse(MISREAD[case])
    feed = _feed(model)
    wanted = Session(model, REFERENCE).run(feed)["y"].astype(np.float64)
    FoldQdq(target).run(model)
    for config in (REFERENCE, DEPLOYMENT):
        got = Session(model, config).run(feed)["y"].astype(np.float64)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", MISREAD)
def test_unfolded_graph_is_still_misread(case: str, parse: Callable[..., ir.Model]) -> None:
    model = parse(MISREAD[case])
    feed = _feed(model)
    wanted = Session(model, REFERENCE).run(feed)["y"].astype(np.float64)
    if "scale a channel" in case:
        with pytest.raises(ExecutionError):
            Session(model, DEPLOYMENT).run(feed)
        return
    got = Session(model, DEPLOYMENT).run(feed)["y"].astype(np.float64)
    assert np.max(np.abs(got - wanted)) > 0.02, "no longer misread: drop the guard"


def test_packed_weights_are_multiplied_in_float(parse: Callable[..., ir.Model]) -> None:
    """ONNX Runtime's default quantizes the activations of MatMulNBits; sessions pin it."""
    text = (
        f"agraph (float[8,32] q) => (float[8,32] y) <int8[32,32] w = {{{_numbers(1024)}}},"
        " float sw = {0.02}, int8 zw = {0}>"
        "{ v = DequantizeLinear (w, sw, zw) y = MatMul (q, v) }"
    )
    model = parse(text)
    feed = _feed(model)
    wanted = Session(model, REFERENCE).run(feed)["y"]
    FoldQdq().run(model)
    got = Session(model, DEPLOYMENT).run(feed)["y"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    if version().startswith("1.23."):
        return  # it packs no 8-bit weights: there is nothing to pin
    unpinned = SessionConfig("unpinned", optimize=True, threads=1, matmulnbits_accuracy_level=4)
    assert np.max(np.abs(Session(model, unpinned).run(feed)["y"] - wanted)) > 0.01


def test_transposed_convolution_keeps_its_canonical_form(parse: Callable[..., ir.Model]) -> None:
    """ONNX Runtime has no integer kernel for it, so nothing is misread; other runtimes have."""
    model = parse(
        f"{_CONV} <{_GRID}, {_W1}, float sv = {{0.02}}, int8 zv = {{0}}>"
        "{ x = DequantizeLinear (q, s, z) v = DequantizeLinear (w, sv, zv)"
        " c = ConvTranspose (x, v) y = QuantizeLinear (c, t, u) }"
    )
    FoldQdq("qdq").run(model)
    assert "Cast" not in {node.op_type for node in model.graph}
