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


def test_generated_inputs_stay_where_the_model_says_they_lie(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse(
        """g (int64[8] ids, float[8] x) => (float[8] rows, uint8[8] codes)
        <float[3] table = {1, 2, 3}, float scale = {100.0}, uint8 zero = {0}>
        { rows = Gather(table, ids)  codes = QuantizeLinear(x, scale, zero) }"""
    )
    feeds = list(feeds_for(model, None))
    assert {int(row) for feed in feeds for row in feed["ids"]} <= {0, 1, 2}
    values = np.concatenate([feed["x"] for feed in feeds])
    assert 0 <= values.min() < 10_000 < values.max() <= 25_500
