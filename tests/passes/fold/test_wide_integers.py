"""Functions of products in 64 bits: ONNX Runtime 1.23 compares some int64 wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.simplify.infer_shapes import InferShapes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

# Accumulators to both sides of 2^21: 2^31 with the fraction of a residual.
_TEXT = """
g (uint8[256,128] q) => (uint8[256,4] y)
<float sx = {0.0078125}, uint8 zx = {40}, int8[128,4] w = {WEIGHTS}, float sw = {0.0078125},
 float[4] b = {0.3, -0.2, 0.1, 0.4}, float sy = {0.9}, uint8 zy = {20}>
{
  x = DequantizeLinear (q, sx, zx)
  v = DequantizeLinear (w, sw)
  m = MatMul (x, v)
  c = Add (m, b)
  r = FUNCTION (c)
  y = QuantizeLinear (r, sy, zy)
}"""


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize(
    ("function", "rule"),
    [("LeakyRelu <alpha = -0.1>", "fold-slopes"), ("HardSwish", "fold-curve")],
)
def test_the_highest_bit_of_the_low_word(
    function: str, rule: str, target: Any, parse: Callable[..., ir.Model]
) -> None:
    weights = ", ".join(["127, -127, 126, 97"] * 128)
    model = parse(_TEXT.replace("WEIGHTS", weights).replace("FUNCTION", function))
    feed = {"q": np.repeat(np.arange(256, dtype=np.uint8)[:, None], 128, axis=1)}
    wanted = Session(model, REFERENCE).run(feed)["y"].astype(int)
    InferShapes().run(model)
    assert FoldQdq(target).run(model).rules[rule] == 1
    for config in (REFERENCE, DEPLOYMENT):
        assert np.max(np.abs(Session(model, config).run(feed)["y"] - wanted)) <= 1
