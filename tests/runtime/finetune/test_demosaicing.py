"""A demosaicing network with weights of 4 bits, tuned to within 0.5 dB of float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fixtures.demosaicnet import CALIBRATION, EVALUATION, crops, photograph, psnr
from fixtures.fetch import FetchError
from fixtures.vectors.demosaic_network import INPUT, OUTPUT, demosaic_network, sensors_of
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE
from onnxfold.passes.quantize.gptq import Gptq
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.set_constants import SetConstants
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.input_moments import measure_input_moments
from onnxfold.runtime.finetune.finetune import finetune_constants
from onnxfold.runtime.session import REFERENCE, Session

pytestmark = [pytest.mark.slow, pytest.mark.network]


def _decibels(model: ir.Model) -> float:
    session = Session(model, REFERENCE)
    cuts = [photograph(name)[:, 100:292, 100:292] for name in EVALUATION]
    found = [session.run({INPUT: sensors_of(each)})[OUTPUT][0] for each in cuts]
    return float(np.mean([psnr(cut, image) for cut, image in zip(cuts, found, strict=True)]))


def test_weights_of_four_bits_come_within_half_a_decibel_of_float() -> None:
    try:
        cuts = crops(CALIBRATION, count=24, side=64)
    except FetchError as error:
        pytest.skip(str(error))
    feeds = [{INPUT: sensors_of(each)} for each in cuts]
    network = ir.serde.deserialize_model(demosaic_network())
    model = Pipeline(parse_passes(f"{OPTIMIZE},infer-shapes")).run(network).model
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds, method="mse")
    moments = measure_input_moments(model, None, feeds)
    insert = InsertQdq(ranges, weights="s4", weight_ranges="hessian", moments=moments)
    quantized = Pipeline((insert,)).run(model.clone()).model
    rounded = Pipeline((Gptq(moments, centered=True),)).run(quantized.clone()).model
    tuned = finetune_constants(rounded, feeds, original=model)
    result = Pipeline((SetConstants(tuned.constants),)).run(rounded.clone()).model
    wanted = _decibels(model)
    assert wanted > 34.5
    assert _decibels(quantized) < wanted - 5
    assert _decibels(rounded) < wanted - 0.5
    assert _decibels(result) > wanted - 0.5
