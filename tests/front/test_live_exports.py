"""export of live objects, in environments that have both their framework and onnxfold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxfold
from fixtures.exporters import run_program, sklearn_python, torch_python
from fixtures.fetch import DownloadError, FetchError
from onnxfold.runtime.session import Session

pytestmark = [pytest.mark.network, pytest.mark.slow]

_ESTIMATORS = """
import json, warnings
import numpy as np
warnings.simplefilter("ignore")
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import DMatrix, XGBClassifier, XGBRegressor, train
import onnxfold
from fixtures.warm_front_ends import warm_front_ends
from onnxfold.runtime.session import Session

digits, classes = load_digits(return_X_y=True)
patients, illness = load_diabetes(return_X_y=True)
digits, patients = digits.astype(np.float32), patients.astype(np.float32)
few = {"n_estimators": 15}
light = LGBMClassifier(verbose=-1, **few).fit(digits, classes)
extreme = XGBClassifier(**few).fit(digits, classes)
models = {
    "pipeline": make_pipeline(StandardScaler(), PCA(20), LogisticRegression(max_iter=300)),
    "scaled trees": make_pipeline(StandardScaler(), XGBClassifier(**few)),
    "LGBMClassifier": light,
    "XGBClassifier": extreme,
    "LGBMRegressor": LGBMRegressor(verbose=-1, **few).fit(patients, illness),
    "XGBRegressor": XGBRegressor(**few).fit(patients, illness),
    "Booster of LightGBM": light.booster_,
    "Booster of two": LGBMClassifier(verbose=-1, **few).fit(digits, classes % 2).booster_,
    "Booster of XGBoost": extreme.get_booster(),
    "softmax": train({"objective": "multi:softmax", "num_class": 10}, DMatrix(digits, classes), 5),
}
models["pipeline"].fit(digits, classes)
models["scaled trees"].fit(digits, classes)
found = {}
with warm_front_ends():
    for name, model in models.items():
        x = patients if name.endswith("Regressor") else digits
        outcome = onnxfold.export(model, data={"features": x})
        made = Session(outcome.model).run({"features": x})
        row = {"outputs": list(made), "passed": outcome.report.passed}
        if hasattr(model, "predict_proba"):
            row["wrong"] = int((made["label"] != model.predict(x)).sum())
            row["off"] = float(np.abs(made["probabilities"] - model.predict_proba(x)).max())
        elif name.endswith("Regressor"):
            wanted = model.predict(x)
            row["off"] = float(np.abs(made["prediction"][:, 0] - wanted).max() / wanted.max())
        found[name] = row
print(json.dumps(found))
"""

_MODULES = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import numpy as np
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
import onnxfold
from fixtures.warm_front_ends import warm_front_ends
from onnxfold.live_inputs import example_of
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import Session

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Dropout(),
        )
        self.head = nn.Linear(256, 10)
    def forward(self, x):
        return self.head(self.body(x).flatten(1))

torch.manual_seed(0)
x, batch = torch.randn(4, 3, 8, 8), ({0: torch.export.Dim("batch")},)
net = Net().train()
with warm_front_ends():
    live = onnxfold.export(net, example_inputs=x, dynamic_batch=True)
    is_training = net.training and net.body[5].training
    net.eval()
    prepared = prepare_pt2e(
        torch.export.export(net, (x,), dynamic_shapes=batch).module(),
        x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config()),
    )
    for _ in range(4):
        prepared(torch.randn(8, 3, 8, 8))
    integers = convert_pt2e(prepared)
    quantized = onnxfold.export(torch.export.export(integers, (x,), dynamic_shapes=batch))
    quantized.save(Path(sys.argv[1]) / "quantized.onnx")
    many = np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32)
    example = example_of(net, {"x": many, "labels": np.arange(8)})
words = []
for call in (onnxfold.optimize, lambda net: onnxfold.compile(net, data={"image": many})):
    try:
        call(net)
    except UsageError as error:
        words.append(str(error))
made = Session(live.model).run({"x": x.numpy()})["output"]
off = float(np.abs(made - net(x).detach().numpy()).max())
np.savez(Path(sys.argv[1]) / "x.npz", x=x.numpy(), output=integers(x).detach().numpy())
report = {"off": off, "is_training": is_training, "words": words}
report["example"] = {name: list(each.shape) for name, each in example.items()}
print(json.dumps(report))
"""


def _printed(python: Callable[[], Path], program: str, folder: Path) -> Any:
    """What a program printed as JSON."""
    try:
        interpreter = python()
    except DownloadError as error:
        pytest.skip(str(error))
    try:
        out = run_program(interpreter, program, folder, with_onnxfold=True)
    except FetchError as error:
        pytest.fail(str(error))
    return json.loads(out.splitlines()[-1])


def test_estimators_are_exported_exactly(tmp_path: Path) -> None:
    found = _printed(sklearn_python, _ESTIMATORS, tmp_path)
    assert all(row["passed"] for row in found.values())
    # Of all digits and patients, not only of those that the proof takes.
    assert [name for name, row in found.items() if row.get("wrong")] == []
    assert max(row.get("off", 0.0) for row in found.values()) < 2e-6
    for name in ("Booster of LightGBM", "Booster of two", "Booster of XGBoost"):
        assert found[name]["outputs"] == ["label", "probabilities"]
    assert found["softmax"]["outputs"] == ["label", "scores"]
    assert found["XGBRegressor"]["outputs"] == ["prediction"]


def test_modules_and_quantized_programs(tmp_path: Path) -> None:
    found = _printed(torch_python, _MODULES, tmp_path)
    assert found["off"] < 1e-6
    assert found["is_training"]
    assert found["example"] == {"x": [1, 3, 8, 8]}
    assert "pass example_inputs=" in found["words"][0]
    assert "takes 'x', and the data has 'image'" in found["words"][1]
    folded = onnxfold.fold(tmp_path / "quantized.onnx")
    assert folded.report.passed
    census = folded.report.to_json()["result"]["census"]
    assert census["ops"]["QLinearConv"] >= 1
    assert census["integer_share"] > 0.5
    with np.load(tmp_path / "x.npz") as sample:
        (made,) = Session(folded.model).run({"x": sample["x"]}).values()
        wanted = sample["output"]
    # Steps of a few thousandths: torch rounds some values the other way.
    assert np.abs(made - wanted).max() < 0.05 * np.abs(wanted).max()
