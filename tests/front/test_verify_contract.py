"""Which contract ``verify`` holds a model to by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfold import api
from onnxfold.cli import main
from onnxfold.passes.base import Contract


@pytest.fixture
def folded(tmp_path: Path, fixtures_dir: Path) -> Path:
    """A fold of qdq_net.onnx."""
    out = tmp_path / "folded.onnx"
    assert main(["fold", str(fixtures_dir / "qdq_net.onnx"), "-o", str(out)]) == 0
    return out


def test_a_fold_is_held_to_the_integer_contract(
    folded: Path, fixtures_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = fixtures_dir / "qdq_net.onnx"
    capsys.readouterr()
    assert main(["verify", str(original), str(folded)]) == 0
    said = capsys.readouterr().out
    assert "integer: passed" in said
    assert "the candidate is a fold of the reference" in said
    assert main(["verify", str(original), str(folded), "--contract", "integer"]) == 0
    assert "the candidate is a fold" not in capsys.readouterr().out


def test_others_are_not(folded: Path, fixtures_dir: Path) -> None:
    original, other = fixtures_dir / "qdq_net.onnx", fixtures_dir / "conv_net.onnx"
    assert api.verify(original, folded, budget=0.5).contract is Contract.APPROXIMATE
    assert api.verify(original, original).contract is Contract.REASSOCIATED
    assert api.verify(folded, folded).contract is Contract.REASSOCIATED
    assert api.verify(other, other).contract is Contract.REASSOCIATED
