"""Second operands of products in int8: which, from where, and the same codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.sign_operands import SignOperands
from onnxfold.passes.pair_saturation import saturating_layers
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import REFERENCE, Session

Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]

_PARAMETERS = "float s = {0.02}, uint8 z = {131}, float t = {0.5}, uint8 o = {120}"
_PRODUCT = "y = QLinearMatMul (a, s, z, b, s, z, t, o)"


def _text(inputs: str, body: str, parameters: str = _PARAMETERS, *, result: str = "uint8") -> str:
    return f"agraph ({inputs}) => ({result} y) <{parameters}> {{ {body} }}"


def test_codes_come_back_through_real_numbers(
    parse: Parse, apply_pass: Apply, assert_text: Callable[[ir.Model, str], None]
) -> None:
    inputs = "uint8[64,64] a, uint8[64,64] b"
    model = parse(_text(inputs, _PRODUCT))
    result = apply_pass(SignOperands(), model)
    assert result.rules == {"sign-operand": 1}
    body = (
        "b_int8_real = DequantizeLinear (b, s, z) "
        "b_int8 = QuantizeLinear (b_int8_real, s, zero_point) "
        "y = QLinearMatMul (a, s, z, b_int8, s, zero_point, t, o)"
    )
    assert_text(model, _text(inputs, body, f"{_PARAMETERS}, int8 zero_point = {{3}}"))


def test_real_numbers_are_quantized_twice_and_moved_once(parse: Parse, apply_pass: Apply) -> None:
    body = (
        "a = QuantizeLinear (x, s, z) b = Transpose <perm = [0, 2, 1]> (a) "
        "c = QLinearMatMul (a, s, z, b, s, z, t, o) y = QLinearMatMul (c, t, o, a, s, z, t, o)"
    )
    text = _text("float[4,64,64] x", body)
    model = Pipeline(parse_passes("infer-shapes")).run(parse(text)).model
    apply_pass(SignOperands(), model)
    Pipeline(parse_passes("remove-dead-code")).run(model)
    ops = [node.op_type for node in model.graph]
    assert ops.count("QuantizeLinear") == 2, "one in each type, for both products"
    assert ops.count("Transpose") == 1
    assert "DequantizeLinear" not in ops
    feed = {"x": np.random.default_rng(0).normal(0, 1.5, (4, 64, 64)).astype(np.float32)}
    wanted = Session(parse(text), REFERENCE).run(feed)["y"]
    assert len(np.unique(wanted)) > 20
    if not _saturates_here():
        np.testing.assert_array_equal(Session(model, REFERENCE).run(feed)["y"], wanted)


def _saturates_here() -> bool:
    """Whether kernels of this machine add pairs of products in int16."""
    text = (
        "agraph (uint8[1,2] a) => (int32[1,1] y) <int8[2,1] w = {127, 127}> "
        "{ y = MatMulInteger (a, w) }"
    )
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    codes = np.full((1, 2), 255, np.uint8)
    return int(Session(model, REFERENCE).run({"a": codes})["y"].item()) != 2 * 255 * 127


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ("uint8[32,64] a, uint8[64,256] b", _PRODUCT),
        ("uint8[64,16] a, uint8[16,64] b", _PRODUCT),
        ("uint8[64,64] a, uint8[64,64] b, uint8 z", _PRODUCT),
        ("int8[64,64] a, int8[64,64] b, int8 z", _PRODUCT),
    ],
    ids=["few rows", "few products", "unknown zero point", "int8 data"],
)
def test_other_products_are_left_alone(inputs: str, body: str, parse: Parse) -> None:
    parameters = "float s = {0.02}, float t = {0.5}, uint8 o = {120}"
    if " z" not in inputs:
        parameters += ", uint8 z = {131}"
    if "int8[64,64] b, int8" in inputs and "uint8[" not in inputs:
        parameters = parameters.replace("uint8 o", "int8 o")
    model = parse(_text(inputs, body, parameters, result=parameters.split()[-4]))
    assert not SignOperands().run(model).modified


def test_constant_weights_are_left_alone(parse: Parse) -> None:
    codes = ", ".join(["7"] * 64 * 64)
    parameters = f"{_PARAMETERS}, uint8[64,64] b = {{{codes}}}"
    assert not SignOperands().run(parse(_text("uint8[64,64] a", _PRODUCT, parameters))).modified


def test_sizes_that_are_not_known_count_as_large(parse: Parse) -> None:
    model = parse(_text("uint8[n,m] a, uint8[m,n] b", _PRODUCT))
    assert SignOperands().run(model).modified
    assert not SignOperands().run(parse(_text("uint8 a, uint8 b", _PRODUCT))).modified


def test_the_fold_signs_operands_but_not_for_every_machine(parse: Parse) -> None:
    body = (
        "a = QuantizeLinear (x, s, z) d = DequantizeLinear (a, s, z) "
        "b = Transpose <perm = [0, 2, 1]> (d) m = MatMul (d, b) "
        "q = QuantizeLinear (m, t, o) y = DequantizeLinear (q, t, o)"
    )
    model = parse(_text("float[2,64,64] x", body, result="float[2,64,64]"))
    fast, portable = (
        Pipeline(parse_passes(folding("ort", reduce_range=reduced))).run(model.clone()).model
        for reduced in (False, True)
    )
    assert _operand_type(fast) == ir.DataType.INT8
    assert _operand_type(portable) == ir.DataType.UINT8
    (layer,) = saturating_layers(fast)
    assert (layer.of, layer.channels, layer.largest) == (64, 64, 2 * 255 * 128)
    assert not saturating_layers(portable)
    again = Pipeline(parse_passes(folding("ort"))).run(fast.clone()).model
    assert [node.op_type for node in again.graph] == [node.op_type for node in fast.graph]


def _operand_type(model: ir.Model) -> ir.DataType | None:
    (product,) = (node for node in model.graph if node.op_type == "QLinearMatMul")
    operand = product.inputs[3]
    assert operand is not None
    return operand.dtype
