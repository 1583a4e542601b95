"""CalibrationCache: what was kept comes back, for the very same model and data only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.runtime.calibrate.cache import CalibrationCache, data_hash

Parse = Callable[..., ir.Model]
Feeds = list[dict[str, Any]]

MODEL = "g (float[N] x) => (float[N] y) { y = Neg(x) }"
FOUND = Ranges({"x": (-0.1, 1 / 3), "y": (0.0, 5e-324)})
MORE = Ranges({"z": (1.0, 2.0)})


def _feeds(scale: float = 1.0) -> Feeds:
    return [{"x": np.arange(4, dtype=np.float32) * scale}]


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_ranges_come_back_bit_for_bit_by_method(parse: Parse, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cache{suffix}"
    cache = CalibrationCache.open(path, parse(MODEL), _feeds())
    assert not cache.ranges("min-max")
    cache.add("min-max", FOUND)
    assert cache.add("min-max", MORE) == FOUND.union(MORE)
    cache.add("percentile{percentile=99}", MORE)
    again = CalibrationCache.open(path, parse(MODEL), _feeds())
    assert again.ranges("min-max").to_text() == FOUND.union(MORE).to_text()
    assert again.ranges("percentile{percentile=99}") == MORE
    assert not again.ranges("percentile")


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_the_file_is_deterministic(parse: Parse, tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{each}{suffix}" for each in ("first", "second")]
    for path, order in zip(paths, (1, -1), strict=True):
        cache = CalibrationCache.open(path, parse(MODEL), _feeds())
        for method, ranges in [("a", FOUND), ("b", MORE)][::order]:
            cache.add(method, ranges)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_of_another_model_or_other_data_it_is_refused(
    parse: Parse, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"cache{suffix}"
    CalibrationCache.open(path, parse(MODEL), _feeds()).add("min-max", FOUND)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"belongs to another model .* delete it or name another"):
        CalibrationCache.open(path, parse(MODEL.replace("Neg", "Abs")), _feeds())
    with pytest.raises(UsageError, match=r"cache\.\w+: .* belongs to other data"):
        CalibrationCache.open(path, parse(MODEL), _feeds(2.0))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["", "PK\x03\x04", "[]", "{}", '{"methods": {"a": {"x": [2, 1]}}}']
)
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_file_of_something_else_is_one_clear_line(
    parse: Parse, tmp_path: Path, suffix: str, content: str
) -> None:
    path = tmp_path / f"cache{suffix}"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        CalibrationCache.open(path, parse(MODEL), _feeds())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "feeds",
    [
        [{"x": np.array([1, 2], np.float32)}, {"x": np.array([3], np.float32)}],
        [{"x": np.array([1, 2, 3], np.float64)}],
        [{"x": np.array([[1, 2, 3]], np.float32)}],
        [{"z": np.array([1, 2, 3], np.float32)}],
        [{"x": np.array([1, 2, 4], np.float32)}],
        [],
    ],
)
def test_the_hash_tells_data_apart(feeds: Feeds) -> None:
    assert data_hash([{"x": np.array([1, 2, 3], np.float32)}]) != data_hash(feeds)


def test_the_hash_of_strings_is_that_of_their_letters() -> None:
    def text(word: str) -> Feeds:
        return [{"x": np.array(["".join(word), "b"], dtype=object)}]

    assert data_hash(text("word")) == data_hash(text("word"))
    assert data_hash(text("word")) != data_hash(text("ward"))


def test_without_a_file_it_keeps_ranges_in_memory() -> None:
    cache = CalibrationCache()
    cache.add("min-max", FOUND)
    assert cache.ranges("min-max") == FOUND


def test_the_hash_tells_where_a_feed_ends() -> None:
    x, z = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert data_hash([{"x": x, "z": z}]) != data_hash([{"x": x}, {"z": z}])
