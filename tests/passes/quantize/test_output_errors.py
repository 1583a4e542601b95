"""OutputErrors as a value and as an option: text, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.correct_bias import CorrectBias
from onnxfold.passes.quantize.output_errors import OutputErrors
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.spec import print_pass

ERRORS = OutputErrors({"b": (0.1, -2e-30), "a": (1.0,)})


def test_every_bit_survives_text_and_file(tmp_path: Path) -> None:
    assert list(ERRORS) == ["a", "b"]
    assert OutputErrors.from_text(ERRORS.to_text()) == ERRORS
    saved = ERRORS.save(tmp_path / "errors.json")
    assert saved == ERRORS
    assert saved.to_text() == str(tmp_path / "errors.json")
    assert OutputErrors.from_text(saved.to_text()) == ERRORS
    assert hash(saved) == hash(ERRORS)


def test_as_an_option_of_the_pass(tmp_path: Path) -> None:
    for errors in (ERRORS, ERRORS.save(tmp_path / "errors.json")):
        (parsed,) = parse_passes(print_pass(CorrectBias(errors)))
        assert parsed == CorrectBias(ERRORS)


@pytest.mark.parametrize("text", ['{"format": "other"}', "{", '{"errors": 1}', "absent.json"])
def test_something_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        OutputErrors.from_text(text)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "errors.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"errors\.json"):
        OutputErrors.from_text(str(path))


def test_errors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UsageError, match="node 'a' is not finite"):
        OutputErrors({"a": (float("nan"),)})
