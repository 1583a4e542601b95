from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.constants import Array
from onnxfold.runtime.session import Session
from onnxfold.runtime.verify.oracle import Float64Oracle

CONV = """g (float[1,4,7,6] x, float[6,{per},3,2] w, float[6] b) => (float[?,?,?,?] y)
    {{ y = Conv <{options}> (x, w, b) }}"""

POOL = """g (float[1,4,7,6] x) => (float[?,?,?,?] y)
    {{ y = AveragePool <kernel_shape = [3, 2], {options}> (x) }}"""


@pytest.mark.parametrize(
    ("per", "options"),
    [
        (4, "group = 1"),
        (2, "group = 2, strides = [2, 1], pads = [1, 0, 2, 1]"),
        (4, "dilations = [2, 3]"),
        (4, 'auto_pad = "SAME_UPPER"'),
        (4, 'auto_pad = "VALID"'),
    ],
)
def test_convolutions_are_those_of_the_runtime(
    per: int, options: str, parse: Callable[..., ir.Model]
) -> None:
    rng = np.random.default_rng(0)
    model = parse(CONV.format(per=per, options=options), opset=17)
    shapes = {"x": (1, 4, 7, 6), "w": (6, per, 3, 2), "b": (6,)}
    compare(model, {name: rng.normal(size=shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    "options",
    [
        "strides = [1, 1]",
        "strides = [2, 2]",
        "pads = [1, 1, 0, 1]",
        "ceil_mode = 1, strides = [2, 2]",
    ],
)
def test_average_pools_are_those_of_the_runtime(
    options: str, parse: Callable[..., ir.Model]
) -> None:
    model = parse(POOL.format(options=options), opset=17)
    compare(model, {"x": np.random.default_rng(1).normal(size=(1, 4, 7, 6))})


def compare(model: ir.Model, wide: dict[str, Array]) -> None:
    feed = {name: array.astype(np.float32) for name, array in wide.items()}
    found = Float64Oracle(model, {}).run(feed)["y"]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, Session(model).run(feed)["y"], rtol=1e-4, atol=1e-5)
