"""LSTMs with quantized weights on the kernel that rounds data and state at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session


def _numbers(count: int, low: int) -> str:
    return ", ".join(str(index * 37 % 200 + low) for index in range(count))


def _text(
    kind: str = "int8",
    zero: int = 0,
    per_unit: bool = False,
    directions: int = 1,
    op_type: str = "LSTM",
    attributes: str = "",
) -> str:
    low, rows = (-100 if kind == "int8" else 28), 3 * {"LSTM": 4, "GRU": 3}[op_type]
    scales, zeros = "float u = {0.005}", f"{kind} z = {{{zero}}}"
    if per_unit:
        listed = ", ".join(f"{0.003 + 0.0005 * index:.4f}" for index in range(rows))
        scales = f"float[{rows}] u = {{{listed}}}"
        zeros = f"{kind}[{rows}] z = {{{', '.join([str(zero)] * rows)}}}"
    axis = "<axis = 1>" if per_unit else ""
    direction = 'direction = "bidirectional", ' if directions == 2 else ""
    return f"""
    g (float[5,2,4] x) => (float[5,{directions},2,3] y, float[{directions},2,3] h)
    <{kind}[{directions},{rows},4] w = {{{_numbers(rows * 4 * directions, low)}}},
     {kind}[{directions},{rows},3] r = {{{_numbers(rows * 3 * directions, low)}}},
     {scales}, {zeros}>
    {{
      wf = DequantizeLinear {axis} (w, u, z)
      rf = DequantizeLinear {axis} (r, u, z)
      y, h = {op_type} <{direction}{attributes}hidden_size = 3> (x, wf, rf)
    }}"""


_FEED = {"x": np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32)}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    ("kind", "zero", "per_unit"),
    [("int8", 0, False), ("int8", 0, True), ("int8", 3, False), ("uint8", 128, True),
     ("uint8", 120, False)],
)  # fmt: skip
def test_weights_keep_their_codes(
    kind: str,
    zero: int,
    per_unit: bool,
    directions: int,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
) -> None:
    text = _text(kind, zero, per_unit, directions)
    model = parse(text)
    result = apply_pass("quantize-lstm", model)
    assert result.rules == {"quantize-lstm": 1}
    assert [node.op_type for node in model.graph] == ["DynamicQuantizeLSTM"]
    for config in (REFERENCE, DEPLOYMENT):
        wanted = Session(parse(text), config).run(_FEED)
        for name, found in Session(model, config).run(_FEED).items():
            # Data and state are rounded to 8 bits, and nothing else: as near as that.
            assert 0 < np.max(np.abs(found - wanted[name])) < 0.01


@pytest.mark.parametrize(
    "text",
    [
        _text("int8", 3, True),
        _text("uint8", 120, True),
        _text(op_type="GRU"),
        _text().replace("DequantizeLinear  (w, u, z)", "Cast <to = 1> (w)"),
    ],
    ids=["odd zero points", "odd uint8 zero points", "GRU", "float weights"],
)  # fmt: skip
def test_what_the_kernel_does_not_take_is_left(
    text: str, parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    assert not apply_pass("quantize-lstm", parse(text)).rules


def test_a_layer_as_text(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(
        """g (float[5,2,1] x, float[8] b) => (float[5,1,2,1] y)
        <int8[1,4,1] w = {1, 2, 3, 4}, int8[1,4,1] r = {5, 6, 7, 8}, float u = {0.5}>
        {
          wf = DequantizeLinear (w, u)
          rf = DequantizeLinear (r, u)
          bf = Unsqueeze <axes = [0]> (b)
          y = LSTM <hidden_size = 1, clip = 2.0> (x, wf, rf, bf)
        }""",
        opset=11,
    )
    apply_pass("quantize-lstm", model)
    assert_text(
        model,
        """<ir_version: 10, opset_import: ["" : 11, "com.microsoft" : 1]>
        g (float[5,2,1] x, float[8] b) => (float[5,1,2,1] y)
        <int8[1,4,1] w = {1, 2, 3, 4}, int8[1,4,1] r = {5, 6, 7, 8}, float u = {0.5},
         int8[1,1,4] y_weights = {1, 2, 3, 4}, float[1] scale = {0.5}, int8[1] zero_point = {0},
         int8[1,1,4] y_weights_1 = {5, 6, 7, 8}, float[1] scale_1 = {0.5},
         int8[1] zero_point_1 = {0}>
        {
          bf = Unsqueeze <axes = [0]> (b)
          y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1, clip = 2.0>
              (x, y_weights, y_weights_1, bf, , , , , scale, zero_point, scale_1, zero_point_1)
        }""",
    )


def test_only_relaxed_folds_do_so(parse: Callable[..., ir.Model]) -> None:
    def ops(**options: Any) -> list[str]:
        folded = Pipeline(parse_passes(folding("ort", **options))).run(parse(_text()))
        return [node.op_type for node in folded.model.graph]

    assert ops() == ["LSTM"]
    assert ops(dynamic_lstm=True) == ["DynamicQuantizeLSTM"]
    assert ops(dynamic_lstm=True, relax="keep") == ["DynamicQuantizeLSTM"]
