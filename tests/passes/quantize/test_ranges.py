"""Ranges: exact round trips, checks, merging, and their form as a pass option."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.spec import print_pipeline

finite = st.floats(allow_nan=False, allow_infinity=False)
pairs = st.tuples(finite, finite).map(lambda pair: (min(pair), max(pair)))
names = st.text(min_size=1).filter(lambda name: "\0" not in name and name.isprintable())
SOME = Ranges({"x/y:0": (-0.1, 1 / 3), "a": (0.0, 5e-324), "né": (-1e308, 3.0)})


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(names, pairs))
def test_text_gives_back_every_bit(ranges: dict[str, tuple[float, float]]) -> None:
    again = Ranges.from_text(Ranges(ranges).to_text())
    assert dict(again) == ranges
    assert [np.float64(v).tobytes() for pair in again.values() for v in pair] == [
        np.float64(v).tobytes() for name in sorted(ranges) for v in ranges[name]
    ]


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_give_back_every_bit_and_are_deterministic(tmp_path: Path, suffix: str) -> None:
    saved = SOME.save(tmp_path / f"first{suffix}")
    SOME.save(tmp_path / f"second{suffix}")
    assert dict(Ranges.load(tmp_path / f"first{suffix}")) == dict(SOME)
    first, second = (tmp_path / f"{each}{suffix}" for each in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert saved.to_text() == str(tmp_path / f"first{suffix}")


def test_a_pipeline_with_saved_ranges_prints_and_parses(tmp_path: Path) -> None:
    passes = (InsertQdq(SOME.save(tmp_path / "with space.json"), skip=("a", "b")),)
    assert parse_passes(print_pipeline(passes)) == passes


def test_a_pipeline_with_ranges_in_memory_prints_and_parses() -> None:
    passes = (InsertQdq(SOME, activations="s8"),)
    assert parse_passes(print_pipeline(passes)) == passes


def test_equality_and_hash_are_by_content(tmp_path: Path) -> None:
    assert SOME.save(tmp_path / "r.json") == SOME
    assert hash(SOME) == hash(SOME.save(tmp_path / "r.json"))
    assert Ranges({"a": (0.0, 1.0)}) != Ranges({"a": (0.0, 2.0)})


def test_union_is_the_widest_of_both() -> None:
    first = Ranges({"a": (0.0, 1.0), "b": (-1.0, 0.0)}, notes=("n",))
    second = Ranges({"a": (-2.0, 0.5), "c": (3.0, 4.0)}, notes=("n", "m"))
    merged = first.union(second)
    assert dict(merged) == {"a": (-2.0, 1.0), "b": (-1.0, 0.0), "c": (3.0, 4.0)}
    assert merged.notes == ("n", "m")


@pytest.mark.parametrize(("low", "high"), [(float("nan"), 1.0), (0.0, float("inf")), (1.0, 0.0)])
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(UsageError, match="'conv1'"):
        Ranges({"conv1": (low, high)})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "onnxfold-ranges", "version": 9, "ranges": {}}',
        '{"format": "onnxfold-ranges", "version": 1, "ranges": {"a": [1]}}',
        "PK\x03\x04",
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_file_of_something_else_is_one_clear_line(
    tmp_path: Path, suffix: str, content: str
) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"not a file of calibration ranges") as caught:
        Ranges.from_text(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.json: no such file"):
        Ranges.from_text("nowhere.json")


def test_the_json_is_plain(tmp_path: Path) -> None:
    SOME.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["ranges"]["a"] == [0.0, 5e-324]
