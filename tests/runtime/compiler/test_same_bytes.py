"""What compile writes is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import onnxfold
from fixtures.compiled_nets import (
    IMAGES,
    LOOSE,
    compiled,
    images,
    net,
)
from onnxfold.passes.serialization import model_bytes
from onnxfold.runtime.loading import load_model


def test_the_same_model_and_data_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    outcome = compiled(net())
    first = model_bytes(outcome.model)
    assert outcome.plan is not None
    outcome.plan.save(tmp_path / "plan.json")
    again = onnxfold.compile(net(), data=IMAGES, plan=tmp_path / "plan.json", budget=LOOSE)
    assert model_bytes(again.model) == first
    (tmp_path / "model.onnx").write_bytes(net().SerializeToString())
    np.save(tmp_path / "x.npy", images())
    script = (
        "import sys, numpy, onnxfold; from pathlib import Path; folder = Path(sys.argv[1]);"
        "onnxfold.compile(folder / 'model.onnx', data={'x': numpy.load(folder / 'x.npy')},"
        f"preset='fast', keep_slower=True, budget='{LOOSE}').save(folder / sys.argv[2])"
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "there"],
        env={**os.environ, "PYTHONHASHSEED": other},
        check=True,
    )
    outcome.save(tmp_path / "here")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert model_bytes(load_model(tmp_path / "there")) == first
