"""The clean-up after exporters, as a whole."""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import EXPORTED
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.serialization import model_bytes

_SHAPE_OF_TRANSPOSED = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[n, 4, 3] x) => (float[n, 4] y, int64[1] size)
    <int64[1] last = {2}, int64[1] one = {1}> {
        turned = Transpose <perm = [1, 0, 2]> (x)
        sums = ReduceSum <keepdims = 0> (turned, last)
        y = Transpose <perm = [1, 0]> (sums)
        shape = Shape (sums)
        size = Gather (shape, one)
    }"""


def test_shapes_that_moved_transposes_leave_are_resolved_at_once() -> None:
    model = ir.from_proto(parser.parse_model(_SHAPE_OF_TRANSPOSED))
    once = Pipeline(parse_passes(EXPORTED)).run(model).model
    assert [node.op_type for node in once.graph] == ["ReduceSum", "Shape"]
    before = model_bytes(once)
    twice = Pipeline(parse_passes(EXPORTED)).run(once).model
    assert model_bytes(twice) == before
