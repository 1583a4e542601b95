"""A wrong file is one line and the same exit code, whatever the command."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.cli import main

_COMMANDS = {
    "compile": "compile {model} -o {out} --data {data}",
    "export": "export {model} -o {out}",
    "fold": "fold {model} -o {out} --data {data}",
    "finetune": "finetune {model} --reference {good} -o {out} --data {data}",
    "finetune --reference": "finetune {good} --reference {model} -o {out} --data {data}",
    "optimize": "optimize {model} -o {out} --data {data}",
    "loss": "loss {model} -o {out} --loss l1 --data {data}",
    "verify": "verify {model} {good} --data {data}",
    "verify candidate": "verify {good} {model} --data {data}",
    "opt": "opt {model} -o {out} --passes remove-identity --data {data}",
    "opt --bisect": "opt {model} --bisect --passes remove-identity --data {data}",
    "explain": "explain {model} --data {data}",
}
_WRITERS = [name for name, words in _COMMANDS.items() if "{out}" in words]
_READERS = [name for name in _COMMANDS if name != "export" and "finetune" not in name]


@pytest.fixture
def places(parse: Callable[..., ir.Model], tmp_path: Path) -> dict[str, str]:
    """What commands are given when all is well."""
    model = parse(
        """
        g (float[N,4] x) => (float[N,3] y)
        <
            float[4,3] w = {0.1,0.2,0.3,0.4,0.5,0.6,-0.1,-0.2,-0.3,-0.4,-0.5,-0.6},
            float s = {0.02}, int8 z = {0}
        >
        {
            q = QuantizeLinear(x, s, z)
            r = DequantizeLinear(q, s, z)
            y = MatMul(r, w)
        }
        """
    )
    ir.save(model, tmp_path / "good.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((8, 4), np.float32))
    return {
        "model": str(tmp_path / "good.onnx"),
        "good": str(tmp_path / "good.onnx"),
        "data": str(tmp_path / "data.npz"),
        "out": str(tmp_path / "out.onnx"),
    }


def _wrong_models(folder: Path) -> dict[str, str]:
    (folder / "folder.onnx").mkdir()
    (folder / "loop.onnx").symlink_to(folder / "loop.onnx")
    (folder / "words.txt").write_text("hello")
    os.mkfifo(folder / "pipe.onnx")
    return {
        "none.onnx": "no such file",
        "none.keras": "no such file",
        "good.onnx/below.onnx": "cannot be read",
        "n" * 300: "cannot be read",
        "loop.onnx": "cannot be read",
        "folder.onnx": "folder",
        "pipe.onnx": "not a regular file",
        "words.txt": "ONNX",
    }


def _answer(
    capsys: pytest.CaptureFixture[str], command: str, places: dict[str, str]
) -> tuple[int, str]:
    words = [word.format(**places) for word in _COMMANDS[command].split()]
    code = main([*words, "--quiet"])
    (line,) = capsys.readouterr().err.splitlines()
    assert not Path(places["out"]).is_file()
    return code, line


@pytest.mark.parametrize("command", _COMMANDS)
def test_wrong_models(
    command: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, reason in _wrong_models(tmp_path).items():
        path = str(tmp_path / name)
        code, line = _answer(capsys, command, {**places, "model": path})
        assert (name, code) == (name, 3)
        assert path in line
        assert reason in line


@pytest.mark.parametrize("command", _READERS)
def test_wrong_data(
    command: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "words.npz").write_text("hello")
    names = ("none.npz", "none.py:feeds", "empty", "loop.npz", "folder.npz", "words.npz", "n" * 300)
    for name in names:
        code, line = _answer(capsys, command, {**places, "data": str(tmp_path / name)})
        assert (name, code) == (name, 2)
        assert name.partition(":")[0] in line


@pytest.mark.parametrize("command", _WRITERS)
def test_wrong_places(
    command: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("none/out.onnx", "good.onnx/out.onnx", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        path = str(tmp_path / name)
        code, line = _answer(capsys, command, {**places, "out": path})
        assert (name, code) == (name, 2)
        assert f"cannot write {path}" in line
