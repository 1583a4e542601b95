"""Gradients of gradients: every declared case, times a vector, against differences of the first."""

from __future__ import annotations

import re
import zlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from fixtures.gradients import FAMILIES
from fixtures.gradients.case import Array, GradientCase, cases
from fixtures.gradients.check import (
    as_proto,
    lower,
    relative_error,
    run_in_double,
    weighted_sum,
    with_shapes,
)
from fixtures.gradients.double import in_double
from onnxfold.passes.grad.add_gradient import AddGradient
from onnxfold.passes.grad.lower_gradient import LowerGradient

_STEP = 1e-5

ONLY_FIRST = {
    "reduce prod with zeros": "the product of all others but one is not formed",
}

ALL = [
    (family, case)
    for family in FAMILIES
    for case in cases(family)
    if case.options.get("double", True) and case.name not in ONLY_FIRST
]


def along(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The same with one output more: the gradient times ``along_<tensor>``, summed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = {each.name: each for each in copy.graph.input}
    terms: list[str] = []
    for name in names:
        direction = copy.graph.input.add()
        direction.CopyFrom(inputs[name])
        direction.name = f"along_{name}"
        product, term = f"{name}_slopes", f"{name}_slope"
        copy.graph.node.append(helper.make_node("Mul", [f"grad_{name}", direction.name], [product]))
        copy.graph.node.append(helper.make_node("ReduceSum", [product], [term], keepdims=0))
        terms.append(term)
    copy.graph.node.append(helper.make_node("Sum", terms, ["slope"]))
    copy.graph.output.append(helper.make_tensor_value_info("slope", 11, []))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "case"), ALL, ids=[f"{family}-{case.name}" for family, case in ALL]
)
def test_a_hessian_times_a_vector(family: str, case: GradientCase) -> None:
    names = list(case.differentiated())
    plain = with_shapes(as_proto(case.text, case.opset), case.arrays())
    first = lower(weighted_sum(in_double(plain)), names)
    model = ir.from_proto(along(first, names))
    AddGradient(of="slope", wrt=tuple(re.escape(name) for name in names)).run(model)
    LowerGradient().run(model)
    second = ir.to_proto(model)
    onnx.checker.check_model(second, full_check=True)
    generator = np.random.default_rng(zlib.crc32(case.name.encode()))
    feeds: dict[str, Array] = dict(case.arrays())
    for name, output in run_in_double(in_double(plain), feeds).items():
        feeds[f"weights_of_{name}"] = generator.standard_normal(np.shape(output))
    directions = {name: generator.standard_normal(feeds[name].shape) for name in names}
    turned = {f"along_{name}": direction for name, direction in directions.items()}
    found = run_in_double(second, {**feeds, **turned})
    ends = [
        run_in_double(
            first,
            feeds | {n: feeds[n].astype(np.float64) + step * directions[n] for n in names},
        )
        for step in (_STEP, -_STEP)
    ]
    for name in names:
        expected = (ends[0][f"grad_{name}"] - ends[1][f"grad_{name}"]) / (2 * _STEP)
        assert relative_error(found[f"grad_{name}_1"], expected, floor=0.1) < 1e-6
