"""int8 TFLite models as they are exported: each folds, for each target, and TFLite agrees."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxfold
from fixtures.builder import Array
from fixtures.convert_tflite import export_all, interpret_all, source
from fixtures.fetch import DownloadError, real_models
from fixtures.generate import GENERATORS, model_path
from fixtures.tflite_codes import answers, share_off, step_of
from fixtures.tinyml_inputs import louder_and_louder, tinyml_feeds
from onnxfold.passes.float_ops import float_ops_between
from onnxfold.passes.op_kinds import op_key
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.compiler.options import Target
from onnxfold.runtime.export.front_end import Exported, read_exported
from onnxfold.runtime.export.proven import Proof, Wanted, prove_export
from onnxfold.runtime.export.workers.protocol import MODEL, Feed, Request
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

TARGETS: tuple[Target, ...] = ("ort", "standard", "integer", "qdq")
FIRST: tuple[Target, ...] = ("ort", "standard")
TASKS = [
    f"silabs-{task}"
    for task in (
        *("image-classification", "keyword-spotting", "visual-wake-words", "anomaly-detection"),
        *("keyword-spotting-mobilenetv2", "fingerprint-signature-generator"),
    )
]
"""Folded for all targets; the others, which are like them, for the first two."""
TINY = [name.removesuffix("_float") for name in GENERATORS if name.endswith("_float")]
REAL = [
    name
    for name, model in real_models().items()
    if model.member.endswith(".tflite") and not name.endswith("-float")
]
FLOAT = [name for name in real_models() if name.startswith("silabs-") and name.endswith("-float")]
MOST_OFF = 1e-3
"""Share of outputs further than one step from those of TFLite's default kernels."""


@pytest.fixture(scope="module")
def exported() -> Mapping[str, Path]:
    """What the product's front end answered for each model, from one process for all of them."""
    try:
        return export_all([*REAL, *FLOAT])
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def interpreted(exported: Mapping[str, Path]) -> Mapping[str, Exported]:
    """What TensorFlow Lite computes of inputs of each model's kind and of noise, likewise."""
    try:
        return interpret_all(
            {name: tinyml_feeds(name, ir.load(exported[name] / MODEL)) for name in REAL}
        )
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_network_folds(name: str, target: Target) -> None:
    folds(model_path(name), target)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "target"),
    [(name, target) for name in REAL for target in (TARGETS if name in TASKS else FIRST)],
)
def test_a_real_network_folds(name: str, target: Target, exported: Mapping[str, Path]) -> None:
    folds(exported[name] / MODEL, target)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", [*REAL, *FLOAT])
def test_each_agrees_with_its_framework(name: str, exported: Mapping[str, Path]) -> None:
    found = source(name)
    answered = read_exported(found, exported[name])
    assert answered.model is not None
    request = Request(found.kind, str(found.path), 18)
    run, document = prove_export(
        Proof(found, request, answered), answered.model, Wanted(), Silent()
    )
    assert document["samples"] == 4
    onnx.checker.check_model(ir.to_proto(run.model), full_check=True)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", REAL)
def test_the_folded_model_returns_the_codes_of_tflite(
    name: str, exported: Mapping[str, Path], interpreted: Mapping[str, Exported]
) -> None:
    path, known = exported[name] / MODEL, interpreted[name]
    model, feeds = ir.load(path), list(known.feeds)
    (output,) = model.graph.outputs
    step = step_of(output)
    expected = np.stack([each[str(output.name)] for each in known.expected])
    targets = TARGETS if name in TASKS else FIRST
    folded = {target: run(folded_for(path, target).model, feeds) for target in targets}
    off = {
        target: share_off(found, expected, step)
        for target, found in {"exported": run(model, feeds), **folded}.items()
    }
    # TFLite's kernels differ where a sum is all but a half; so may others, but far less often.
    plain = np.stack([each[str(output.name)] for each in known.others])
    allowed = max(MOST_OFF, 1 / expected.size, share_off(plain, expected, step) / 4)
    assert all(share <= allowed for share in off.values()), off


@functools.cache
def folded_for(path: Path, target: Target) -> onnxfold.Outcome:
    """The model folded, once for all tests; they only read it."""
    return onnxfold.fold(path, target=target)


def folds(path: Path, target: Target) -> None:
    """It folds, keeps the INTEGER contract, is made of what the target has, and runs."""
    outcome = folded_for(path, target)
    assert outcome.report.passed, outcome.report.reasons
    assert outcome.report.equivalence["contract"] == "integer"
    onnx.checker.check_model(ir.to_proto(outcome.model), full_check=True)
    assert_made_of(outcome.model, target)
    feed = louder_and_louder(ir.load(path))[-1]
    expected = Session(path, REFERENCE).run(feed)
    for name, array in Session(outcome.model, DEPLOYMENT).run(feed).items():
        assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype)


def assert_made_of(model: ir.Model, target: Target) -> None:
    """No operator of onnxruntime's own but for it; nothing in float where there may not be."""
    if target != "ort":
        assert {node.domain for node in model.graph} == {""}
    if target not in ("standard", "integer"):
        return
    (typed,) = (each.run(model.clone()).model for each in parse_passes("infer-shapes"))
    left = float_ops_between(typed, strict=target == "integer")
    assert [op_key(node) for node in left] == []


def run(model: ir.Model, feeds: list[Feed]) -> Array:
    """Its only output for each feed, one after another, optimizations off."""
    return answers(Session(model, REFERENCE), feeds)
