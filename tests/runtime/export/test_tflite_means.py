"""Means of codes are rounded as TensorFlow Lite rounds them: halves away from zero."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfold.runtime.export.workers.tflite_means import round_means_of_codes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

_MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g ({type}[1,1,{rows},{columns}] x) => ({type}[1,1,h,w] y)
<float s = {{0.25}}, {type} z = {{{zero}}}, float t = {{{after}}}>
{{
    real = DequantizeLinear (x, s, z)
    mean = AveragePool <kernel_shape = [{window}, {window}], strides = [{window}, {window}] {more}>
        (real)
    y = QuantizeLinear (mean, t, z)
}}
"""


def _model(
    rows: int,
    columns: int,
    window: int = 2,
    dtype: str = "int8",
    more: str = "",
    after: float = 0.25,
) -> onnx.ModelProto:
    zero = {"int8": -128, "uint8": 3, "int16": 0}[dtype]
    text = _MODEL.format(
        type=dtype, rows=rows, columns=columns, window=window, zero=zero, more=more, after=after
    )
    return parser.parse_model(text)


def _expected(sums: np.ndarray, count: int) -> np.ndarray:
    """The kernel's own arithmetic: half of the count is added with the sign, the rest cut off."""
    away = np.where(sums > 0, sums + count // 2, sums - count // 2)
    return np.trunc(away / count)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_every_remainder_at_every_size_of_code(dtype: str) -> None:
    limits = np.iinfo(dtype)
    near = [*range(limits.min, limits.max + 1, max(1, limits.max // 200)), limits.max - 1]
    corners = [*itertools.product(near, range(4))]
    blocks = [
        np.clip([c + (r > 0), c + (r > 1), c + (r > 2), c], limits.min, limits.max)
        for c, r in corners
    ]
    codes = np.concatenate([each.reshape(2, 2) for each in blocks], axis=1).astype(dtype)
    model = _model(2, codes.shape[1], dtype=dtype)
    assert round_means_of_codes(model) == 1
    onnx.checker.check_model(model, full_check=True)
    sums = np.array([int(each.sum()) for each in blocks])
    for config in (REFERENCE, DEPLOYMENT):
        (found,) = Session(model, config).run({"x": codes[None, None]}).values()
        np.testing.assert_array_equal(found.reshape(-1), _expected(sums, 4))


def test_borders_count_fewer_codes() -> None:
    codes = np.array([[-128, -127, -126], [-125, -123, -120], [-7, -6, 5]], np.int8)
    model = _model(3, 3, more=', auto_pad = "SAME_UPPER"')
    assert round_means_of_codes(model) == 1
    (found,) = Session(model, REFERENCE).run({"x": codes[None, None]}).values()
    np.testing.assert_array_equal(found.reshape(-1), [-126, -123, -7, 5])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_model(3, 3, window=3), id="an odd number has no half"),
        pytest.param(_model(2, 2, after=0.5), id="it is rescaled as well"),
        pytest.param(_model(128, 128, window=128), id="float32 cannot tell"),
    ],
)
def test_others_are_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    assert round_means_of_codes(model) == 0
    assert model.SerializeToString(deterministic=True) == before
