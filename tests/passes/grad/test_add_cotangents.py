"""add-cotangents: the sum of the outputs, weighed by new inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.add_cotangents import AddCotangents
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import Session

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 2] x) => (float[N, 2] y, int64[2] n, float z)
<float[2, 2] w = {1, 2, 3, 4}, float[1] ones = {1}>
{
    y = MatMul (x, w)
    n = Shape (x)
    z = ReduceSum <keepdims = 0> (y)
}
"""


def _model() -> ir.Model:
    return ir.from_proto(parser.parse_model(MODEL))


def test_every_real_output_is_weighed() -> None:
    model = _model()
    AddCotangents().run(model)
    assert [value.name for value in model.graph.inputs] == ["x", "cotangent_y", "cotangent_z"]
    assert [value.name for value in model.graph.outputs] == ["y", "n", "z", "weighted_sum"]
    x = np.array([[1, 2], [3, 4]], np.float32)
    cotangent = np.array([[1, 0], [0, 2]], np.float32)
    feed = {"x": x, "cotangent_y": cotangent, "cotangent_z": np.float32(10)}
    found = Session(model).run({name: np.asarray(value) for name, value in feed.items()})
    y = x @ np.array([[1, 2], [3, 4]], np.float32)
    assert found["weighted_sum"] == (y * cotangent).sum() + 10 * y.sum()


def test_its_gradient_is_the_vector_jacobian_product() -> None:
    model = _model()
    text = "add-cotangents{outputs=y},add-gradient{of=weighted_sum wrt=x},lower-gradient"
    for each in parse_passes(text):
        each.run(model)
    cotangent = np.array([[1, 0], [0, 2]], np.float32)
    found = Session(model).run({"x": np.zeros((2, 2), np.float32), "cotangent_y": cotangent})
    expected = cotangent @ np.array([[1, 3], [2, 4]], np.float32)
    np.testing.assert_array_equal(found["grad_x"], expected)


def test_a_name_that_is_no_real_output_is_an_error() -> None:
    with pytest.raises(UsageError, match="no real output 'yy'; did you mean 'y'"):
        AddCotangents(outputs=("yy",)).run(_model())
