"""WeightRounding as a value and as an option: files, equality, and what is refused."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.round_weights import RoundWeights
from onnxfold.passes.quantize.weight_rounding import WeightRounding
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.spec import print_pass

CODES = WeightRounding({"b": np.array([[1, -127]]), "a": np.array([200, 3], np.uint8)})


def test_every_code_survives_a_file(tmp_path: Path) -> None:
    assert list(CODES) == ["a", "b"]
    assert [each.dtype for each in CODES.values()] == [np.uint8, np.int8]
    saved = CODES.save(tmp_path / "codes.npz")
    loaded = WeightRounding.from_text(saved.to_text())
    assert loaded == saved == CODES
    assert hash(loaded) == hash(CODES)
    np.testing.assert_array_equal(loaded["b"], [[1, -127]])


def test_one_other_code_makes_another_rounding() -> None:
    assert WeightRounding({**CODES, "b": np.array([[1, -126]])}) != CODES
    assert WeightRounding({"a": CODES["a"]}) != CODES


def test_codes_of_4_bits_are_kept_as_bytes() -> None:
    codes = np.array([-8, 7]).astype(ml_dtypes.int4)
    assert WeightRounding({"a": codes})["a"].dtype == np.int8


def test_codes_are_the_rounding_s_own() -> None:
    mine = np.array([1, 2], np.int8)
    rounding = WeightRounding({"a": mine})
    mine[0] = 5
    assert rounding["a"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        rounding["a"][0] = 3


def test_as_an_option_of_the_pass(tmp_path: Path) -> None:
    saved = CODES.save(tmp_path / "codes.npz")
    (parsed,) = parse_passes(print_pass(RoundWeights(saved)))
    assert parsed == RoundWeights(CODES)


def test_in_memory_there_is_no_text() -> None:
    with pytest.raises(UsageError, match="save them"):
        CODES.to_text()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}"])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"codes\.npz: not a file of weight codes"):
        WeightRounding.load(path)
    with pytest.raises(UsageError, match="learn the rounding first"):
        WeightRounding.load(tmp_path / "absent.npz")


@pytest.mark.parametrize("values", [[0.5], [300], [-129], [-1, 200]])
def test_what_are_no_codes_of_8_bits_is_refused(values: list[float]) -> None:
    with pytest.raises(UsageError, match="node 'a'"):
        WeightRounding({"a": np.array(values)})
