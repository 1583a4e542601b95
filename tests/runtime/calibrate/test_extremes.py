"""Extremes: streaming equals looking at everything at once; NaN and infinity are seen."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxfold.runtime.calibrate.extremes import Extremes

arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(arrays, min_size=1))
def test_streaming_equals_everything_at_once(shards: list[npt.NDArray[Any]]) -> None:
    one, merged = Extremes(), Extremes()
    for shard in shards:
        one.update(shard)
        other = Extremes()
        other.update(shard)
        merged.merge(other)
    everything = np.concatenate([shard.reshape(-1) for shard in shards])
    expected = (everything.min(), everything.max()) if everything.size else None
    assert one.range() == merged.range() == expected


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")]
)
@pytest.mark.parametrize("position", [0, 1, 500, 999])
def test_what_is_not_finite_is_an_error_wherever_it_is(
    value: float, word: str, position: int
) -> None:
    values = np.zeros(1000, np.float32)
    values[position] = value
    with pytest.raises(ValueError, match=word):
        Extremes().update(values)


def test_which_zero_is_kept_does_not_depend_on_the_order() -> None:
    zeros = np.array([0.0, -0.0, 0.0], np.float32)
    for values in permutations(zeros):
        seen = Extremes()
        for value in values:
            seen.update(np.array([value]))
        assert math.copysign(1, seen.low) == math.copysign(1, seen.high) == 1
