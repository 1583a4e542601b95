"""The operators of vision networks with a batch and with images of sizes known at run time only."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx.parser
import pytest

from fixtures.gradients.case import (
    NOT_IN_OLDEST,
    VECTORS,
    Array,
    GradientCase,
    cases,
    output_weights,
)
from fixtures.gradients.check import lower, relative_error, weighted_sum
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import DEPLOYMENT, Session, version

STATIC_ONLY = ("conv_same_strided", "conv_transpose_output_shape")
"""Cases that need static sizes, and say so."""


@functools.cache
def stored() -> dict[str, Array]:
    with np.load(VECTORS / "gradients_networks.npz") as arrays:
        return dict(arrays)


def static_model(case: GradientCase) -> onnx.ModelProto:
    text = case.text
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["" : {case.opset}]>\n{text}'
    return onnx.parser.parse_model(text)


def with_dynamic_sizes(case: GradientCase) -> onnx.ModelProto:
    """The case's model; every dimension of the first input but the channels is a symbol."""
    model = static_model(case)
    for axis, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        if axis != 1:
            dim.dim_param = f"size{axis}"
    known = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for output, inferred in zip(model.graph.output, known.graph.output, strict=True):
        output.CopyFrom(inferred)
        if not inferred.type.tensor_type.HasField("shape"):
            unknown = [None] * len(model.graph.input[0].type.tensor_type.shape.dim)
            dtype = inferred.type.tensor_type.elem_type
            output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, dtype, unknown))
    return model


def gradients(case: GradientCase) -> dict[str, Array]:
    lowered = lower(weighted_sum(with_dynamic_sizes(case)), case.differentiated())
    static = Session(static_model(case), DEPLOYMENT).run(case.arrays())
    weights = {
        f"weights_of_{name}": output_weights(array.shape, index)
        for index, (name, array) in enumerate(static.items())
        if array.dtype.kind == "f"
    }
    return Session(lowered, DEPLOYMENT).run({**case.arrays(), **weights})


@pytest.mark.parametrize(
    "case",
    [case for case in cases("networks") if case.name not in STATIC_ONLY],
    ids=lambda case: case.name,
)
def test_dynamic_sizes(case: GradientCase) -> None:
    if case.name in NOT_IN_OLDEST and version().startswith("1.23."):
        pytest.skip("onnxruntime 1.23 does not run it forwards")
    found = gradients(case)
    for name in case.differentiated():
        expected = stored()[f"{case.name}/{name}"]
        assert relative_error(found[f"grad_{name}"], expected) <= max(case.tolerance, 1e-6)


@pytest.mark.parametrize(
    "case",
    [case for case in cases("networks") if case.name in STATIC_ONLY],
    ids=lambda case: case.name,
)
def test_what_needs_static_sizes_says_so(case: GradientCase) -> None:
    with pytest.raises(UsageError, match="size of 'x'"):
        gradients(case)
