"""Scales moved by the least there is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_array
from onnxfold.runtime.verify.nudge import nudge_scales

_INTEGER = """<ir_version: 10, opset_import: ["" : 21]>
    agraph (uint8[1,1,3] q) => (uint8[1,1,3] y)
    <float s = {0.5}, uint8 z = {3}, int8[1,1,1] w = {2}, float sw = {0.25}, int8 zw = {0},
     float t = {0.125}>
    { y = QLinearConv (q, s, z, w, sw, zw, t, z) }"""


def _scales(model: ir.Model) -> list[float]:
    node = model.graph[0]
    arrays = [constant_array(node.inputs[index]) for index in (1, 4, 6)]
    return [float(each) for each in arrays if each is not None]


def test_scales_of_integer_operators_move_but_not_those_of_weights(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse(_INTEGER)
    nudged = nudge_scales(model, 0)
    assert nudged is not None
    data, weights, result = _scales(nudged)
    assert _scales(model) == [0.5, 0.25, 0.125], "the model itself is left as it is"
    assert weights == 0.25
    for old, new in ((0.5, data), (0.125, result)):
        assert new in (
            float(np.nextafter(np.float32(old), np.float32(np.inf))),
            float(np.nextafter(np.float32(old), np.float32(0))),
        )


def test_seeds_move_scales_independently(parse: Callable[..., ir.Model]) -> None:
    """Two patterns in all, as a linear checksum gives, would measure the same drift twice."""
    patterns: set[tuple[bool, bool]] = set()
    for seed in range(16):
        nudged = nudge_scales(parse(_INTEGER), seed)
        assert nudged is not None
        data, _, result = _scales(nudged)
        patterns.add((data > 0.5, result > 0.125))
    assert len(patterns) == 4
