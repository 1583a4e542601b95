"""Gradients of gradients of operators that only onnxruntime computes, along a direction."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from fixtures.gradients.case import Array, GradientCase, cases, output_weights
from fixtures.gradients.check import lower, weighted_sum
from onnxfold.runtime.session import REFERENCE, Session

_STEP = 2e-3

SINGLE = [case for case in cases("networks") if not case.options.get("double", True)]


def energy_of_gradients(case: GradientCase, outputs: dict[str, Array]) -> onnx.ModelProto:
    """The model with one more output ``energy``: the sum of the squares of all its gradients."""
    header = f'<ir_version: 10, opset_import: ["" : {case.opset}]>\n'
    model = onnx.parser.parse_model(header + case.text)
    del model.graph.output[:]
    for name, array in outputs.items():
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.output.append(helper.make_tensor_value_info(name, dtype, array.shape))
    first = lower(weighted_sum(model), case.differentiated())
    graph = first.graph
    for name in case.differentiated():
        graph.node.append(helper.make_node("Mul", [f"grad_{name}"] * 2, [f"square_{name}"]))
        summed = helper.make_node("ReduceSum", [f"square_{name}"], [f"sum_{name}"], keepdims=0)
        graph.node.append(summed)
    terms = [f"sum_{name}" for name in case.differentiated()]
    graph.node.append(helper.make_node("Sum", terms, ["energy"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("energy", 1, []))
    return first


@pytest.mark.slow
@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
def test_second_order(case: GradientCase) -> None:
    header = f'<ir_version: 10, opset_import: ["" : {case.opset}]>\n'
    feeds = case.arrays()
    found = Session(onnx.parser.parse_model(header + case.text), REFERENCE).run(feeds)
    outputs = {name: np.asarray(array) for name, array in found.items()}
    for index, (name, array) in enumerate(outputs.items()):
        if array.dtype.kind == "f":
            feeds[f"weights_of_{name}"] = output_weights(array.shape, index)
    names = case.differentiated()
    twice = lower(energy_of_gradients(case, outputs), names, "energy")
    session = Session(twice, REFERENCE)
    results = session.run(feeds)
    # The names grad_<tensor> are taken by the first gradients, which lie inside.
    seconds = [np.asarray(results[output.name]) for output in list(twice.graph.output)[1:]]
    random = np.random.default_rng(2)
    course = {n: np.asarray(random.standard_normal(feeds[n].shape), np.float32) for n in names}
    ends: list[float] = []
    for step in (_STEP, -_STEP):
        moved = {n: np.asarray(feeds[n] + step * part, np.float32) for n, part in course.items()}
        ends.append(float(session.run({**feeds, **moved})["energy"]))
    expected = (ends[0] - ends[1]) / (2 * _STEP)
    along = sum(
        float(np.sum(gradient.astype(np.float64) * part))
        for gradient, part in zip(seconds, course.values(), strict=True)
    )
    # Float32 leaves two or three digits of a difference of squares.
    assert abs(along - expected) <= 2e-2 * (abs(expected) + 5e-3 * abs(ends[0]))
