"""What the documents show is run here, in a folder with a small model and data."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixtures_dir: Path) -> Path:
    """The folder a reader would work in."""
    for name in ("model.onnx", "exported.onnx"):
        shutil.copy(fixtures_dir / "conv_net.onnx", tmp_path / name)
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(64, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", image=samples)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_readme_run(workplace: Path) -> None:
    commands = [line[2:] for line in blocks("console")[0].splitlines() if line.startswith("$ ")]
    assert len(commands) == 2
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    # A picture too, where more than one candidate was measured: what is faster decides.
    written = {path.name for path in (workplace / "report").iterdir()}
    pictures = {"frontier.svg", "changes.svg"}
    assert written - pictures == {"plan.json", "report.html", "report.json", "report.md"}


@pytest.mark.slow
def test_the_python_of_the_readme_runs(workplace: Path) -> None:
    program = next(block for block in blocks("python") if "onnxfold.compile" in block)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert (workplace / "model.int8.onnx").exists()


def test_the_pytest_example_of_the_readme_passes(workplace: Path) -> None:
    program = next(block for block in blocks("python") if "assert_equivalent" in block)
    (workplace / "test_models.py").write_text(program)
    # The same about another model, in the same run: pytest takes seconds to start.
    assert "exported.onnx" in program
    (workplace / "test_wrong.py").write_text(program.replace("exported.onnx", "wrong.onnx"))
    shutil.copy(ROOT / "fixtures" / "mobile_net.onnx", workplace / "wrong.onnx")
    words = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PASSED test_models.py" in done.stdout
    assert "FAILED test_wrong.py" in done.stdout
    assert "not equivalent" in done.stdout


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_passes_is_up_to_date() -> None:
    generator = load(ROOT / "docs" / "generate.py")
    assert (ROOT / "docs" / "passes.md").read_text(encoding="utf-8") == generator.page()


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
