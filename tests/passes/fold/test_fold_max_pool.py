"""MaxPool that says where its results were: on codes, with the same choice among equals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.simplify.infer_shapes import InferShapes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Target = Literal["ort", "standard", "qdq", "integer"]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("target", ["ort", "standard", "qdq", "integer"])
def test_of_equal_codes_the_same_is_found(
    target: Target, dtype: str, order: int, parse: Callable[..., ir.Model]
) -> None:
    text = f"""g ({dtype}[1,3,12,12] q) => ({dtype}[1,3,6,6] y, int64[1,3,6,6] where)
    <float s = {{0.05}}, {dtype} z = {{7}}>
    {{
      x = DequantizeLinear (q, s, z)
      r, where = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1],
                          storage_order = {order}> (x)
      y = QuantizeLinear (r, s, z)
    }}"""
    model = parse(text)
    InferShapes().run(model)
    result = FoldQdq(target).run(model)
    assert result.rules["fold-move"] == 1
    if target != "qdq" and dtype == "uint8":
        assert [node.op_type for node in result.model.graph] == ["MaxPool"]
    # Four different codes in windows of nine: there are equals everywhere.
    codes = np.random.default_rng(0).integers(5, 9, (1, 3, 12, 12)).astype(dtype)
    wanted = Session(parse(text), REFERENCE).run({"q": codes})
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(result.model, config).run({"q": codes})
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
