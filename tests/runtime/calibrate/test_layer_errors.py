"""Measuring mean errors layer by layer: planted errors vanish, and the output gets nearer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE, TIDY, fold_pass
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.correct_bias import CorrectBias
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.linear_outputs import LinearOutput
from onnxfold.passes.quantize.output_errors import OutputErrors
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate import sweep as sweeping
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.counterparts import paired_layers
from onnxfold.runtime.calibrate.layer_errors import measure_output_errors
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.verify.cut import keep_outputs

Feed = dict[str, npt.NDArray[Any]]
Parse = Callable[..., ir.Model]
RandomFeed = Callable[..., Feed]


def _sqnr(original: ir.Model, candidate: ir.Model, feeds: list[Feed]) -> float:
    old, new = Session(original, REFERENCE), Session(candidate, REFERENCE)
    signal = noise = 0.0
    for feed in feeds:
        wanted, found = old.run(feed), new.run(feed)
        for name, values in wanted.items():
            signal += float(np.square(values.astype(np.float64)).sum())
            noise += float(np.square(values.astype(np.float64) - found[name]).sum())
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def _quantized(model: ir.Model, feeds: list[Feed], **options: Any) -> ir.Model:
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    return Pipeline((InsertQdq(ranges, **options),)).run(model.clone()).model


def _corrected(quantized: ir.Model, errors: OutputErrors) -> ir.Model:
    return Pipeline((CorrectBias(errors),)).run(quantized.clone()).model


def _largest(errors: OutputErrors) -> float:
    return max(abs(each) for errors in errors.values() for each in errors)


def _weighted(parse: Parse, body: str, rng: np.random.Generator) -> ir.Model:
    """A net of three 4 x 4 convolutions whose inputs are positive, so that means matter."""
    numbers = [", ".join(f"{v:.4f}" for v in rng.normal(size=16)) for _ in range(3)]
    model = parse(
        f"""g (float[N,4,8] x) => (float[N,4,8] y)
        <float[4,4,1] w1 = {{{numbers[0]}}}, float[4,4,1] w2 = {{{numbers[1]}}},
         float[4,4,1] w3 = {{{numbers[2]}}}, float[4] b = {{1, 0.5, 2, 0}}>
        {{ {body} }}"""
    )
    return Pipeline(parse_passes("infer-shapes")).run(model).model


CHAIN = "c1 = Conv(x, w1, b) r1 = Relu(c1) c2 = Conv(r1, w2) r2 = Relu(c2) y = Conv(r2, w3, b)"
SKIP = """c1 = Conv(x, w1) r1 = Relu(c1) c2 = Conv(r1, w2) e = Sigmoid(x)
a = Add(c2, x) f = Add(a, e) y = Conv(f, w3)"""
BESIDE = "c1 = Conv(x, w1) c2 = Conv(x, w2) a = Mul(c1, c2) y = Conv(a, w3)"


@pytest.mark.parametrize("body", [CHAIN, SKIP, BESIDE])
def test_planted_errors_vanish(body: str, parse: Parse) -> None:
    rng = np.random.default_rng(3)
    model = _weighted(parse, body, rng)
    feeds: list[Feed] = [{"x": rng.uniform(0, 2, (2, 4, 8)).astype(np.float32)} for _ in range(8)]
    quantized = _quantized(model, feeds)
    for name, value in quantized.graph.initializers.items():
        if name.startswith("w") and name.endswith("_quantized"):
            # Rounding everything down shifts the mean of every channel.
            assert value.const_value is not None
            codes = np.maximum(value.const_value.numpy().astype(np.int32) - 6, -127)
            value.const_value = ir.tensor(codes.astype(np.int8), name=name)
    errors = measure_output_errors(model, quantized, feeds)
    assert len(errors) == 3
    assert _largest(errors) > 0.05
    corrected = _corrected(quantized, errors)
    left = measure_output_errors(model, corrected, feeds)
    assert _largest(left) < _largest(errors) / 100
    assert _sqnr(model, corrected, feeds) > _sqnr(model, quantized, feeds) + 6


def test_later_layers_are_measured_behind_corrected_ones(parse: Parse) -> None:
    rng = np.random.default_rng(4)
    model = _weighted(parse, CHAIN, rng)
    feeds: list[Feed] = [{"x": rng.uniform(0, 2, (2, 4, 8)).astype(np.float32)} for _ in range(4)]
    quantized = _quantized(model, feeds)
    names = ["c1", "c2"]
    planted = OutputErrors({names[0]: (0.3, -0.2, 0.4, 0.1)})
    errors = measure_output_errors(model, _corrected(quantized, planted), feeds)
    clean = measure_output_errors(model, quantized, feeds)
    # The planted shift is the first layer's alone: it is gone before the second is measured.
    np.testing.assert_allclose(errors[names[1]], clean[names[1]], atol=0.02)
    np.testing.assert_allclose(
        np.array(errors[names[0]]) + planted[names[0]], clean[names[0]], atol=1e-3
    )


def _from_the_start(original: ir.Model, quantized: ir.Model, feeds: list[Feed]) -> OutputErrors:
    """What measuring means: each layer by a run of the whole model, the earlier ones corrected."""
    pairs = paired_layers(original, quantized)
    working, found = quantized.clone(), dict[str, tuple[float, ...]]()
    for pair in pairs:
        wanted = _means(original, pair.original, feeds)
        node = next(each for each in working.graph if node_name(each) == pair.name)
        output = LinearOutput.match(node)
        assert output is not None
        found[pair.name] = tuple((wanted - _means(working, output, feeds)).tolist())
        working = _corrected(working, OutputErrors({pair.name: found[pair.name]}))
    return OutputErrors(found)


def _means(model: ir.Model, output: LinearOutput, feeds: list[Feed]) -> npt.NDArray[np.float64]:
    name = output.value.name or ""
    session = Session(keep_outputs(model, [name]), REFERENCE)
    values = np.concatenate([np.asarray(session.run(feed)[name], np.float64) for feed in feeds])
    return np.moveaxis(values, output.axis, 0).reshape(output.channels, -1).mean(axis=1)


@pytest.mark.parametrize("body", [CHAIN, SKIP, BESIDE])
def test_one_sweep_equals_runs_from_the_start(body: str, parse: Parse) -> None:
    model = _weighted(parse, body, np.random.default_rng(11))
    _compare_with_runs_from_the_start(model, np.random.default_rng(12))


@pytest.mark.parametrize("name", ["conv_net", "transformer"])
def test_one_sweep_equals_runs_from_the_start_on_fixtures(name: str, fixtures_dir: Path) -> None:
    path = fixtures_dir / f"{name}.onnx"
    model = Pipeline(parse_passes(OPTIMIZE)).run(ir.load(path)).model
    _compare_with_runs_from_the_start(model, np.random.default_rng(13))


def _compare_with_runs_from_the_start(model: ir.Model, rng: np.random.Generator) -> None:
    value = model.graph.inputs[0]
    assert value.shape is not None
    shape = [each if isinstance(each, int) else 2 for each in value.shape]
    feeds: list[Feed] = [
        {value.name or "": rng.uniform(0, 2, shape).astype(np.float32)} for _ in range(3)
    ]
    quantized = _quantized(model, feeds)
    found = measure_output_errors(model, quantized, feeds)
    wanted = _from_the_start(model, quantized, feeds)
    assert list(found) == list(wanted)
    for layer, errors in wanted.items():
        np.testing.assert_allclose(found[layer], errors, atol=1e-6)


def test_cost_is_linear_in_depth(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []

    class Counting(Session):
        def __init__(self, model: Any, config: Any) -> None:
            loaded.append(len(list(model.graph)))
            super().__init__(model, config)

    monkeypatch.setattr(sweeping, "Session", Counting)
    rng = np.random.default_rng(14)
    layers = 12
    body = " ".join(f"x{i + 1} = Conv(x{i}, w1, b)" for i in range(layers))
    model = _weighted(parse, f"x0 = Relu(x) {body} y = Relu(x{layers})", rng)
    feeds: list[Feed] = [{"x": rng.uniform(0, 2, (1, 4, 8)).astype(np.float32)}]
    quantized = _quantized(model, feeds)
    measure_output_errors(model, quantized, feeds)
    assert len(loaded) == layers
    # Every node twice: where its wave is measured, and corrected in front of the next one.
    assert sum(loaded) <= 2 * len(list(quantized.graph))


GAINS = {"tiny_dscnn_float": 3.0, "tiny_mobilenet_float": 3.0, "tiny_demosaic_float": 0.5}


@pytest.mark.parametrize("name", GAINS)
def test_fixtures_gain(name: str, fixtures_dir: Path, random_feed: RandomFeed) -> None:
    model = Pipeline(parse_passes(OPTIMIZE)).run(ir.load(fixtures_dir / f"{name}.onnx")).model
    feeds = [random_feed(model, seed) for seed in range(8)]
    quantized = _quantized(model, feeds)
    corrected = _corrected(quantized, measure_output_errors(model, quantized, feeds))
    fresh = [random_feed(model, 100 + seed) for seed in range(4)]
    assert _sqnr(model, corrected, fresh) > _sqnr(model, quantized, fresh) + GAINS[name]


def test_matrices_with_and_without_a_bias(fixtures_dir: Path, random_feed: RandomFeed) -> None:
    path = fixtures_dir / "transformer.onnx"
    model = Pipeline(parse_passes(OPTIMIZE)).run(ir.load(path)).model
    feeds = [random_feed(model, seed, {"N": 1}) for seed in range(4)]
    quantized = _quantized(model, feeds)
    errors = measure_output_errors(model, quantized, feeds)
    left = measure_output_errors(model, _corrected(quantized, errors), feeds)
    assert _largest(left) < _largest(errors) / 100


def test_a_corrected_model_folds_to_no_more_operators(parse: Parse) -> None:
    model = _weighted(parse, CHAIN, np.random.default_rng(7))
    rng = np.random.default_rng(8)
    feeds: list[Feed] = [{"x": rng.uniform(0, 2, (2, 4, 8)).astype(np.float32)} for _ in range(4)]
    quantized = _quantized(model, feeds, weight_ranges="mse")
    corrected = _corrected(quantized, measure_output_errors(model, quantized, feeds))
    fold = parse_passes(f"{fold_pass('ort')},{TIDY}")
    plain = Pipeline(fold).run(quantized).model
    better = Pipeline(fold).run(corrected.clone()).model
    assert [node.op_type for node in better.graph] == [node.op_type for node in plain.graph]
    assert _sqnr(corrected, better, feeds) > 60


def test_feeds_are_read_once_and_the_result_repeats(parse: Parse) -> None:
    rng = np.random.default_rng(5)
    model = _weighted(parse, SKIP, rng)
    feeds: list[Feed] = [
        {"x": rng.uniform(0, 2, (size, 4, 8)).astype(np.float32)} for size in (1, 3, 2)
    ]
    quantized = _quantized(model, feeds)

    def once() -> Iterator[Feed]:
        yield from feeds

    assert measure_output_errors(model, quantized, once()) == measure_output_errors(
        model, quantized, feeds
    )


def test_no_data_and_other_models_are_refused(parse: Parse) -> None:
    model = _weighted(parse, CHAIN, np.random.default_rng(6))
    with pytest.raises(UsageError, match="empty"):
        measure_output_errors(model, model, [])
    other = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="no linear operator"):
        measure_output_errors(model, other, [])
