"""Maps of one channel are read as they lie, and no number changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

_SCALES = "float s = {0.5}, uint8 z = {7}, float sw = {0.25}, float sy = {0.75}, uint8 zy = {3}"
_REST = (
    " real = DequantizeLinear (m, s, z) wr = DequantizeLinear (w, sw)"
    " c = Conv <pads = [0, 0, 1, 0]> (real, wr) y = QuantizeLinear (c, sy, zy) }"
)
_WEIGHTS = "int8[2,1,2,3] w = {1, -2, 3, 4, 5, -6, 7, 8, 9, 10, -11, 12}"
_CONVOLVED = (
    "y = QLinearConv <pads = [0, 0, 1, 0]>"
    " (m_maps, scale, zero_point, c_weights_codes, scale_1, zero_point_1, scale_2,"
    " zero_point_2) }"
)
_FOLDED = (
    "int8[2,1,2,3] c_weights_codes = {1, -2, 3, 4, 5, -6, 7, 8, 9, 10, -11, 12},"
    " float scale = {0.5}, float scale_1 = {0.25}, float scale_2 = {0.75},"
    " uint8 zero_point = {7}, int8 zero_point_1 = {0}, uint8 zero_point_2 = {3}"
)
_TURN = "m_maps = Transpose <perm = [0, 3, 1, 2]>"
_CASES = {
    "channels-last before": (
        "uint8[N,4,5,1] x",
        "0, 1, 4, 5",
        f"<{_FOLDED}> {{ {_TURN} (x) {_CONVOLVED}",
    ),
    "flat before": (
        "uint8[N,20] x",
        "-1, 1, 4, 5",
        f"<int64[4] pixels_shape = {{-1, 4, 5, 1}}, {_FOLDED}>"
        f" {{ m_pixels = Reshape (x, pixels_shape) {_TURN} (m_pixels) {_CONVOLVED}",
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_rewrite(
    case: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    given, shape, expected = _CASES[case]
    model = parse(
        f"agraph ({given}) => (uint8[N,2,4,3] y) <{_SCALES}, {_WEIGHTS},"
        f" int64[4] shape = {{{shape}}}, uint8[N,1,4,5] m>"
        f" {{ m = Reshape (x, shape) {_REST}"
    )
    sizes = (3, 4, 5, 1) if "4,5" in given else (3, 20)
    feed = {"x": np.random.default_rng(0).integers(0, 256, sizes).astype(np.uint8)}
    [wanted] = Session(model, REFERENCE).run(feed).values()
    result = apply_pass(FoldQdq(), model)
    assert result.rules["read-single-channel"] == 1
    assert_text(model, f"agraph ({given}) => (uint8[N,2,4,3] y) {expected}")
    for config in (REFERENCE, DEPLOYMENT):
        [found] = Session(model, config).run(feed).values()
        np.testing.assert_array_equal(found, wanted)
    census = optimized_op_census(ir.to_proto(model), DEPLOYMENT)
    turns_back = 1  # the result has two channels
    assert census.get("Transpose", 0) == turns_back


@pytest.mark.parametrize(
    ("given", "shape", "maps", "rest"),
    [
        ("uint8[N,2,4,5] x", "0, 2, 4, 5", "uint8[N,2,4,5] m", _REST),
        (
            "uint8[N,20] x",
            "0, 1, 4, 5",
            "uint8[N,1,4,5] m",
            _REST.replace("y = ", "o = Identity (m) y = "),
        ),
    ],
)
def test_others_stay(
    given: str, shape: str, maps: str, rest: str, parse: Callable[..., ir.Model]
) -> None:
    weights = (
        _WEIGHTS if "1,4,5" in maps else "int8[1,2,2,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1}"
    )
    outputs = "uint8[N,2,4,3] y, uint8[N,1,4,5] o" if "o =" in rest else "uint8[N,1,4,3] y"
    model = parse(
        f"agraph ({given}) => ({outputs}) <{_SCALES}, {weights}, int64[4] shape = {{{shape}}},"
        f" {maps}> {{ m = Reshape (x, shape) {rest}"
    )
    result = FoldQdq().run(model)
    assert isinstance(result, PassResult)
    assert not result.rules["read-single-channel"]
