from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array, constant_array
from onnxfold.runtime.verify.compare import compare_models
from onnxfold.runtime.verify.nudge import nudge_scales

STEP = np.float32(0.25)
TIES: Array = ((np.arange(-100, 100) + 0.5) * STEP).astype(np.float32)
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def amplifier(step: float = float(STEP), zero: int = 0) -> onnx.ModelProto:
    """Rounds to ``step`` and then shows each step as eight."""
    return onnx.parser.parse_model(
        HEADER
        + f"""g (float[200] x) => (int8[200] y)
        <float s = {{{step!r}}}, int8 z = {{{zero}}}, int8 none = {{0}},
         float fine = {{0.00390625}}, float eighth = {{0.125}}>
        {{
            a = QuantizeLinear(x, s, z)
            b = DequantizeLinear(a, s, none)
            c = Mul(b, eighth)
            y = QuantizeLinear(c, fine, none)
        }}"""
    )


def pair() -> ir.Model:
    return ir.from_onnx_text(
        HEADER
        + """g (float[N,2] x) => (float[N,2] y)
        <float s = {0.5}, float s2 = {0.5}, int8 z = {0}, int8[2,2] w = {1, 2, 3, 4},
         float sw = {2.0}>
        {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s2, z)
            dw = DequantizeLinear(w, sw, z)
            y = MatMul(d, dw)
        }"""
    )


def scales(model: ir.Model) -> list[float]:
    found = (constant_array(node.inputs[1]) for node in model.graph if len(node.inputs) == 3)
    return [float(each.item()) for each in found if each is not None]


def test_activation_scales_move_by_one_unit_and_a_pair_stays_a_pair() -> None:
    model = pair()
    seen: set[float] = set()
    for seed in range(8):
        nudged = nudge_scales(model, seed)
        assert nudged is not None
        quantize, dequantize, weight = scales(nudged)
        assert quantize == dequantize
        assert weight == 2.0
        seen.add(quantize)
    half = np.float32(0.5)
    assert seen == {float(np.nextafter(half, np.float32(side))) for side in (0, 1)}
    assert scales(model) == [0.5, 0.5, 2.0]


def test_a_float_model_has_nothing_to_nudge() -> None:
    model = ir.from_onnx_text(HEADER + "g (float[N] x) => (float[N] y) { y = Relu(x) }")
    assert nudge_scales(model, 0) is None


def test_rounding_that_the_model_itself_amplifies_is_excused() -> None:
    other = float(np.nextafter(STEP, np.float32(1)))
    comparison = compare_models(amplifier(), amplifier(other), [{"x": TIES}], Contract.INTEGER)
    assert comparison.outputs[0].max_lsb == 8
    assert comparison.verdict.passed, comparison.verdict


def test_a_wrong_zero_point_is_not_excused() -> None:
    comparison = compare_models(amplifier(), amplifier(zero=2), [{"x": TIES}], Contract.INTEGER)
    assert comparison.verdict.status == "failed"
