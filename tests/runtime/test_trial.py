from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.runtime.trial import feeds_for

ROWS_OF_64 = """g (float[B,S] x) => (float[R,C] y) <int64[2] shape = {-1, 64}>
    { y = Reshape (x, shape) }"""


def first_shape(model: ir.Model, data: object) -> tuple[int, ...]:
    return next(iter(feeds_for(model, data)))["x"].shape


def test_sizes_are_raised_until_the_model_runs(parse: Callable[..., ir.Model]) -> None:
    model = parse(ROWS_OF_64)
    assert first_shape(model, None) == (64, 64)
    assert onnxfold.optimize(model).report.passed


def test_the_usual_sizes_come_first_and_data_is_taken_as_it_is(
    parse: Callable[..., ir.Model],
) -> None:
    negation = parse("g (float[B,S] x) => (float[B,S] y) { y = Neg(x) }")
    assert first_shape(negation, None) == (1, 8)
    data = {"x": np.zeros((2, 5), np.float32)}
    assert first_shape(parse(ROWS_OF_64), data) == (1, 5)


@pytest.mark.parametrize("size", ["B", "2"])
def test_a_model_that_never_runs_is_left_to_who_runs_it(
    size: str, parse: Callable[..., ir.Model]
) -> None:
    model = parse(f"""g (float[{size},3] x) => (float[A,C] y) <int64[2] shape = {{7, 11}}>
        {{ y = Reshape(x, shape) }}""")
    assert first_shape(model, None)[1] == 3
