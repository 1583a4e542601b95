"""Sizes of axes that are traced through lookups."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.dims import Axis, size_of, spans
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes


@pytest.mark.parametrize(
    ("axis", "found"),
    [(0, "i0 i1 x1 x2"), (1, "x0 i0 i1 x2"), (2, "x0 x1 i0 i1"), (-1, "x0 x1 i0 i1")],
)
def test_gather_puts_the_axes_of_indices_in_the_place_of_one(
    parse: Callable[..., ir.Model], axis: int, found: str
) -> None:
    text = f"g (float[A,B,C] x, int64[D,E] i) => (float[F,G,H,I] y) {{ g = Gather <axis = {axis}> "
    model = parse(f"{text} (x, i) y = Relu (g) }}")
    output = Pipeline(parse_passes("infer-shapes")).run(model).model.graph.outputs[0]
    sizes = [size_of(output, each) for each in range(4)]
    traced = [f"{each.value.name}{each.axis}" for each in sizes if isinstance(each, Axis)]
    assert " ".join(traced) == found


@pytest.mark.parametrize(
    ("inputs", "wider"),
    [("float[A,B] x, float[A,1] w", True), ("float[A,C] x, float[D,1] w", False)],
)
def test_an_axis_that_is_broadcast_is_as_long_as_either(
    parse: Callable[..., ir.Model], inputs: str, wider: bool
) -> None:
    model = parse(f"g ({inputs}, float[A,B] m) => (float[F,G] y) {{ s = Sum (x, w) y = Relu (s) }}")
    output = Pipeline(parse_passes("infer-shapes")).run(model).model.graph.outputs[0]
    mask = model.graph.inputs[2]
    assert [spans(output, each, size_of(mask, each)) for each in range(2)] == [True, wider]


def test_rows_are_traced_through_products_of_codes(parse: Callable[..., ir.Model]) -> None:
    model = parse(
        '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
        " g (uint8[B,T,4] x) => (float[B,T,6] y) <int8[4,6] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
        "1,1,1,1,1,1,1}, float s = {0.5}, float[B,T,6] p, float[B,T,6] g> {"
        " p = com.microsoft.MatMulIntegerToFloat(x, w, s, s)  g = com.microsoft.FastGelu(p)"
        "  y = Relu(g) }"
    )
    output = model.graph.outputs[0]
    assert [size_of(output, axis) for axis in range(2)] == [
        Axis(model.graph.inputs[0], axis) for axis in range(2)
    ]
