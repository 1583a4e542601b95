"""Calibration and insert-qdq together: quantized fixtures stay close to float in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.methods import METHODS
from onnxfold.runtime.session import REFERENCE, Session, SessionConfig

OPTIMIZED = SessionConfig("optimized", optimize=True, threads=1)
PREPARE = "upgrade-opset,lift-constants,infer-shapes,fold-constants,fold-batch-norm,infer-shapes"

Feed = dict[str, npt.NDArray[Any]]
RandomFeed = Callable[..., Feed]


def _sqnr(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    noise = float(np.square(reference - found).sum())
    return 10 * np.log10(float(np.square(reference).sum()) / max(noise, 1e-30))


def _outputs(model: ir.Model, feeds: Sequence[Feed], config: SessionConfig) -> npt.NDArray[Any]:
    session = Session(model, config)
    runs = [np.concatenate([v.ravel() for v in session.run(f).values()]) for f in feeds]
    return np.concatenate(runs)


def _prepared(fixtures_dir: Path, name: str) -> ir.Model:
    model = ir.load(fixtures_dir / f"{name}.onnx")
    return Pipeline(parse_passes(PREPARE)).run(model).model


@pytest.mark.parametrize("method", ["min-max", "percentile{percentile=99.99}"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activations", ["u8", "s8"])
@pytest.mark.parametrize("name", ["conv_net", "mobile_net", "transformer", "constant_nodes"])
def test_fixtures_keep_their_outputs(
    name: str,
    method: str,
    per_channel: bool,
    activations: Any,
    fixtures_dir: Path,
    random_feed: RandomFeed,
) -> None:
    model = _prepared(fixtures_dir, name)
    tensors = tensors_to_observe(model, PlacementOptions())
    data = [random_feed(model, seed) for seed in range(16)]
    ranges = calibrate(model, tensors, data, method=method)
    assert list(ranges) == sorted(tensors)
    quantized = model.clone()
    InsertQdq(ranges, activations, per_channel=per_channel).run(quantized)
    feeds = [random_feed(model, 100 + seed) for seed in range(4)]
    expected = _outputs(model, feeds, REFERENCE)
    for config in (REFERENCE, OPTIMIZED):
        assert _sqnr(expected, _outputs(quantized, feeds, config)) > 25, config.name


@pytest.mark.parametrize("method", METHODS)
def test_a_network_is_near_its_float_self_by_every_method(
    method: str, fixtures_dir: Path, random_feed: RandomFeed
) -> None:
    model = _prepared(fixtures_dir, "conv_net")
    tensors = tensors_to_observe(model, PlacementOptions())
    ranges = calibrate(model, tensors, [random_feed(model, s) for s in range(16)], method=method)
    feeds = [random_feed(model, 100 + seed) for seed in range(4)]
    expected = _outputs(model, feeds, REFERENCE)
    InsertQdq(ranges).run(model)
    assert _sqnr(expected, _outputs(model, feeds, REFERENCE)) > 22


def test_ranges_of_a_full_placement_serve_any_selection(
    fixtures_dir: Path, random_feed: RandomFeed
) -> None:
    model = _prepared(fixtures_dir, "mobile_net")
    tensors = tensors_to_observe(model, PlacementOptions())
    ranges = calibrate(model, tensors, [random_feed(model)])
    for skipped in [node.name or "" for node in model.graph if node.op_type in ("Add", "Pad")]:
        result = InsertQdq(ranges, skip=(skipped,)).run(model.clone())
        assert result.remarks == ()


def test_onnxruntime_turns_the_convolutions_into_integer_ones(
    fixtures_dir: Path, random_feed: RandomFeed, tmp_path: Path
) -> None:
    model = _prepared(fixtures_dir, "conv_net")
    tensors = tensors_to_observe(model, PlacementOptions())
    ranges = calibrate(model, tensors, [random_feed(model)])
    InsertQdq(ranges).run(model)
    path = tmp_path / "optimized.onnx"
    Session(model, OPTIMIZED, optimized_model_path=path)
    executed = [node.op_type for node in ir.load(path).graph]
    assert executed.count("QLinearConv") == 3
    assert not {"Conv", "FusedConv", "Relu"} & set(executed)
