from __future__ import annotations

import doctest
import importlib.util
import re
import sys
from pathlib import Path

import pytest

import onnxfold.passes.loss
from onnxfold.passes.loss.declaration import Loss

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_losses_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("loss_page", DOCS / "loss_page.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert (DOCS / "losses.md").read_text(encoding="utf-8") == page.page()


def test_the_loss_of_ones_own_on_the_page_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "losses.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my_losses.py").write_text(program)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert isinstance(importlib.import_module("my_losses").hinge, Loss)


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(onnxfold.passes.loss).failed == 0
