"""What the examples do when something is missing: one line, an exit code, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import demo
from examples.demo import Example, Sets
from examples.magika.run import EXAMPLE as MAGIKA
from examples.textline_orientation.run import EXAMPLE as TEXTLINE
from fixtures.fetch import FetchError, real_models


def _unavailable(name: str) -> Path:
    raise FetchError(f"{name}: cannot download toy 1.0 (is there a network?): no route")


def _no_files() -> Sets:
    raise ValueError("only 3 labelled files found in /usr/share: 512 are needed")


def test_without_network_one_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "fetch", _unavailable)
    assert demo.main(MAGIKA, ["--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "demo: magika: cannot download toy 1.0 (is there a network?): no route\n"
    assert not (tmp_path / "out").exists()


def test_too_few_files_are_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "fetch", Path)
    example = Example("toy", "a toy", "toy", _no_files)
    assert demo.main(example, ["--output", str(tmp_path / "out")]) == 2
    assert "only 3 labelled files" in capsys.readouterr().err


@pytest.mark.parametrize("example", [MAGIKA, TEXTLINE])
def test_examples_name_listed_models(example: Example) -> None:
    assert example.model in real_models()
