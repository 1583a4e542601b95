"""int8 TFLite models as tf2onnx writes them: each folds, for each target, and TFLite agrees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxfold
from fixtures.builder import Array
from fixtures.convert_tflite import convert, interpret
from fixtures.fetch import DownloadError, real_models
from fixtures.generate import GENERATORS, model_path
from onnxfold.passes.constants import constant_array
from onnxfold.passes.float_ops import float_ops_between
from onnxfold.passes.op_kinds import is_dequantize, op_key
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.compiler.options import Target
from onnxfold.runtime.generated_feeds import ValueRange, generate_feed, input_ranges
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.specs import input_specs

TARGETS: tuple[Target, ...] = ("ort", "standard", "integer", "qdq")
TINY = [name.removesuffix("_float") for name in GENERATORS if name.endswith("_float")]
REAL = [
    name
    for name, model in real_models().items()
    if model.member.endswith(".tflite") and not name.endswith("-float")
]
SAMPLES = 16
MOST_OFF = 1e-3
"""Share of outputs further than one step from TFLite's. Fixed-point rescaling may round another
way once in a thousand, in each of up to 79 layers."""


@pytest.fixture
def converted() -> Callable[[str], Path]:
    """``converted(name)``: a real model as ONNX; skips where it cannot be had."""
    return _converted


@pytest.fixture
def interpreted() -> Callable[[str, dict[str, Array]], dict[str, Array]]:
    """``interpreted(name, feeds)``: what TFLite itself returns; skips where it cannot be had."""
    return _interpreted


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_network_folds(name: str, target: Target) -> None:
    folds(model_path(name), target)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", REAL)
def test_a_real_network_folds(name: str, target: Target, converted: Callable[[str], Path]) -> None:
    folds(converted(name), target)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", REAL)
def test_where_the_converted_model_agrees_with_tflite_the_folded_one_does(
    name: str,
    converted: Callable[[str], Path],
    interpreted: Callable[[str, dict[str, Array]], dict[str, Array]],
) -> None:
    path = converted(name)
    model = ir.load(path)
    feeds = louder_and_louder(model)
    expected = interpreted(name, {key: np.stack([each[key] for each in feeds]) for key in feeds[0]})
    (output,) = model.graph.outputs
    step, raw = step_of(output), run(model, feeds)
    # Where tf2onnx's own graph is off, it is the conversion that is, and no fold can mend it.
    kernels = [each for each in expected if share_off(raw, expected[each], step) <= MOST_OFF]
    if not kernels:
        return
    for target in TARGETS:
        folded = run(folded_for(path, target).model, feeds)
        off = {each: share_off(folded, expected[each], step) for each in kernels}
        # One tie that falls to the other side in a deep network may move one value further.
        allowed = max(MOST_OFF, 1 / raw.size)
        assert all(share <= allowed for share in off.values()), (target, off)


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


def louder_and_louder(model: ir.Model) -> list[dict[str, Array]]:
    """Noise on what the inputs can hold; the last sample fills it, the first is nearly silent."""
    specs, ranges = input_specs(model), input_ranges(model)
    rng = np.random.default_rng(0)
    feeds: list[dict[str, Array]] = []
    for sample in range(1, SAMPLES + 1):
        share = sample / SAMPLES
        quieter = {
            name: ValueRange(whole.low * share, whole.high * share)
            for name, whole in ranges.items()
        }
        feeds.append(dict(generate_feed(specs, rng, ranges=quieter, dims={})))
    return feeds


def run(model: ir.Model, feeds: list[dict[str, Array]]) -> Array:
    """Its only output for each feed, one after another, optimizations off."""
    session = Session(model, REFERENCE)
    return np.stack([next(iter(session.run(feed).values())) for feed in feeds])


def share_off(found: Array, expected: Array, step: float) -> float:
    """The share of them that are more than one step apart."""
    steps = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / step
    return float(np.mean(steps > 1.5))


def step_of(output: ir.Value) -> float:
    """What one code of an output is worth in the numbers that it returns."""
    node = output.producer()
    while node is not None and node.op_type in ("Reshape", "Transpose"):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    scale = constant_array(node.inputs[1]) if node is not None and is_dequantize(node) else None
    return 1.0 if scale is None else float(scale.item())


def _converted(name: str) -> Path:
    try:
        return convert(name)
    except DownloadError as error:
        pytest.skip(str(error))


def _interpreted(name: str, feeds: dict[str, Array]) -> dict[str, Array]:
    try:
        return interpret(name, feeds)
    except DownloadError as error:
        pytest.skip(str(error))
