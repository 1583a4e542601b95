"""500 steps of Adam in one ONNX graph, against the same steps in torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fixtures.training_networks import NETWORKS
from fixtures.vectors.training import EVERY, NETWORKS_TRAINED, RATE, STEPS, batches
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT
from onnxfold.runtime.training import Trainer

PASSES = f"add-gradient,lower-gradient,add-optimizer{{kind=adam learning-rate={RATE}}}"
FAST = ("mlp", "vae")
ONE_THREAD = dataclasses.replace(DEPLOYMENT, threads=1)


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in NETWORKS_TRAINED
    ],
)
def test_500_steps_end_at_torchs_weights(name: str) -> None:
    network = NETWORKS[name]()
    model = ir.from_proto(network.with_loss())
    for each in parse_passes(PASSES):
        each.run(model)
    trainer = Trainer(model, config=ONE_THREAD)
    losses = trainer.fit(batches(network), steps=STEPS)
    path = Path(__file__).parents[3] / "fixtures" / "vectors" / "training.npz"
    with np.load(path) as vectors:
        np.testing.assert_allclose(losses[::EVERY], vectors[f"{name}/losses"], rtol=1e-5)
        assert set(trainer.weights()) == set(network.weights())
        for weight, array in trainer.weights().items():
            wanted = vectors[f"{name}/{weight}"]
            np.testing.assert_allclose(array, wanted, rtol=0, atol=1e-5, err_msg=weight)
