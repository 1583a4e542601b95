"""finetune: the command and the function, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.cli import main
from onnxfold.passes.errors import NotEquivalentError, UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.ranges import Ranges

Parse = Callable[..., ir.Model]

BODY = "h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b)"


@pytest.fixture(name="files")
def _files(parse: Parse, tmp_path: Path) -> Path:
    """A folder with a float model, a quantized one, and data."""
    random = np.random.default_rng(3)
    numbers = [random.normal(size=(6, 6)).astype(np.float32) for _ in "ab"]
    texts = [", ".join(map(str, each.reshape(-1))) for each in numbers]
    constants = f"float[6,6] a = {{{texts[0]}}}, float[6,6] b = {{{texts[1]}}}"
    model = parse(f"g (float[N,6] x) => (float[N,6] y) <{constants}> {{ {BODY} }}")
    ranges = Ranges({"x": (-3.0, 3.0), "h": (-9.0, 9.0), "r": (0.0, 9.0), "y": (-30.0, 30.0)})
    quantized = Pipeline((InsertQdq(ranges, weights="s4"),)).run(model.clone()).model
    ir.save(model, tmp_path / "float.onnx")
    ir.save(quantized, tmp_path / "quantized.onnx")
    x = random.normal(size=(64, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, labels=(x @ numbers[0]).argmax(axis=1))
    return tmp_path


def _words(files: Path, *more: str) -> list[str]:
    result = ["-o", str(files / "out.onnx"), "--steps", "40", "--quiet"]
    return ["finetune", str(files / "quantized.onnx"), *result, *more]


def test_the_command(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(files / "data.npz"), "--report", str(files / "report")]
    assert main(_words(files, "--reference", str(files / "float.onnx"), *data, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    before, after = report["decisions"]
    assert after["outcome"] == "kept"
    assert after["score_db"] == pytest.approx(before["score_db"] + after["gain_db"])
    assert after["gain_db"] > 0.5
    assert "on feeds that were not learned from" in report["verdict"]["reasons"][0]
    assert (files / "report" / "report.md").is_file()
    compared = [
        onnxfold.verify(files / "float.onnx", files / f"{name}.onnx", data=files / "data.npz")
        for name in ("quantized", "out")
    ]
    found = [each.to_json()["deployment"][0]["sqnr_db"] for each in compared]
    assert found[1] > found[0]


def test_a_loss_instead_of_a_reference(files: Path) -> None:
    outcome = onnxfold.finetune(
        files / "quantized.onnx",
        loss="sparse-softmax-cross-entropy",
        data=files / "labelled.npz",
        steps=40,
    )
    before, after = (each["score_db"] for each in outcome.report.decisions)
    assert after > before
    assert outcome.report.decisions[1]["quality"].startswith("loss ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs the float model to stay near to, or a loss"),
        (["--reference", "float.onnx"], "fine-tuning needs data"),
        (["--loss", "mse2", "--data", "data.npz"], "unknown loss 'mse2'"),
    ],
)
def test_what_is_missing(
    files: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    given = [str(files / word) if (files / word).is_file() else word for word in words]
    assert main(_words(files, *given)) == UsageError.exit_code
    assert message in capsys.readouterr().err
    assert not (files / "out.onnx").exists()


def test_a_float_model_has_nothing_to_tune(files: Path) -> None:
    with pytest.raises(UsageError, match="no weights or scales in Q/DQ pairs"):
        onnxfold.finetune(
            files / "float.onnx", reference=files / "float.onnx", data=files / "data.npz"
        )


def test_a_budget_that_is_missed(files: Path) -> None:
    with pytest.raises(NotEquivalentError, match="SQNR"):
        onnxfold.finetune(
            files / "quantized.onnx",
            reference=files / "float.onnx",
            data=files / "data.npz",
            budget="sqnr=60",
            steps=2,
        )


def test_the_reference_may_be_what_compile_fused(parse: Parse, tmp_path: Path) -> None:
    # compile makes one Gemm of MatMul and Add before it quantizes: names and operators differ.
    random = np.random.default_rng(3)
    texts = [", ".join(map(str, random.normal(size=36).astype(np.float32))) for _ in "ab"]
    constants = (
        f"float[6,6] a = {{{texts[0]}}}, float[6,6] b = {{{texts[1]}}}, "
        "float[6] c = {1, 2, 3, 4, 5, 6}"
    )
    body = "m = MatMul(x, a)  h = Add(m, c)  r = Relu(h)  y = MatMul(r, b)"
    model = parse(f"g (float[N,6] x) => (float[N,6] y) <{constants}> {{ {body} }}")
    x = random.normal(size=(64, 6)).astype(np.float32)
    made = onnxfold.compile(
        model.clone(), data={"x": x}, target="qdq", keep_slower=True, budget="sqnr=1"
    )
    assert "DequantizeLinear" in {node.op_type for node in made.model.graph}
    found = onnxfold.finetune(made.model, reference=model, data={"x": x}, steps=5)
    assert found.report.passed


def test_a_reference_of_other_inputs_is_an_error(files: Path, parse: Parse) -> None:
    other = parse("g (float[N,6] z) => (float[N,6] y) { y = Relu(z) }")
    with pytest.raises(UsageError, match="the reference takes an input 'z'"):
        onnxfold.finetune(files / "quantized.onnx", reference=other, data=files / "data.npz")


def test_labels_that_are_no_classes_are_an_error(files: Path) -> None:
    data = dict(np.load(files / "labelled.npz"))
    data["labels"][:] = 17
    with pytest.raises(UsageError, match="labels and data"):
        onnxfold.finetune(
            files / "quantized.onnx", loss="sparse-softmax-cross-entropy", data=data, steps=2
        )
