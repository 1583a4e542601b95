"""--calibration and --calibration-cache: methods from end to end, and ranges that are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.cli import main
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.serialization import model_bytes
from onnxfold.runtime.compiler.options import Preset

Data = Mapping[str, Any]


class Stages:
    """Hears which stages a compilation has."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.names.append(name)

    def advance(self) -> None:
        pass

    @property
    def calibrations(self) -> list[str]:
        return [name for name in self.names if name.startswith("calibrating")]


@pytest.fixture
def net(parse: Any, tmp_path: Path) -> Path:
    model: ir.Model = parse(
        """
        g (float[N,4] x) => (float[N,3] y)
        <float[4,3] w = {0.1,0.2,0.3,0.4,0.5,0.6,-0.1,-0.2,-0.3,-0.4,-0.5,-0.6},
         float[3,3] v = {0.3,0.2,-0.3,0.4,0.5,0.6,-0.1,0.2,-0.3}>
        {
            h = MatMul(x, w)
            r = Relu(h)
            y = MatMul(r, v)
        }
        """
    )
    path = tmp_path / "net.onnx"
    ir.save(model, path)
    return path


@pytest.fixture
def data() -> Data:
    return {"x": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}


def compiled(net: Path, data: Data, method: str, **options: Any) -> onnxfold.Outcome:
    return onnxfold.compile(
        net,
        data=data,
        budget="sqnr=3,cosine=0.5",
        keep_slower=True,
        preset="fast",
        calibration=method,
        **options,
    )


def ranges_of(outcome: onnxfold.Outcome) -> Ranges:
    assert outcome.plan is not None
    return next(each.ranges for each in outcome.plan.passes if isinstance(each, InsertQdq))


@pytest.mark.parametrize("method", ["moving-average", "auto", "standard-deviation{sigmas=2.5}"])
def test_the_method_that_is_named_is_the_only_one(method: str, net: Path, data: Data) -> None:
    stages = Stages()
    outcome = compiled(net, data, method, progress=stages)
    assert stages.calibrations == [f"calibrating ({method})"]
    assert outcome.plan is not None
    rows = {row["candidate"]: row["outcome"] for row in outcome.plan.decisions}
    assert rows[f"all operators ({method})"] == "chosen: --keep-slower"
    calibrated = data["x"][::2]
    low, high = ranges_of(outcome)["x"]
    assert calibrated.min() <= low < high <= calibrated.max()
    if "sigmas" in method:
        assert high == pytest.approx(calibrated.mean() + 2.5 * calibrated.std(), abs=2e-3)


def test_layers_are_ranked_by_the_method_that_was_named(net: Path, data: Data) -> None:
    stages = Stages()
    onnxfold.compile(net, data=data, budget="sqnr=300", calibration="winsorized", progress=stages)
    assert "ranking the layers by damage" in stages.names
    assert set(stages.calibrations) == {"calibrating (winsorized)"}


@pytest.mark.parametrize(
    ("preset", "methods"),
    [
        ("fast", ["min-max"]),
        ("balanced", ["min-max", "percentile"]),
        ("best", ["min-max", "percentile", "mse", "entropy"]),
    ],
)
def test_the_search_tries_more_methods_the_more_accuracy_matters(
    preset: Preset, methods: list[str], net: Path, data: Data
) -> None:
    stages = Stages()
    onnxfold.compile(
        net, data=data, budget="sqnr=3", keep_slower=True, preset=preset, progress=stages
    )
    found = dict.fromkeys(stages.calibrations)
    assert list(found)[: len(methods)] == [f"calibrating ({each})" for each in methods]


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_kept_ranges_are_not_taken_again_and_change_nothing(
    suffix: str, net: Path, data: Data, tmp_path: Path
) -> None:
    cache = tmp_path / f"cache{suffix}"
    first, second, other = Stages(), Stages(), Stages()
    model = compiled(net, data, "mse", calibration_cache=cache, progress=first).model
    again = compiled(net, data, "mse", calibration_cache=cache, progress=second).model
    assert model_bytes(model) == model_bytes(again)
    compiled(net, data, "min-max", calibration_cache=cache, progress=other)
    calibrations = [each.calibrations for each in (first, second, other)]
    assert calibrations == [["calibrating (mse)"], [], ["calibrating (min-max)"]]


def test_what_the_file_says_is_what_is_used(net: Path, data: Data, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    compiled(net, data, "min-max", calibration_cache=cache)
    document = json.loads(cache.read_text())
    document["methods"]["min-max"]["x"] = [-7.0, 7.0]
    cache.write_text(json.dumps(document))
    outcome = compiled(net, data, "min-max", calibration_cache=cache)
    assert ranges_of(outcome)["x"] == (-7.0, 7.0)


def test_a_cache_of_other_data_is_refused(net: Path, data: Data, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    compiled(net, data, "min-max", calibration_cache=cache)
    with pytest.raises(UsageError, match="belongs to other data"):
        compiled(net, {"x": data["x"] * 2}, "min-max", calibration_cache=cache)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--calibration", "percentil"), "did you mean 'percentile'"),
        (("--calibration", "entropy{bins=7}"), "entropy has no option 'bins'"),
        (("--calibration-cache", "{net}"), "is the input"),
        (("--calibration-cache", "{folder}/none/cache.json"), "no folder"),
        (("--calibration-cache", "{folder}/other.json"), "not a calibration cache"),
    ],
)
def test_bad_options_are_one_clear_line(
    words: tuple[str, ...],
    message: str,
    net: Path,
    data: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples, out = tmp_path / "data.npz", tmp_path / "out.onnx"
    np.savez(samples, **data)
    (tmp_path / "other.json").write_text("{}")
    filled = [word.replace("{net}", str(net)).replace("{folder}", str(tmp_path)) for word in words]
    code = main(["compile", str(net), "-o", str(out), "--data", str(samples), *filled])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert not out.exists()


def test_the_command_line_keeps_ranges(net: Path, data: Data, tmp_path: Path) -> None:
    samples, out, cache = (tmp_path / each for each in ("data.npz", "out.onnx", "cache.json"))
    np.savez(samples, **data)
    words = ["compile", str(net), "-o", str(out), "--data", str(samples), "--keep-slower"]
    words += ["--budget", "sqnr=10,cosine=0.9", "--calibration", "winsorized"]
    assert main([*words, "--calibration-cache", str(cache), "--quiet"]) == 0
    assert list(json.loads(cache.read_text())["methods"]) == ["winsorized"]
