"""export's options: layers, open batches, unused inputs; with a stand-in for a framework."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

import onnxfold
from onnxfold.cli import main
from onnxfold.live_models import save_live
from onnxfold.passes.errors import InvalidModelError, NotEquivalentError, UsageError
from onnxfold.passes.serialization import model_bytes

_MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[1,2] x, float[1,2] lost) => (float[2] y)
<float w = {WEIGHT}, int64[1] flat = {2}> { val_1 = Mul (x, w)  val_2 = Neg (val_1)
  y = Reshape (val_2, flat) }
"""
_FRONT_END = """#!{python}
import json, shutil, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[-1])
request = json.loads((folder / "request.json").read_text())
if not request["outputs"]:
    shutil.copy({model!r}, folder / "model.onnx")
given = folder / "feeds.npz"
arrays = dict(np.load(given)) if given.is_file() else {{}}
count = max(len(arrays) // 2, 2)
x = [arrays.get(f"in/{{i}}/x", np.array([[i + 1, 4 * i + 3]], np.float32)) for i in range(count)]
samples, inside = {{}}, {{}}
for i, each in enumerate(x):
    samples |= {{f"in/{{i}}/x": each, f"in/{{i}}/lost": each, f"out/{{i}}/y": -2 * each[0]}}
    inside |= {{f"layer/{{i}}/val_1": 2 * each, f"layer/{{i}}/val_2": -2 * each}}
np.savez(folder / "samples.npz", **samples)
if "tensors" in request["options"]:
    assert request["options"]["tensors"] == ["val_1", "val_2", "y"]
    np.savez(folder / "layers.npz", **inside)
layers = {{"val_1": "scale (Scale)", "val_2": "sign (Sign)"}}
answer = {{"inputs": ["x", "lost"], "outputs": ["y"], "versions": {{}}, "layers": layers}}
(folder / "answer.json").write_text(json.dumps({{"answer": answer}}))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3")
    return path


def _interpreter(folder: Path, weight: float = 2, text: str = _MODEL) -> Path:
    """A stand-in for an interpreter with a framework, whose exporter writes ``weight`` for 2."""
    onnx.save(parser.parse_model(text.replace("WEIGHT", str(weight))), folder / "made.onnx")
    script = folder / "python"
    model = str(folder / "made.onnx")
    script.write_text(_FRONT_END.format(python=sys.executable, model=model))
    script.chmod(0o755)
    return script


def test_the_first_layer_that_differs_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotEquivalentError, match=r"first layer that differs is scale \(Scale\)"):
        onnxfold.export(source, python=_interpreter(tmp_path, weight=3))


def test_layers_are_shown_and_give_names(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = str(_interpreter(tmp_path))
    words = ["export", str(source), "-o", str(tmp_path / "o.onnx"), "--python", python, "--quiet"]
    assert main([*words, "--layers"]) == 0
    assert "scale (Scale)" in capsys.readouterr().out
    assert main([*words, "--layers", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    found = [(each["layer"], each["name"]) for each in report["equivalence"]["layers"]]
    assert found == [("scale (Scale)", "val_1"), ("sign (Sign)", "val_2"), ("y", "y")]
    model = onnx.load(tmp_path / "o.onnx")
    assert [node.output[0] for node in model.graph.node] == ["scale/Mul", "sign/Neg", "y"]
    assert [each.name for each in model.graph.input] == ["x", "lost"]


def test_unused_inputs_are_dropped_by_choice(source: Path, tmp_path: Path) -> None:
    python = str(_interpreter(tmp_path))
    words = ["export", str(source), "-o", str(tmp_path / "o.onnx"), "--python", python, "--quiet"]
    assert main([*words, "--drop-unused-inputs"]) == 0
    assert [each.name for each in onnx.load(tmp_path / "o.onnx").graph.input] == ["x"]


def test_exporting_twice_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first, second = (onnxfold.export(source, python=_interpreter(tmp_path)) for _ in range(2))
    assert model_bytes(first.model) == model_bytes(second.model)


def test_batches_are_opened_and_proven(source: Path, tmp_path: Path) -> None:
    found = onnxfold.export(source, python=_interpreter(tmp_path), dynamic_batch=True)
    shapes = [str(value.shape) for value in (*found.model.graph.inputs, *found.model.graph.outputs)]
    assert shapes == ["[batch,2]", "[batch,2]", "[2*batch]"]


def test_a_batch_that_cannot_be_opened(source: Path, tmp_path: Path) -> None:
    mixing = _MODEL.replace("Neg (val_1)", "CumSum (val_1, axis)").replace(
        "float w", "int64 axis = {0}, float w"
    )
    python = _interpreter(tmp_path, weight=-2, text=mixing)
    assert onnxfold.export(source, python=python).report.passed
    with pytest.raises(UsageError, match="CumSum 'val_2' sums over the samples"):
        onnxfold.export(source, python=python, dynamic_batch=True)


def test_broken_models_are_broken_for_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"PK\x03\x04nothing")
    out = ["-o", str(tmp_path / "o.onnx"), "--quiet"]
    for words in (["export"], ["optimize"], ["compile", "--data", str(tmp_path)]):
        assert main([words[0], str(path), *words[1:], *out]) == 3
        assert "broken archive" in capsys.readouterr().err


def test_what_a_file_is_not(source: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.tflite is of kind tflite, not keras"):
        onnxfold.export(source, kind="keras")


class _Layer:
    __module__ = "keras.layers"


class _Keras:
    """As much of a model of Keras as is asked for."""

    __module__ = "keras.models"
    inputs: tuple[str, ...] = ("x",)
    layer: type = _Layer

    def _flatten_layers(self) -> list[object]:
        return [self.layer()]

    def save(self, path: Path) -> None:
        path.write_bytes(b"PK")


def test_live_models_of_keras_are_saved(tmp_path: Path) -> None:
    found = save_live(_Keras(), tmp_path, None, dynamic_batch=False)
    assert (found.source.kind, found.name) == ("keras", "live _Keras")
    assert found.source.path.read_bytes() == b"PK"
    unbuilt = _Keras()
    unbuilt.inputs = ()
    with pytest.raises(UsageError, match="has no inputs yet"):
        save_live(unbuilt, tmp_path, None, dynamic_batch=False)


def test_live_models_that_cannot_be_saved(tmp_path: Path) -> None:
    class Broken(_Keras):
        __module__ = "mine"

        def save(self, path: Path) -> None:
            raise ValueError("nobody can\n  save this")

    with pytest.raises(InvalidModelError, match="live Broken cannot be saved: nobody can save"):
        save_live(Broken(), tmp_path, None, dynamic_batch=False)
