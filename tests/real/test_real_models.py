"""Real models out of published packages: the results run, hold their contract, decide alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

import onnxfold
from examples.magika import dataset as files
from examples.samples import Samples
from fixtures.real_inputs import NAMES, real_inputs
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

pytestmark = [pytest.mark.slow, pytest.mark.network]

SMALL = ["silero-vad", "romanizer-encoder", "romanizer-decoder"]
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
BATCH = 32
CALIBRATED = 96
"""Samples a model is compiled with; the demos take all there are, and more compensations."""
EVALUATED = 512
"""Samples it is judged on; half of what the demo takes."""
WIDEST_LOSS = 0.005


def runs_alike(original: Path, result: ir.Model, feed: dict[str, Any]) -> None:
    """The result runs with optimizations off and on, and returns what the original returns."""
    expected = Session(original, REFERENCE).run(feed)
    for config in (REFERENCE, DEPLOYMENT):
        outputs = Session(result, config).run(feed)
        assert [(name, each.shape, each.dtype) for name, each in outputs.items()] == [
            (name, each.shape, each.dtype) for name, each in expected.items()
        ]


@pytest.mark.parametrize("name", NAMES)
def test_optimize_keeps_within_its_contract(name: str, real_model: Callable[[str], Path]) -> None:
    path = real_model(name)
    feeds = real_inputs(name, 3)
    outcome = onnxfold.optimize(path, data=feeds)
    assert outcome.report.passed
    onnx.checker.check_model(ir.to_proto(outcome.model))
    assert count(outcome.model) <= count(ir.load(path))
    runs_alike(path, outcome.model, feeds[0])


@pytest.mark.parametrize("name", SMALL)
def test_compile_passes_or_leaves_the_model_in_float(
    name: str, real_model: Callable[[str], Path]
) -> None:
    path = real_model(name)
    feeds = real_inputs(name, 40)
    outcome = onnxfold.compile(path, data=feeds, calibration="min-max")
    assert outcome.report.passed, outcome.report.reasons
    runs_alike(path, outcome.model, feeds[0])


@pytest.mark.parametrize("name", ["inception_v1", "shufflenet", "squeezenet"])
def test_networks_of_the_model_zoo_without_their_weights_optimize(name: str) -> None:
    """Their weights are made up by ConstantOfShape: only the structure is real."""
    path = LIGHT / f"light_{name}.onnx"
    outcome = onnxfold.optimize(path)
    assert outcome.report.passed
    assert count(outcome.model) < count(ir.load(path))


def test_magika_compiled_keeps_its_accuracy(real_model: Callable[[str], Path]) -> None:
    spec = files.FeatureSpec.load(real_model("magika-config"))
    calibration, evaluation = files.build(spec, files.default_roots())
    path = real_model("magika")
    inputs, labels = calibration.inputs[:CALIBRATED], calibration.labels[:CALIBRATED]
    data = {calibration.input_name: inputs, "labels": labels}
    outcome = onnxfold.compile(path, data=data, preset="fast")
    assert outcome.report.passed, outcome.report.reasons
    onnx.checker.check_model(ir.to_proto(outcome.model))
    lost = accuracy(Session(path, DEPLOYMENT), evaluation) - accuracy(
        Session(outcome.model, DEPLOYMENT), evaluation
    )
    assert lost <= WIDEST_LOSS


def accuracy(session: Session, samples: Samples) -> float:
    right = 0
    for start in range(0, EVALUATED, BATCH):
        outputs = session.run({samples.input_name: samples.inputs[start : start + BATCH]})
        scores: npt.NDArray[Any] = next(iter(outputs.values()))
        right += int(np.sum(scores.argmax(axis=1) == samples.labels[start : start + BATCH]))
    return right / EVALUATED


def count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
