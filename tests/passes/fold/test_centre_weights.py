"""Convolutions whose weights have a zero point a channel: the same numbers without zero points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

_HEAD = """<ir_version: 10, opset_import: ["" : 21]>
    g (uint8[1,4,9,9] q) => (uint8[1,4,7,7] y)
    <float sx = {0.0311}, uint8 zx = {120}, float sy = {0.2313}, uint8 zy = {120},
     float[4] sw = {0.0021, 0.0032, 0.0017, 0.0024}>
    {
      x = DequantizeLinear (q, sx, zx)
      wf = DequantizeLinear <axis = 0> (w, sw, zw)"""
_TAIL = " y = QuantizeLinear (c, sy, zy) }"


def _model(kind: str, group: int, zeros: list[int], body: str = "") -> ir.Model:
    info = np.iinfo(kind)
    shape = (4, 4 // group, 3, 3)
    codes = np.random.default_rng(2).integers(info.min, info.max + 1, shape)
    codes.reshape(-1)[[0, -1]] = info.max, info.min
    node = body or f"c = Conv <group = {group}> (x, wf)"
    model = onnx.parser.parse_model(f"{_HEAD} {node} {_TAIL}")
    model.graph.initializer.append(numpy_helper.from_array(codes.astype(kind), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(zeros, kind), "zw"))
    return ir.from_proto(model)


_CASES = [
    ("uint8", [100, 140, 128, 120]),
    ("uint8", [0, 255, 3, 250]),
    ("int8", [3, -5, 0, 11]),
]


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(("kind", "zeros"), _CASES)
def test_numbers_stay(
    kind: str, zeros: list[int], group: int, apply_pass: Callable[..., PassResult]
) -> None:
    model = _model(kind, group, zeros)
    before = Session(model, REFERENCE)
    result = apply_pass("centre-weights", model)
    assert result.rules == {"centre-weights": 1}
    assert not apply_pass("centre-weights", result.model).rules
    numbers = np.random.default_rng(0)
    models = [result.model]
    for target in ("ort", "standard", "integer", "qdq"):
        folded = Pipeline(parse_passes(folding(target))).run(_model(kind, group, zeros)).model
        models.append(folded)
        convs = [node.op_type for node in folded.graph if "Conv" in node.op_type]
        assert target in ("ort", "qdq") or convs in (["QLinearConv"], ["ConvInteger"])
    for _ in range(3):
        feed = {"q": numbers.integers(0, 256, (1, 4, 9, 9)).astype(np.uint8)}
        wanted = before.run(feed)["y"]
        assert len(np.unique(wanted)) > 20
        for each in models:
            for config in (REFERENCE, DEPLOYMENT):
                found = Session(each, config).run(feed)["y"]
                apart = np.abs(found.astype(int) - wanted.astype(int))
                assert np.sum(apart) <= 1, "one tie at most"


def test_only_what_int8_cannot_hold_is_split(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    text = """g (uint8[1,3,2,2] q) => (uint8[1,2,2,2] y)
    <float s = {0.5}, uint8 z = {100}, float[2] sw = {0.1, 0.2}, int8[2] zw = {3, -2},
     int8[2,3,1,1] w = {-127, 5, 3, -2, 127, 8}>
    {
      x = DequantizeLinear (q, s, z)
      wf = DequantizeLinear <axis = 0> (w, sw, zw)
      c = Conv (x, wf)
      r = Relu (c)
      y = QuantizeLinear (r, s, z)
    }"""
    model = parse(text)
    result = apply_pass("centre-weights", model)
    assert_text(
        model,
        """g (uint8[1,3,2,2] q) => (uint8[1,2,2,2] y)
        <float s = {0.5}, uint8 z = {100}, float[2] sw = {0.1, 0.2}, int8[2] zw = {3, -2},
         int8[2,3,1,1] w = {-127, 5, 3, -2, 127, 8}, int64[5] x_channels = {0, 1, 2, 0, 1},
         int8[2,5,1,1] wf_centred = {-128, 2, 0, -2, 0, 0, 127, 10, 0, 2}>
        {
          x = DequantizeLinear (q, s, z)
          wf = DequantizeLinear <axis = 0> (w, sw, zw)
          x_copied = Gather <axis = 1> (x, x_channels)
          wf_split = DequantizeLinear <axis = 0> (wf_centred, sw)
          c = Conv (x_copied, wf_split)
          r = Relu (c)
          y = QuantizeLinear (r, s, z)
        }""",
    )
    assert result.rules == {"centre-weights": 1}


@pytest.mark.parametrize(
    "model",
    [
        _model("int8", 1, [0, 0, 0, 0]),
        _model("uint8", 1, [120, 120, 120, 120]),
        _model("int8", 1, [3, -5, 0, 11], "o = Conv (x, wf) e = Erf (o) c = Add (o, e)"),
        _model("int8", 1, [3, -5, 0, 11], "f = Erf (x) c = Conv (f, wf)"),
    ],
    ids=["no zero points", "one zero point", "not rounded", "data not quantized"],
)
def test_what_needs_no_copies_has_none(
    model: ir.Model, apply_pass: Callable[..., PassResult]
) -> None:
    assert not apply_pass("centre-weights", model).rules
