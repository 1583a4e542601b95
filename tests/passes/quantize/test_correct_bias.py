"""correct-bias: where the correction goes, in codes and in float, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.correct_bias import CorrectBias
from onnxfold.passes.quantize.output_errors import OutputErrors
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]

SHIFT = np.array([0.5, -1.25], np.float32)
PARAMETERS = """float s = {0.25}, uint8 z = {128}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0},
 float[2] bs = {0.125, 0.0625}, int32[2] bz = {0, 0}, int32[2] bq = {8, -4},
 int8[2,2,1] wq = {1, 2, 3, -4}, int8[2,2] mq = {1, 2, 3, -4}, float[2] b = {1, 2},
 float[2,2] m = {1, 2, 3, -4}, float[2,2] full = {1, 2, 3, 4}, float one = {1}"""
DATA = "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
CONV_WEIGHTS = "w = DequantizeLinear<axis = 0>(wq, ws, wz)"
MATRIX = "w = DequantizeLinear<axis = 1>(mq, ws, wz)"
BIAS = "c = DequantizeLinear<axis = 0>(bq, bs, bz)"


def _model(parse: Parse, body: str, shape: str, outputs: str = "float[A,B] y") -> ir.Model:
    text = f"g (float[{shape}] x) => ({outputs}) <{PARAMETERS}> {{ {body} }}"
    model = parse(text)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def _run(model: ir.Model, shape: tuple[int, ...]) -> dict[str, Any]:
    x = np.random.default_rng(0).integers(-60, 60, shape).astype(np.float32) * np.float32(0.25)
    return Session(model, REFERENCE).run({"x": x})


CASES = {
    "codes": (f"{DATA} {CONV_WEIGHTS} {BIAS} y = Conv(d, w, c)", "shift-bias-codes"),
    "float": (f"{DATA} {CONV_WEIGHTS} y = Conv(d, w, b)", "shift-bias"),
    "none": (f"{DATA} {CONV_WEIGHTS} y = Conv(d, w)", "add-bias-codes"),
    "none_data_in_float": (f"{CONV_WEIGHTS} y = Conv(x, w)", "add-bias"),
    "transpose": (
        f"{DATA} w = DequantizeLinear<axis = 1>(wq, ws, wz) {BIAS} y = ConvTranspose(d, w, c)",
        "shift-bias-codes",
    ),
    "gemm": (f"{DATA} {MATRIX} {BIAS} y = Gemm(d, w, c)", "shift-bias-codes"),
    "gemm_none": (f"{DATA} {MATRIX} y = Gemm<beta = 7.0>(d, w)", "add-bias-codes"),
    "gemm_alpha": (f"{DATA} {MATRIX} y = Gemm<alpha = 2.0>(d, w)", "add-bias"),
    "gemm_beta": (f"{DATA} {MATRIX} y = Gemm<beta = 0.5>(d, w, b)", "shift-bias"),
    "gemm_scalar": (f"{DATA} {MATRIX} y = Gemm(d, w, one)", "shift-bias"),
    "gemm_float": ("y = Gemm(x, m, b)", "shift-bias"),
    "matmul": (f"{DATA} {MATRIX} e = MatMul(d, w) y = Add(e, b)", "shift-sum"),
    "matmul_none": (f"{DATA} {MATRIX} y = MatMul(d, w)", "add-sum"),
    "matmul_other_add": (f"{DATA} {MATRIX} e = MatMul(d, w) y = Add(e, full)", "add-sum"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_output_moves_by_the_error(name: str, parse: Parse, apply_pass: Apply) -> None:
    body, rule = CASES[name]
    convolution = "Conv" in body
    outputs = "float[A,B,C] y" if convolution else "float[A,B] y"
    model = _model(parse, body, "N,2,4" if convolution else "N,2", outputs)
    node = next(n for n in model.graph if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"))
    shape = (2, 2, 4) if convolution else (2, 2)
    before = _run(model, shape)["y"]
    errors = OutputErrors({node.name or "": SHIFT.tolist()})
    result = apply_pass(CorrectBias(errors), model)
    assert result.rules == {rule: 1}
    after = _run(model, shape)["y"]
    moved = SHIFT[:, None] if convolution else SHIFT
    np.testing.assert_allclose(after - before, np.broadcast_to(moved, before.shape), atol=1e-5)


def test_added_codes_have_the_scale_of_the_products(
    parse: Parse, apply_pass: Apply, assert_text: Callable[[ir.Model, str], None]
) -> None:
    model = _model(parse, CASES["none"][0], "N,2,4", "float[A,B,C] y")
    errors = OutputErrors({"make_y": SHIFT.tolist()})
    apply_pass(CorrectBias(errors), model)
    apply_pass("remove-dead-code", model)
    assert_text(
        model,
        f"""g (float[N,2,4] x) => (float[A,B,C] y)
        <float s = {{0.25}}, uint8 z = {{128}}, int8[2,2,1] wq = {{1, 2, 3, -4}},
         float[2] ws = {{0.5, 0.25}}, int8[2] wz = {{0, 0}}, int32[2] y_bias_quantized = {{4, -20}},
         float[2] y_bias_scale = {{0.125, 0.0625}}, int32[2] y_bias_zero_point = {{0, 0}}>
        {{ {DATA} {CONV_WEIGHTS}
          y_bias_dequantized = DequantizeLinear<axis = 0>
              (y_bias_quantized, y_bias_scale, y_bias_zero_point)
          y = Conv(d, w, y_bias_dequantized) }}""",
    )


def test_a_shared_bias_is_corrected_for_one_reader(parse: Parse, apply_pass: Apply) -> None:
    body = f"{DATA} {CONV_WEIGHTS} {BIAS} y = Conv(d, w, c) u = Conv(d, w, c)"
    model = _model(parse, body, "N,2,4", "float[A,B,C] y, float[A,B,C] u")
    before = _run(model, (1, 2, 4))
    apply_pass(CorrectBias(OutputErrors({"make_y": SHIFT.tolist()})), model)
    after = _run(model, (1, 2, 4))
    assert np.array_equal(after["u"], before["u"])
    assert not np.array_equal(after["y"], before["y"])


def test_codes_that_would_overflow_stay(parse: Parse, apply_pass: Apply) -> None:
    for name in ("codes", "none"):
        model = _model(parse, CASES[name][0], "N,2,4", "float[A,B,C] y")
        result = apply_pass(CorrectBias(OutputErrors({"make_y": (1e9, 0.0)})), model)
        assert not result.modified
        assert "fit" in result.remarks[0].reason


def test_a_bias_of_another_shape_stays(parse: Parse, apply_pass: Apply) -> None:
    model = _model(parse, f"{DATA} {MATRIX} y = Gemm(d, w, full)", "2,2")
    result = apply_pass(CorrectBias(OutputErrors({"make_y": SHIFT.tolist()})), model)
    assert not result.modified
    assert "bias" in result.remarks[0].reason


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({"make_z": (1.0, 2.0)}, "no node 'make_z'"),
        ({"make_y": (1.0,)}, "another model"),
        ({"make_d": (1.0, 2.0)}, "another model"),
    ],
)
def test_errors_of_another_model_are_refused(
    errors: dict[str, tuple[float, ...]], message: str, parse: Parse, apply_pass: Apply
) -> None:
    model = _model(parse, CASES["codes"][0], "N,2,4", "float[A,B,C] y")
    with pytest.raises(UsageError, match=message):
        apply_pass(CorrectBias(OutputErrors(errors)), model)


def test_no_error_changes_nothing(parse: Parse, apply_pass: Apply) -> None:
    model = _model(parse, CASES["codes"][0], "N,2,4", "float[A,B,C] y")
    for errors in ((0.0, 0.0), (0.01, -0.01)):  # less than half a step of the codes
        assert not apply_pass(CorrectBias(OutputErrors({"make_y": errors})), model).modified
    assert constant_array(model.graph.initializers["bq"]) is not None
