"""Sizes of axes that are traced through lookups."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.dims import Axis, size_of
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
