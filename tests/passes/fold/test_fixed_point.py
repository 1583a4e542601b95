"""Fixed-point rescaling against rational arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.fixed_point import Term, rescale
from onnxfold.passes.fold.types import TypeState
from onnxfold.passes.rewriter import Rewriter

Evaluate = Callable[[ir.Model, dict[str, Any]], dict[str, Any]]
_CANCELLING = (0.5 + float(np.float32(0.15)), -float(np.float32(0.15)))
_PATIENT = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _rescaled(
    numbers: Sequence[np.ndarray],
    factors: Sequence[Any],
    zeros: Sequence[int],
    affine: AffineType,
    evaluate: Evaluate,
    constant: Any = None,
    opset: int = 21,
) -> np.ndarray:
    """What the graph that ``rescale`` writes computes of int32 ``numbers``."""
    shape = np.broadcast_shapes(*(each.shape for each in numbers))
    inputs = [
        ir.Value(name=f"v{i}", shape=ir.Shape(each.shape), type=ir.TensorType(ir.DataType.INT32))
        for i, each in enumerate(numbers)
    ]
    end = ir.Node("", "Identity", [inputs[0]], name="end")
    end.outputs[0].name = "y"
    end.outputs[0].shape = ir.Shape(shape)
    end.outputs[0].dtype = affine.dtype
    graph = ir.Graph(inputs, end.outputs, nodes=[end], opset_imports={"": opset}, name="g")
    model = ir.Model(graph, ir_version=10)
    rewriter = Rewriter(model, "test")
    with rewriter.step("test", end):
        build = Builder(rewriter, TypeState(recode=True))
        build.anchor = end
        terms = [
            Term(value, np.asarray(factor, np.float64), zero, int(np.max(np.abs(each - zero))))
            for value, factor, zero, each in zip(inputs, factors, zeros, numbers, strict=True)
        ]
        codes = rescale(terms, affine, end.outputs[0], build, constant=constant)
        rewriter.set_input(end, 0, codes)
    return evaluate(model, {f"v{i}": each for i, each in enumerate(numbers)})["y"]


def _expected(exact: Fraction, affine: AffineType) -> int:
    """Rounded half to even, then the zero point, then saturated."""
    low, high = affine.limits
    return min(max(round(exact) + int(affine.zero_point), low), high)


def _type(zero_point: int, dtype: ir.DataType = ir.DataType.UINT8) -> AffineType:
    return AffineType(np.asarray(1.0, np.float32), np.asarray(zero_point, dtype.numpy()), dtype)


@_PATIENT
@given(
    numbers=st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=40),
    factor=st.floats(2.0**-24, 4.0),
    zero_point=st.integers(0, 255),
    negative=st.booleans(),
)
def test_one_term_is_rounded_as_rational_numbers_are(
    numbers: list[int], factor: float, zero_point: int, negative: bool, evaluate: Evaluate
) -> None:
    factor = -factor if negative else factor
    affine = _type(zero_point)
    array = np.asarray(numbers, np.int32)
    got = _rescaled([array], [factor], [0], affine, evaluate)
    exact = [Fraction(factor) * number for number in numbers]
    want = [_expected(each, affine) for each in exact]
    near_tie = [abs(each % 1 - Fraction(1, 2)) < Fraction(1, 2**20) for each in exact]
    for each_got, each_want, near in zip(got.tolist(), want, near_tie, strict=True):
        assert each_got == each_want or (near and abs(each_got - each_want) == 1)


@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
@pytest.mark.parametrize("factor", [0.5, 0.25, 1.5, -0.5, 2.0**-9, 0.75])
def test_halves_go_to_the_even_code_on_both_sides_of_zero(
    zero_point: int, factor: float, evaluate: Evaluate
) -> None:
    affine, numbers = _type(zero_point), np.arange(-70000, 70000, 7, dtype=np.int32)
    got = _rescaled([numbers], [factor], [0], affine, evaluate)
    want = [_expected(Fraction(factor) * int(number), affine) for number in numbers]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
@pytest.mark.parametrize("denominators", [[6], [-6], [18], [48, 6, 9, 4], [3584], [2, 7], [4, 12]])
@pytest.mark.parametrize("opset", [17, 21])
def test_halves_of_fractions_that_are_not_binary_go_to_the_even_code(
    denominators: list[int], zero_point: int, opset: int, evaluate: Evaluate
) -> None:
    """As a mean of six, or of windows that cover a different number of elements each."""
    affine = _type(zero_point)
    numbers = np.broadcast_to(np.arange(-9000, 9000, dtype=np.int32), (len(denominators), 18000))
    factors = 1.0 / np.asarray(denominators, np.float64)[:, None]
    got = _rescaled([numbers], [factors], [0], affine, evaluate, opset=opset)
    want = [
        [_expected(Fraction(int(number), divisor), affine) for number in numbers[0]]
        for divisor in denominators
    ]
    np.testing.assert_array_equal(got, want)


def test_halves_of_a_mean_of_six_operands_go_to_the_even_code(evaluate: Evaluate) -> None:
    codes = list(np.random.default_rng(0).integers(0, 256, (6, 3000)).astype(np.int32))
    got = _rescaled(codes, [1 / 6] * 6, [0] * 6, _type(0), evaluate)
    want = [_expected(Fraction(int(total), 6), _type(0)) for total in np.sum(codes, axis=0)]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("factors", "addend"),
    [(_CANCELLING, None), (_CANCELLING, 3.0), (_CANCELLING, 0.3), ((2.0**-12,), 0.5)],
)
def test_halves_of_terms_that_have_none_alone_go_to_the_even_code(
    factors: tuple[float, ...], addend: float | None, evaluate: Evaluate
) -> None:
    """0.65 a - 0.15 b is a half where a is b and odd."""
    codes = [np.arange(256, dtype=np.int32)] * len(factors)
    constant = None if addend is None else np.asarray(addend)
    got = _rescaled(codes, factors, [128] * len(factors), _type(100), evaluate, constant)
    exact = [
        sum(Fraction(factor) * (code - 128) for factor in factors) + Fraction(addend or 0)
        for code in range(256)
    ]
    np.testing.assert_array_equal(got, [_expected(each, _type(100)) for each in exact])


@_PATIENT
@given(data=st.data())
def test_sums_of_codes_with_zero_points_and_a_constant(data: st.DataObject, evaluate: Any) -> None:
    count = data.draw(st.integers(1, 3))
    exponents = st.integers(-3, 1)
    factors = [
        2.0 ** data.draw(exponents) * data.draw(st.sampled_from([1, -1])) for _ in range(count)
    ]
    zeros = [data.draw(st.integers(0, 255)) for _ in range(count)]
    addend = data.draw(st.integers(-40, 40)) / 4
    affine = _type(data.draw(st.integers(-128, 127)), ir.DataType.INT8)
    seed = data.draw(st.integers(0, 99))
    numbers = list(np.random.default_rng(seed).integers(0, 256, (count, 64)).astype(np.int32))
    got = _rescaled(numbers, factors, zeros, affine, evaluate, np.asarray(addend))
    for column, code in enumerate(got.tolist()):
        exact = Fraction(addend) + sum(
            Fraction(factor) * (int(each[column]) - zero)
            for factor, zero, each in zip(factors, zeros, numbers, strict=True)
        )
        assert code == _expected(exact, affine)


def test_factors_per_channel_are_broadcast(evaluate: Evaluate) -> None:
    numbers = np.random.default_rng(0).integers(-(2**20), 2**20, (2, 3, 50)).astype(np.int32)
    factors = np.asarray([2.0**-12, 3.1e-5, 7.7e-9]).reshape(3, 1)
    affine = _type(100)
    got = _rescaled([numbers], [factors], [0], affine, evaluate)
    want = np.clip(np.rint(numbers * factors) + 100, 0, 255)
    np.testing.assert_array_equal(got, want)


def test_operands_are_broadcast(evaluate: Evaluate) -> None:
    left, right = np.arange(12, dtype=np.int32).reshape(3, 4), np.arange(4, dtype=np.int32)
    got = _rescaled([left, right], [1.0, 10.0], [0, 0], _type(0), evaluate)
    np.testing.assert_array_equal(got, left + 10 * right)


@pytest.mark.parametrize("factor", [2.0**-40, 1e-12, 300.0])
def test_extreme_factors_neither_overflow_nor_round_wrongly(
    factor: float, evaluate: Evaluate
) -> None:
    numbers = np.asarray([-(2**31) + 1, -1, 0, 1, 2**31 - 1], np.int32)
    got = _rescaled([numbers], [factor], [0], _type(7), evaluate)
    want = [_expected(Fraction(factor) * int(number), _type(7)) for number in numbers]
    np.testing.assert_array_equal(got, want)
