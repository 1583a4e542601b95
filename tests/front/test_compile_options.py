"""Options of compile: configuration files, presets, what is quantized, how fast it has to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.cli import main
from onnxfold.passes.errors import NotEquivalentError, UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import Mode
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.compiler.config import read_config
from onnxfold.runtime.session import REFERENCE, Session


@pytest.fixture
def net(fixtures_dir: Path) -> Path:
    return fixtures_dir / "conv_net.onnx"


@pytest.fixture
def data(net: Path) -> dict[str, Any]:
    spec = ir.load(net).graph.inputs[0]
    assert spec.shape is not None
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    rng = np.random.default_rng(5)
    return {spec.name or "": rng.normal(size=(16, *shape[1:])).astype(np.float32)}


def insertion(outcome: onnxfold.Outcome) -> InsertQdq:
    assert outcome.plan is not None
    return next(each for each in outcome.plan.passes if isinstance(each, InsertQdq))


def config(folder: Path, text: str) -> Path:
    path = folder / "compile.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_configuration_says_what_the_command_line_does_not(
    net: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    path = config(
        tmp_path,
        'preset = "fast"\ncalibration = "mse"\nkeep-slower = true\nper-channel = false\n'
        'op-types = ["Conv"]\nactivations = "s8"\n',
    )
    told = insertion(onnxfold.compile(net, data=data, config=path, budget="sqnr=5"))
    assert (told.per_channel, told.op_types, told.activations) == (False, ("Conv",), "s8")
    given = onnxfold.compile(net, data=data, config=path, budget="sqnr=5", activations="u8")
    assert insertion(given).activations == "u8"


def test_what_is_skipped_stays_in_float_and_the_report_says_why(
    net: Path, data: dict[str, Any]
) -> None:
    convolutions = [node_name(n) for n in ir.load(net).graph if n.op_type == "Conv"]
    options: dict[str, Any] = {"data": data, "budget": "sqnr=5", "keep_slower": True}
    outcome = onnxfold.compile(net, skip=convolutions[:1], **options)
    reasons = {each.node: each.reason for each in outcome.report.remarks}
    assert reasons[convolutions[0]] == "it is to stay in float (asked for)"
    assert sum(node.op_type == "Conv" for node in outcome.model.graph) == 1


def test_exceptions_by_regular_expression(net: Path, data: dict[str, Any], tmp_path: Path) -> None:
    path = config(
        tmp_path, 'keep-slower = true\n[[override]]\nop-type = "Conv"\nprecision = "float"\n'
    )
    outcome = onnxfold.compile(net, data=data, config=path, budget="sqnr=5")
    ops = [node.op_type for node in outcome.model.graph]
    assert ops.count("Conv") == sum(n.op_type == "Conv" for n in ir.load(net).graph)
    assert any("Q" in op for op in ops)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('presett = "fast"', "no option 'presett'; did you mean 'preset'"),
        ('preset = "fastest"', "preset: 'fastest' is not one of fast, balanced, best"),
        ("preset = 3", "preset is 3; expected text"),
        ("skip = [1]", "skip is [1]; expected a list of texts"),
        ("preset = ", "not TOML"),
        ('[[override]]\nprecision = "float"', "an entry needs one of op_type, name and regex"),
        ('[[override]]\nname = "nobody"\nprecision = "float"', "no node with name 'nobody'"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(
    net: Path, data: dict[str, Any], tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        onnxfold.compile(net, data=data, config=config(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_in_a_configuration_are_meant_from_its_folder(tmp_path: Path) -> None:
    found = read_config(config(tmp_path, 'calibration-cache = "ranges.npz"\nbudget = 0.05\n'))
    assert found == {"calibration_cache": str(tmp_path / "ranges.npz"), "budget": "0.05"}


def test_a_missing_configuration(net: Path, data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the configuration"):
        onnxfold.compile(net, data=data, config=tmp_path / "none.toml")


def test_more_speed_than_there_is(net: Path, data: dict[str, Any]) -> None:
    with pytest.raises(NotEquivalentError, match="times as fast as the original, not 1000 times"):
        onnxfold.compile(net, data=data, budget="faster=1000,sqnr=5", preset="fast")


def test_the_best_preset_measures_what_accuracy_costs(net: Path, data: dict[str, Any]) -> None:
    report = onnxfold.compile(net, data=data, budget="sqnr=5", preset="best").report.to_json()
    rungs = [row for row in report["decisions"] if row["gain_db"] is not None]
    assert rungs
    assert all(row["seconds"] > 0 for row in rungs)


def test_the_command_line_has_the_options(
    net: Path, data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", **data)
    out = tmp_path / "out.onnx"
    path = config(tmp_path, 'preset = "fast"\nkeep-slower = true\n')
    words = ["compile", str(net), "-o", str(out), "--data", str(tmp_path / "data.npz"), "--json"]
    code = main([*words, "--config", str(path), "--op-types", "Conv", "--budget", "sqnr=5"])
    assert code == 0
    passes = [row["pass"] for row in json.loads(capsys.readouterr().out)["passes"]]
    inserted = next(text for text in passes if text.startswith("insert-qdq"))
    assert "op-types=Conv" in inserted
    assert path.read_text(encoding="utf-8").startswith("preset")


@pytest.mark.parametrize("mode", ["dynamic-range", "full-integer", "16x8", "float16"])
def test_the_modes_of_tensorflow_lite(mode: Mode, tmp_path: Path, parse: Any) -> None:
    rng = np.random.default_rng(0)
    model: ir.Model = parse(
        "g (float[N,256] x) => (float[N,16] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"
    )
    for name, shape in (("w", (256, 128)), ("v", (128, 16))):
        array = rng.normal(size=shape).astype(np.float32)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, read in enumerate(node.inputs):
                if read is not None and read.name == name:
                    node.replace_input_with(index, value)
    path = tmp_path / "net.onnx"
    ir.save(model, path)
    data = {"x": rng.normal(size=(32, 256)).astype(np.float32)}
    outcome = onnxfold.compile(path, data=data, mode=mode, budget="sqnr=20")
    assert outcome.report.passed
    ops = {node.op_type for node in outcome.model.graph}
    types = [value.dtype for value in (*outcome.model.graph.inputs, *outcome.model.graph.outputs)]
    edge = ir.DataType.INT8 if mode == "full-integer" else ir.DataType.FLOAT
    assert types == [edge, edge]
    stored = {
        value.const_value.dtype
        for value in outcome.model.graph.initializers.values()
        if value.const_value is not None and value.const_value.size > 1000
    }
    float16 = mode == "float16"
    assert stored <= {ir.DataType.FLOAT16 if float16 else ir.DataType.INT8, ir.DataType.FLOAT}
    assert (stored == {ir.DataType.FLOAT16}) == float16
    assert ("DynamicQuantizeLinear" in ops) == (mode == "dynamic-range")
    if mode == "16x8":
        assert insertion(outcome).activations == "s16"


def test_the_metric_of_the_user_in_a_file(net: Path, data: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(
        "def mean_top(samples):\n"
        "    return sum(float(max(o.reshape(-1))) for out, _ in samples for o in out.values())\n"
    )
    path = config(tmp_path, 'metric = "score.py:mean_top"\nkeep-slower = true\npreset = "fast"\n')
    report = onnxfold.compile(net, data=data, config=path, budget="0.2").report.to_json()
    assert report["options"]["metric"] == "mean_top"
    assert report["task"]["metric"] == "mean_top"
    assert report["task"]["rows"] == 8
    assert report["task"]["result"] >= 0.8 * report["task"]["original"]


@pytest.mark.parametrize("text", ["score.py", "none.py:score"])
def test_a_metric_that_is_not_there(net: Path, data: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=r"file\.py:function|no such file"):
        onnxfold.compile(net, data=data, metric=text)


def test_weights_in_4_bits_by_one_option(tmp_path: Path, parse: Any) -> None:
    rng = np.random.default_rng(0)
    model: ir.Model = parse("g (float[N,64] x) => (float[N,32] y) { y = MatMul(x, w) }")
    array = rng.normal(size=(64, 32)).astype(np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    model.graph.register_initializer(value)
    model.graph[0].replace_input_with(1, value)
    path = tmp_path / "net.onnx"
    ir.save(model, path)
    mixing = rng.normal(size=(4, 64)) + 0.05 * rng.normal(size=(4, 64))
    data = {"x": (rng.normal(size=(64, 4)) @ mixing).astype(np.float32)}
    outcome = onnxfold.compile(path, data=data, mode="int4-weights", budget="sqnr=20")
    assert [node.op_type for node in outcome.model.graph] == ["MatMulNBits"]
    plain = Pipeline(parse_passes("quantize-weights{form=nbits}")).run(ir.load(path)).model
    reference = data["x"].astype(np.float64) @ array.astype(np.float64)
    errors = [
        float(np.square(Session(each, REFERENCE).run(data)["y"] - reference).sum())
        for each in (outcome.model, plain)
    ]
    # Inputs that go together: what one weight loses, others make good.
    assert errors[0] < errors[1] / 4
    plan = tmp_path / "net.plan.json"
    assert outcome.plan is not None
    outcome.plan.save(plan)
    again = onnxfold.compile(path, data=data, mode="int4-weights", budget="sqnr=20", plan=plan)
    assert ir.to_proto(again.model) == ir.to_proto(outcome.model)
