"""Remarks: said of ops that were meant to be integer, not of what is float on purpose."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.fold.fold_qdq import FoldQdq

_W = "int8[2,2,1,1] w = {9, -20, 33, 4}, float sw = {0.02}"
_TEXT = """
agraph (%s) => (%s) <float s = {0.05}, uint8 z = {120}, float t = {0.07}, uint8 u = {90}, %s>
{ %s }
"""
_QUANTIZED_INPUT = "uint8[1,2,4,4] q"
_CODES = "uint8[1,2,4,4] y"
_REAL = "float[1,2,4,4] y"

SILENT = {
    "a Transpose ahead of the first quantizer": (
        "float[4,4,2,1] f",
        _CODES,
        "m = Transpose (f) y = QuantizeLinear (m, s, z)",
        "Transpose",
    ),
    "float arithmetic that ends in a quantizer": (
        "float[1,2,4,4] f",
        _CODES,
        "m = Mul (f, f) y = QuantizeLinear (m, s, z)",
        "Mul",
    ),
    "float arithmetic on the result": (
        _QUANTIZED_INPUT,
        _REAL,
        "x = DequantizeLinear (q, s, z) m = Add (x, k) y = Erf (m)",
        "Add",
    ),
    "a float convolution beside the integer ones": (
        _QUANTIZED_INPUT,
        _REAL,
        "x = DequantizeLinear (q, s, z) y = Conv (x, wf)",
        "Conv",
    ),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_is_float_on_purpose_is_not_remarked(
    case: str, parse: Callable[..., ir.Model]
) -> None:
    inputs, outputs, body, op_type = SILENT[case]
    constants = "float[2,1,1] k = {0.1, 0.2}, float[2,2,1,1] wf = {0.1, 0.2, 0.3, 0.4}"
    model = parse(_TEXT % (inputs, outputs, constants, body))
    result = FoldQdq().run(model)
    assert any(node.op_type == op_type for node in model.graph)
    assert op_type not in {remark.op_type for remark in result.remarks}


SAID = {
    "an op between codes": (
        f"{_QUANTIZED_INPUT}, float[1,2,4,4] f",
        _CODES,
        "x = DequantizeLinear (q, s, z) m = Add (x, f) y = QuantizeLinear (m, t, u)",
        ("Add", "'f' is not quantized", "quantize 'f' per tensor to 8 bits"),
    ),
    "a constant between codes": (
        _QUANTIZED_INPUT,
        _CODES,
        "x = DequantizeLinear (q, s, z) m = Add (x, k) y = QuantizeLinear (m, t, u)",
        ("Add", "its constant 'k' is not quantized", "quantize it per tensor to 8 bits"),
    ),
    "quantized weights that stay float": (
        "float[1,2,4,4] f",
        _REAL,
        "wf = DequantizeLinear (w, sw) y = Conv (f, wf)",
        ("Conv", "only its weights are quantized: 'f' is not quantized",
         "quantize the activation 'f'"),
    ),
    "an op without a rule": (
        _QUANTIZED_INPUT,
        _REAL,
        "x = DequantizeLinear (q, s, z) y = Erf (x)",
        ("Erf", "there is no integer rule for Erf", ""),
    ),
    "a float input": (
        "float[1,2,4,4] f",
        _CODES,
        "y = QuantizeLinear (f, s, z)",
        ("QuantizeLinear", "the graph input 'f' is float", "feed it as codes"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_was_meant_to_be_integer_is(case: str, parse: Callable[..., ir.Model]) -> None:
    inputs, outputs, body, expected = SAID[case]
    model = parse(_TEXT % (inputs, outputs, f"{_W}, float[2,1,1] k = {{0.1, 0.2}}", body))
    remarks = FoldQdq().run(model).remarks
    assert expected in [(each.op_type, each.reason, each.advice) for each in remarks]
