"""Every calibration method: against the raw values, and what must hold whatever the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxfold.options.compile import CALIBRATIONS
from onnxfold.passes.affine import affine_from_range
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.calibrate.method import Range
from onnxfold.runtime.calibrate.methods import METHODS, method_text, parse_method
from onnxfold.runtime.compiler.options import SEARCH

Values = npt.NDArray[Any]

arrays = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False).map(lambda v: v + 0.0),
)


def _range(method: str, *samples: Values) -> Range | None:
    chosen = parse_method(method)
    observer = chosen.new_observer()
    for number, values in enumerate(samples):
        observer.update(values, number)
    return chosen.range(observer)


def _error(values: Values, found: Range | None) -> float:
    """Mean squared error of u8 codes."""
    assert found is not None
    codes = affine_from_range(*found, ir.DataType.UINT8)
    real = codes.dequantize(codes.quantize(values)).astype(np.float64)
    return float(np.mean((real - values) ** 2))


def _samples(kind: str) -> Values:
    rng = np.random.default_rng(0)
    if kind == "relu":
        return np.maximum(rng.normal(size=(40, 5000)), 0).astype(np.float32)
    draw = rng.laplace if kind == "laplace" else rng.normal
    return draw(size=(40, 5000)).astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace"])
def test_standard_deviation_is_that_of_the_values(kind: str) -> None:
    values = _samples(kind)
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    found = _range("standard-deviation{sigmas=2.5}", *values)
    expected = [mean - 2.5 * deviation, mean + 2.5 * deviation]
    assert found == pytest.approx(np.clip(expected, values.min(), values.max()), abs=2e-3)


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace"])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.2])
def test_winsorized_is_the_range_of_the_winsorized_values(kind: str, fraction: float) -> None:
    values = _samples(kind)
    pulled = int(fraction * values.size)
    ordered = np.sort(values, axis=None)
    expected = (ordered[pulled], ordered[-1 - pulled])
    found = _range(f"winsorized{{fraction={fraction}}}", *values)
    assert found == pytest.approx(expected, abs=2.0**-8)


def test_winsorized_cuts_nothing_off_few_values_where_a_percentile_does() -> None:
    values = np.linspace(0, 1, 999, dtype=np.float32)
    assert _range("winsorized{fraction=0.001}", values) == (0.0, 1.0)
    cut = _range("percentile{percentile=99.7}", values)
    assert cut is not None
    assert cut[1] < 1.0


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"min-max"}))
def test_outliers_ruin_min_max_and_nothing_else(method: str) -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=25_000).astype(np.float32) for _ in range(40)]
    planted: list[Values] = [np.array(values) for values in samples]
    planted[7][123], planted[30][4567] = 60.0, -60.0
    bulk = np.concatenate(samples)
    ruined = _error(bulk, _range("min-max", *planted))
    assert ruined > 100 * _error(bulk, _range("min-max", *samples))
    assert _error(bulk, _range(method, *planted)) < ruined / 5


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=15)
@given(samples=st.lists(arrays, min_size=1, max_size=10), count=st.integers(1, 8))
def test_shards_merge_to_the_bits_of_the_whole(
    method: str, samples: list[Values], count: int
) -> None:
    chosen = parse_method(method)
    shards = [chosen.new_observer() for _ in range(count)]
    for number, values in enumerate(samples):
        shards[number % count].update(values, number)
    merged = chosen.new_observer()
    for shard in reversed(shards):
        merged.merge(shard)
    assert chosen.range(merged) == _range(method, *samples)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=15)
@given(values=arrays)
def test_a_range_is_one_and_lies_within_the_values(method: str, values: Values) -> None:
    found = _range(method, values)
    assert found is not None
    assert values.min() <= found[0] <= found[1] <= values.max()


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=15)
@given(values=arrays, exponent=st.integers(-10, 10))
def test_a_range_scales_with_the_values(method: str, values: Values, exponent: int) -> None:
    found = _range(method, values)
    assert found is not None
    scale = 2.0**exponent
    scaled = _range(method, values * np.float32(scale))
    assert scaled == pytest.approx((found[0] * scale, found[1] * scale), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("percentile{percentile=90}", "percentile{percentile=99}"),
        ("standard-deviation{sigmas=1}", "standard-deviation{sigmas=2}"),
        ("winsorized{fraction=0.2}", "winsorized{fraction=0.1}"),
    ],
)
@settings(deadline=None, max_examples=30)
@given(values=arrays)
def test_asking_for_more_never_gives_less(narrow: str, wide: str, values: Values) -> None:
    inner, outer = _range(narrow, values), _range(wide, values)
    assert inner is not None
    assert outer is not None
    assert outer[0] <= inner[0]
    assert inner[1] <= outer[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1.5, -2.0, 1e-30, 3e38])
def test_a_constant_tensor_has_its_value_as_range(method: str, value: float) -> None:
    values = np.full(100, value, np.float32)
    assert _range(method, values, values) == (values[0], values[0])


@pytest.mark.parametrize("method", METHODS)
def test_empty_batches_count_for_nothing(method: str) -> None:
    empty, values = np.zeros((0, 3), np.float32), np.arange(9, dtype=np.float32)
    assert _range(method, empty) is None
    assert _range(method) is None
    assert _range(method, values, empty) == _range(method, values)


@pytest.mark.parametrize("method", METHODS)
def test_values_of_two_magnitudes_have_a_range(method: str) -> None:
    """Nothing but zero and one value far from it: most bins are empty."""
    values = np.zeros(1000, np.float32)
    values[::10] = 5.0
    found = _range(method, values)
    assert found is not None
    assert 0.0 <= found[0] < 1e-3
    assert 0.0 < found[1] <= 5.0


def test_auto_is_never_farther_than_any_other_method() -> None:
    for kind in ("normal", "relu", "laplace"):
        values = _samples(kind)
        others = [_error(values, _range(each, *values)) for each in METHODS if each != "auto"]
        assert _error(values, _range("auto", *values)) <= min(others) * 1.01


@pytest.mark.parametrize("method", METHODS)
def test_text_gives_back_the_method(method: str) -> None:
    assert method_text(parse_method(method)) == method
    assert parse_method(method).name == method


def test_options_are_parsed_and_printed() -> None:
    text = "percentile{percentile=99.5}"
    assert method_text(parse_method(text)) == text
    assert method_text(parse_method("percentile{percentile=99.999}")) == "percentile"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("percentil", "no calibration method 'percentil'; did you mean 'percentile'"),
        ("zzz", "there are min-max, moving-average"),
        ("percentile{percent=9}", "calibration method percentile has no option 'percent'"),
        ("percentile{percentile=50}", r"percentile 50.0 is not in \(50, 100\]"),
        ("percentile{percentile=100.1}", "percentile 100.1 is not in"),
        ("percentile{percentile=high}", "not of type float"),
        ("standard-deviation{sigmas=0}", "not a positive number"),
        ("standard-deviation{sigmas=nan}", "not a positive number"),
        ("winsorized{fraction=0.5}", r"not in \[0, 0.5\)"),
        ("moving-average{constant=1}", r"not in \(0, 1\)"),
        ("min-max,entropy", "not one calibration method"),
        ("", "not one calibration method"),
    ],
)
def test_what_is_no_method_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_method(text)


def test_the_command_line_offers_every_method() -> None:
    assert (SEARCH, *METHODS) == CALIBRATIONS
