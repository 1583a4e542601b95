from __future__ import annotations

import json
import math
from functools import reduce
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxfold.passes.constants import Array
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.metrics import LSB_CAP, OutputMetrics, measure

DTYPES = [np.float32, np.float64, np.int8, np.uint8, np.int64, np.uint64, np.bool_]


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


@st.composite
def samples(draw: st.DrawFn) -> list[tuple[Array, Array]]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(0,), (1,), (2, 3), (3, 4)]))
    arrays = hnp.arrays(dtype, shape)
    return draw(st.lists(st.tuples(arrays, arrays), min_size=1, max_size=6))


@settings(max_examples=150, deadline=None)
@given(pairs=samples(), cuts=st.lists(st.integers(0, 6), max_size=3))
def test_shards_merge_to_the_whole(pairs: list[tuple[Array, Array]], cuts: list[int]) -> None:
    measured = [measure("y", old, new, i) for i, (old, new) in enumerate(pairs)]
    whole = reduce(OutputMetrics.merge, measured)

    bounds = sorted({0, len(measured), *(cut for cut in cuts if cut < len(measured))})
    shards = [measured[a:b] for a, b in pairwise(bounds)]
    merged = [reduce(OutputMetrics.merge, shard) for shard in shards]
    forwards = reduce(OutputMetrics.merge, merged)
    backwards = reduce(OutputMetrics.merge, reversed(merged))

    assert forwards == backwards == whole
    assert json.dumps(forwards.to_json(), allow_nan=False) == json.dumps(whole.to_json())


@settings(max_examples=100, deadline=None)
@given(pairs=samples())
def test_an_output_equals_itself(pairs: list[tuple[Array, Array]]) -> None:
    for old, _ in pairs:
        metrics = measure("y", old, np.array(old))
        assert metrics.different == metrics.nonfinite_mismatches == metrics.flips == 0
        assert metrics.sqnr_db == math.inf
        assert metrics.worst is None


@settings(max_examples=150, deadline=None)
@given(pairs=samples())
def test_every_changed_bit_is_counted(pairs: list[tuple[Array, Array]]) -> None:
    for old, new in pairs:
        metrics = measure("y", old, new)
        expected = sum(
            a.tobytes() != b.tobytes() and not (a != a and b != b)
            for a, b in zip(old.reshape(-1), new.reshape(-1), strict=True)
        )
        assert metrics.different == expected
        assert (metrics.worst is None) == (expected == 0)


def test_comparers_merge() -> None:
    feeds = [({"y": floats(i, i + 1)}, {"y": floats(i, i + 1.5)}) for i in range(5)]
    whole, left, right = Comparer(), Comparer(), Comparer()
    for number, (old, new) in enumerate(feeds):
        whole.add(old, new)
        (left if number < 2 else right).add(old, new)
    left.merge(right)
    assert left.samples == whole.samples == 5
    assert left.metrics["y"].noise == whole.metrics["y"].noise
    assert left.metrics["y"].max_abs_diff == whole.metrics["y"].max_abs_diff == 0.5


def test_figures_of_a_known_difference() -> None:
    metrics = measure("y", floats(3, -4, 0), floats(3, -4, 0.5), sample=7)
    assert metrics.max_abs_diff == 0.5
    assert metrics.max_abs_reference == 4
    assert metrics.relative_to_max == 0.125
    assert metrics.mean_abs_diff == pytest.approx(0.5 / 3)
    assert metrics.sqnr_db == pytest.approx(20)  # 25 over 0.25
    assert metrics.cosine == pytest.approx(25 / math.sqrt(25 * 25.25))
    assert str(metrics.worst) == "sample 7, index [2]: reference 0, candidate 0.5"


@pytest.mark.parametrize(
    ("old", "new", "sqnr", "cosine"),
    [
        (floats(0, 0), floats(0, 0), math.inf, 1.0),
        (floats(0, 0), floats(0, 1), -math.inf, 0.0),
        (floats(1, 0), floats(-1, 0), pytest.approx(-6.0206), -1.0),
        (np.array([1e200]), np.array([1e200]), math.inf, 1.0),
        (np.array([1e-200]), np.array([1e-200]), math.inf, 1.0),
    ],
)
def test_figures_at_the_edges(old: Array, new: Array, sqnr: float, cosine: float) -> None:
    metrics = measure("y", old, new)
    assert metrics.sqnr_db == sqnr
    assert metrics.cosine == cosine


def test_broken_values_are_counted_apart() -> None:
    metrics = measure(
        "y", floats(1, np.nan, np.inf, np.inf, 2), floats(np.nan, np.nan, np.inf, -np.inf, 2)
    )
    assert metrics.nonfinite_mismatches == metrics.different == 2
    assert metrics.max_abs_diff == 0
    assert str(metrics.worst) == "sample 0, index [0]: reference 1, candidate nan"


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4", "uint4"])
def test_small_types_are_measured(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    metrics = measure("y", np.array([0, 1, 4], dtype), np.array([0, 1, 6], dtype))
    assert (metrics.dtype, metrics.different, metrics.max_abs_diff) == (name, 1, 2)


@pytest.mark.parametrize(
    ("dtype", "old", "new", "steps"),
    [
        (np.int64, -(2**63), 2**63 - 1, LSB_CAP),
        (np.int64, 2**53, 2**53 + 1, 1),
        (np.uint64, 2**64 - 1, 2**64 - 2, 1),
        (np.uint64, 2**63, 2**63 - 1, 1),
        (np.int8, -128, 127, 255),
        (np.uint8, 0, 255, 255),
    ],
)
def test_integer_steps_never_wrap(dtype: Any, old: int, new: int, steps: int) -> None:
    for a, b in ((old, new), (new, old)):
        metrics = measure("y", np.array([a], dtype), np.array([b], dtype))
        assert dict(metrics.lsb) == {steps: 1}
        assert metrics.max_lsb == steps


def test_quantiles_of_steps() -> None:
    old = np.zeros(100, np.int8)
    new: Array = np.array(old)
    new[:2] = 3
    new[2:10] = 1
    metrics = measure("y", old, new)
    assert [metrics.lsb_quantile(q) for q in (0.5, 0.9, 0.91, 0.98, 0.99)] == [0, 0, 1, 1, 3]


def test_flips_count_changed_winners_and_forgive_ties() -> None:
    old = floats(1, 2, 0, 5, 5, 0).reshape(2, 3)
    assert measure("y", old, floats(1, 2, 0, 0, 5, 0).reshape(2, 3)).flips == 0
    metrics = measure("y", old, floats(3, 2, 0, 0, 1, 9).reshape(2, 3))
    assert (metrics.flips, metrics.rows) == (2, 2)
    pooled = measure("y", old.reshape(2, 3, 1, 1), old.reshape(2, 3, 1, 1))
    assert pooled.rows == 2
    assert measure("y", old.reshape(1, 2, 3), old.reshape(1, 2, 3)).rows == 0
    assert measure("y", old.reshape(-1), old.reshape(-1)).rows == 0


def test_unlike_arrays_are_not_measured() -> None:
    with pytest.raises(ValueError, match="checked before measuring"):
        measure("y", floats(1), floats(1, 2))
    with pytest.raises(ValueError, match="do not merge"):
        measure("y", floats(1), floats(1)).merge(measure("z", floats(1), floats(1)))
