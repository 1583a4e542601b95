"""export of PyTorch's and scikit-learn's own models, each in an environment with the framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxfold
from fixtures import demosaicnet
from fixtures.export_faults import wrong_constant
from fixtures.exporters import run_program, sklearn_python, torch_python
from fixtures.fetch import DownloadError, fetch
from fixtures.warm_front_ends import warm_front_ends
from onnxfold.cli import main
from onnxfold.passes.errors import InvalidModelError, NotEquivalentError, UsageError

pytestmark = [pytest.mark.network, pytest.mark.slow]

_TORCH = """
import sys, numpy as np, torch
from pathlib import Path
from torch import nn
folder = Path(sys.argv[1])
torch.manual_seed(0)

class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)
    def forward(self, x, *, shift):
        y, _ = self.lstm(x)
        return {"classes": self.head(y[:, -1]) + shift, "states": y}

class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.words, self.body = nn.Embedding(30, 16), nn.TransformerEncoder(layer, 2)
    def forward(self, ids):
        return self.body(self.words(ids)).mean(1)

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.conv, self.body = nn.Conv2d(3, 8, 1), nn.TransformerEncoder(layer, 1)
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 3)
    def forward(self, x):
        y = self.conv(x).flatten(2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1)
        return self.head(self.body(y).mean(1))

class Bad(nn.Module):
    def forward(self, x):
        return torch.linalg.eigh(x)[0]

save = lambda m, name, *a, **k: torch.export.save(torch.export.export(m, *a, **k), folder / name)
save(Lstm().train(), "lstm.pt2", (torch.randn(2, 5, 4),), {"shift": torch.randn(2)})
batch = {0: torch.export.Dim("batch")}
save(Transformer().eval(), "transformer.pt2", (torch.zeros(2, 7, dtype=torch.long),),
     dynamic_shapes=(batch,))
save(nn.Sequential(Bad()), "bad.pt2", (torch.eye(4),))
save(Attention().eval(), "attention.pt2", (torch.randn(1, 3, 4, 4),))
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
save(net.eval(), "net.pt2", (torch.randn(1, 3, 8, 8),))
torch.jit.save(torch.jit.script(net.train()), folder / "net.pt")
torch.save(net.state_dict(), folder / "weights.pt")
"""

_DEMOSAIC = """
import sys, numpy as np, torch
from torch import nn
from torch.nn import functional as F
weights = {name: torch.from_numpy(x) for name, x in np.load(sys.argv[1]).items()}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.ParameterDict({
            name.replace(".", "_"): nn.Parameter(x) for name, x in weights.items()
        })
    def conv(self, x, name, f=F.conv2d, **more):
        name = name.replace(".", "_")
        return f(x, self.w[name + "_weight"], self.w[name + "_bias"], **more)
    def forward(self, mosaic):
        x = self.conv(mosaic, "main_processor.pack_mosaic", stride=2)
        for i in range(1, 16):
            x = torch.relu(self.conv(x, f"main_processor.conv{i}"))
        x = self.conv(x[:, :64] * x[:, 64:128], "residual_predictor")
        up = self.conv(x, "upsampler", F.conv_transpose2d, stride=2, groups=3)
        x = torch.cat([mosaic[:, :, 30:-30, 30:-30], up], 1)
        return self.conv(torch.relu(self.conv(x, "fullres_processor.post_conv")),
                         "fullres_processor.output")

h, w = torch.export.Dim("h", min=40, max=2000), torch.export.Dim("w", min=40, max=2000)
program = torch.export.export(Net().eval(), (torch.rand(1, 3, 96, 100),),
                              dynamic_shapes=({2: 2 * h, 3: 2 * w},))
torch.export.save(program, sys.argv[2])
"""

_SKLEARN = """
import pickle, sys, warnings
from pathlib import Path
import numpy as np
warnings.simplefilter("ignore")
from lightgbm import LGBMClassifier
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
folder = Path(sys.argv[1])
x, y = load_digits(return_X_y=True)
a, b = load_diabetes(return_X_y=True)
pipeline = make_pipeline(StandardScaler(), PCA(20), LogisticRegression(max_iter=300)).fit(x, y)
models = {
    "digits": pipeline,
    "lightgbm": LGBMClassifier(n_estimators=20, verbose=-1).fit(x, y),
    "forest": RandomForestRegressor(10).fit(a, b),
    "named": LogisticRegression(max_iter=50).fit(x, np.array(list("abcdefghij"))[y]),
    "list": [1, 2],
    "unfitted": LogisticRegression(),
}
for name, model in models.items():
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(model))
np.savez(folder / "digits.npz", features=x.astype(np.float32))
"""


@pytest.fixture(scope="module", autouse=True)
def warm() -> Generator[None]:
    """Frameworks take seconds to load: once is enough."""
    with warm_front_ends(first_alone=True):
        yield


def _made(
    factory: pytest.TempPathFactory, python: Callable[[], Path], program: str
) -> tuple[Path, Path]:
    try:
        interpreter = python()
    except DownloadError as error:
        pytest.skip(str(error))
    folder = factory.mktemp("sources")
    run_program(interpreter, program, folder)
    return folder, interpreter


@pytest.fixture(scope="module")
def torch_sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return _made(tmp_path_factory, torch_python, _TORCH)


@pytest.fixture(scope="module")
def sklearn_sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return _made(tmp_path_factory, sklearn_python, _SKLEARN)


def _shapes(model: Any) -> dict[str, list[int | str]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return {
        value.name: [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
        for value in values
    }


def test_programs_with_several_outputs_and_keywords(torch_sources: tuple[Path, Path]) -> None:
    folder, python = torch_sources
    found = onnxfold.export(folder / "lstm.pt2", python=python)
    expected = {"x": [2, 5, 4], "shift": [2], "classes": [2, 2], "states": [2, 5, 6]}
    assert _shapes(found.model) == expected


def test_open_batches_stay_open(torch_sources: tuple[Path, Path]) -> None:
    folder, python = torch_sources
    found = onnxfold.export(folder / "transformer.pt2", python=python)
    assert _shapes(found.model) == {"ids": ["batch", 7], "output": ["batch", 16]}
    assert found.report.equivalence["samples"] == 5


def test_fixed_batches_are_opened(torch_sources: tuple[Path, Path]) -> None:
    folder, python = torch_sources
    found = onnxfold.export(folder / "net.pt2", python=python, dynamic_batch=True)
    assert _shapes(found.model) == {"input": ["batch", 3, 8, 8], "output": ["batch", 3]}


def test_attention_with_a_fixed_batch_is_opened(torch_sources: tuple[Path, Path]) -> None:
    folder, python = torch_sources
    found = onnxfold.export(folder / "attention.pt2", python=python, dynamic_batch=True)
    assert _shapes(found.model) == {"x": ["batch", 3, 4, 4], "output": ["batch", 3]}
    names = {value.name for node in found.model.graph for value in node.outputs}
    assert "body.layers.0.norm1/LayerNormalization" in names


def test_the_first_module_that_differs_is_named(torch_sources: tuple[Path, Path]) -> None:
    folder, python = torch_sources
    with wrong_constant("layers.0.linear1.bias"), pytest.raises(NotEquivalentError) as caught:
        onnxfold.export(folder / "attention.pt2", python=python)
    assert "first layer that differs is body.layers.0.linear1 (Linear)" in str(caught.value)


def test_older_opsets_take_the_legacy_exporter(torch_sources: tuple[Path, Path]) -> None:
    folder, python = torch_sources
    found = onnxfold.export(folder / "net.pt2", python=python, opset=15)
    assert found.model.opset_imports[""] == 15
    assert "legacy" in found.report.reasons[0]


def test_torchscript_is_told_its_shapes(torch_sources: tuple[Path, Path], tmp_path: Path) -> None:
    folder, python = torch_sources
    words = ["export", str(folder / "net.pt"), "-o", str(tmp_path / "o.onnx"), "--quiet"]
    words += ["--python", str(python)]
    assert main(words) == 2
    # Saved in training mode: with dropout on, no two runs would agree.
    assert main([*words, "--input", "input=1x3x8x8"]) == 0


def test_operators_without_a_counterpart_are_named(torch_sources: tuple[Path, Path]) -> None:
    folder, python = torch_sources
    with pytest.raises(InvalidModelError, match=r"linalg_eigh \(layer '0'\)"):
        onnxfold.export(folder / "bad.pt2", python=python)
    with pytest.raises(InvalidModelError, match="weights of PyTorch without the code"):
        onnxfold.export(folder / "weights.pt", python=python)
    wrong = [{"input": np.zeros((1, 3, 9, 9), np.float32)}]
    with pytest.raises(UsageError):
        onnxfold.export(folder / "net.pt2", data=wrong, python=python)


def test_demosaicnet_with_images_of_any_size(
    torch_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    _, python = torch_sources
    try:
        content = fetch(demosaicnet.WEIGHTS).read_bytes()
    except DownloadError as error:
        pytest.skip(str(error))
    np.savez(tmp_path / "w.npz", **demosaicnet.read_weights(content))  # type: ignore[arg-type]
    run_program(python, _DEMOSAIC, tmp_path / "w.npz", tmp_path / "net.pt2")
    rng = np.random.default_rng(0)
    sizes = ((96, 100), (128, 90))
    data = [{"mosaic": rng.random((1, 3, *size), dtype=np.float32)} for size in sizes]
    found = onnxfold.export(tmp_path / "net.pt2", data=data, python=python)
    assert found.report.equivalence["samples"] == 2
    assert all(isinstance(dim, str) for dim in _shapes(found.model)["mosaic"][2:])


@pytest.mark.parametrize("name", ["digits", "lightgbm", "forest", "named"])
def test_estimators(name: str, sklearn_sources: tuple[Path, Path]) -> None:
    folder, python = sklearn_sources
    data = None if name == "forest" else folder / "digits.npz"
    path = folder / f"{name}.pkl"
    found = onnxfold.export(path, data=data, trust_pickle=True, python=python)
    assert found.report.passed
    names = {"forest": ["prediction"]}.get(name, ["label", "probabilities"])
    assert [value.name for value in found.model.graph.outputs] == names


def test_the_first_step_that_differs_is_named(sklearn_sources: tuple[Path, Path]) -> None:
    folder, python = sklearn_sources
    with wrong_constant("transform_matrix"), pytest.raises(NotEquivalentError) as caught:
        onnxfold.export(folder / "digits.pkl", trust_pickle=True, python=python)
    assert "first layer that differs is pca (PCA)" in str(caught.value)


def test_wrong_pickles_are_one_line(
    sklearn_sources: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, python = sklearn_sources
    for name, trust, code in (("digits", [], 2), ("list", ["--trust-pickle"], 3)):
        words = ["export", str(folder / f"{name}.pkl"), "-o", str(tmp_path / "o"), "--quiet"]
        assert main([*words, "--python", str(python), *trust]) == code
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(InvalidModelError, match="was not fitted"):
        onnxfold.export(folder / "unfitted.pkl", trust_pickle=True, python=python)


def test_doctor_finds_the_frameworks(
    sklearn_sources: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, python = sklearn_sources
    assert main(["doctor", "sklearn", "--python", str(python), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["installed"]["sklearn"] == "1.9.1"
