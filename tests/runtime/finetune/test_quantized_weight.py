"""Weights in codes: latent numbers round to them, and gradients are those of the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.runtime.finetune.quantized_weight import QuantizedWeight

Array = npt.NDArray[np.float32]
Parse = Callable[..., ir.Model]

SCALES = {
    "one": ("float s = {0.5}", "s, z", "int8 z = {0}", ""),
    "channel": ("float[3] s = {0.5, 0.25, 2}", "s, z", "int8[3] z = {0, 0, 0}", "<axis = 0>"),
    "last": ("float[4] s = {0.5, 0.25, 2, 1}", "s", "int8[4] z = {0, 0, 0, 0}", "<axis = -1>"),
    "block": (
        "float[3,2] s = {0.5, 0.25, 2, 1, 0.75, 0.125}",
        "s",
        "int8 z = {0}",
        "<axis = 1, block_size = 3>",
    ),
}
CODES = "int8[3,4] c = {1, 2, 3, 4, 5, -6, 7, -7, 0, 1, 2, 3}"


def _weight(parse: Parse, case: str) -> QuantizedWeight:
    scale, inputs, zero, attributes = SCALES[case]
    body = f"w = DequantizeLinear{attributes}(c, {inputs}) y = MatMul(x, w)"
    text = f"g (float[A,3] x) => (float[A,4] y) <{scale}, {zero}, {CODES}> {{ {body} }}"
    weight = QuantizedWeight.match(parse(text, opset=21).graph[0])
    assert weight is not None
    return weight


@pytest.mark.parametrize("case", SCALES)
def test_latent_numbers_start_at_the_codes(parse: Parse, case: str) -> None:
    weight = _weight(parse, case)
    wanted = weight.real(weight.codes, weight.scale)
    random = np.random.default_rng(0)
    moved = wanted + random.normal(size=wanted.shape) * weight.spread(weight.scale)
    for given in (None, wanted, moved):
        assert np.array_equal(weight.rounded(weight.latent(given)), weight.codes)
    assert np.array_equal(weight.latent(wanted), weight.codes)
    assert np.abs(weight.latent(moved) - weight.codes).max() == pytest.approx(0.3)


@pytest.mark.parametrize("case", SCALES)
def test_the_gradient_of_the_scale_is_a_difference_quotient(parse: Parse, case: str) -> None:
    weight = _weight(parse, case)
    random = np.random.default_rng(1)
    gradient = random.normal(size=weight.codes.shape).astype(np.float32)
    latent = weight.codes + np.float32(0.2)
    of_latent, of_scale = weight.gradients(gradient, latent, weight.scale)
    assert of_scale.shape == weight.scale.shape
    assert np.allclose(of_latent, gradient * weight.spread(weight.scale))
    for place in range(weight.scale.size):
        one = np.eye(weight.scale.size, dtype=np.float32)[place].reshape(weight.scale.shape)
        change = weight.real(latent, weight.scale + one) - weight.real(latent, weight.scale)
        found = float(of_scale.reshape(-1)[place])
        assert float((gradient * change).sum()) == pytest.approx(found, rel=1e-4)


def test_codes_beyond_the_largest_are_not_used(parse: Parse) -> None:
    weight = _weight(parse, "one")
    latent = np.full(weight.codes.shape, 9.0, np.float32)
    assert (weight.rounded(latent) == 7).all()
    assert (weight.rounded(-latent) == -7).all()
    of_latent, _ = weight.gradients(np.ones_like(latent), latent, weight.scale)
    assert not of_latent.any()


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(c)",
        "y = DequantizeLinear(x, s)",
        "y = DequantizeLinear<axis = 1>(c, t)",
        "y = DequantizeLinear(v, s)",
        "y = DequantizeLinear(i, s)",
    ],
)
def test_what_is_no_weight(parse: Parse, body: str) -> None:
    constants = f"float s = {{1}}, float[2] t = {{1, 1}}, {CODES}, int8[1] v = {{1}}"
    constants += ", int32[1,1] i = {1}"
    model = parse(f"g (int8[3,4] x) => (float[3,4] y) <{constants}> {{ {body} }}")
    assert QuantizedWeight.match(model.graph[0]) is None
