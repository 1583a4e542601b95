"""``onnxfold loss``, ``inject_loss`` and ``verify --loss``, as users call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.cli import main
from onnxfold.passes.errors import NotEquivalentError, UsageError
from onnxfold.passes.loss import inject_loss
from onnxfold.passes.loss.record import read_record
from onnxfold.passes.loss.registry import LOSSES, registered_loss
from onnxfold.passes.serialization import model_bytes
from onnxfold.runtime.session import Session
from onnxfold.runtime.specs import load_ir

CE = "sparse-softmax-cross-entropy"
FIXTURES = Path(__file__).parents[2] / "fixtures"
QUANTIZED_ENDS = ("tiny_mobilenet.onnx", "tiny_resnet.onnx")
QUICK = ("control_flow.onnx", "conv_net.onnx", "local_functions.onnx", "tiny_dscnn.onnx")
CASES = [
    pytest.param(path.name, loss, marks=() if path.name in QUICK else pytest.mark.slow)
    for path in sorted(FIXTURES.glob("*.onnx"))
    for loss in ("mse", CE)
    if path.name not in QUANTIZED_ENDS
]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def net(fixtures_dir: Path) -> Path:
    return fixtures_dir / "conv_net.onnx"


@pytest.fixture
def labelled(net: Path, tmp_path: Path) -> Path:
    """Samples, and labels that the network mostly agrees with."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(48, 3, 32, 32)).astype(np.float32)
    answers = np.argmax(Session(net).run({"image": images})["probabilities"], axis=1)
    labels = np.where(rng.random(48) < 0.3, rng.integers(0, 10, 48), answers)
    path = tmp_path / "samples.npz"
    wanted = np.eye(10, dtype=np.float32)[labels]
    np.savez(path, image=images, labels=labels, wanted=wanted)
    return path


def test_ranks_hidden_by_arithmetic_on_shapes_are_found() -> None:
    # What PyTorch writes for unflatten: the number of leading dimensions is computed.
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[n,3] x) => (float[n,3] y)
        <float[3,6] w = {1,0,0,0,0,1, 0,1,0,0,1,0, 0,0,1,1,0,0},
         int64 one = {1}, int64[1] flat = {-1}, int64[1] zero = {0}, int64[2] parts = {2, 3}> {
          h = MatMul(x, w)
          all = Shape(h)
          end = Reshape(one, flat)
          lead = Slice(all, zero, end)
          shape = Concat<axis = 0>(lead, parts)
          split = Reshape(h, shape)
          y = Gather<axis = 1>(split, one)
          }"""
    )
    assert onnxfold.inject_loss(model, "mse", grad=True).report.to_json()["verdict"]["passed"]


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_losses_go_into_every_fixture_verified(
    fixtures_dir: Path, tmp_path: Path, name: str, loss: str
) -> None:
    path = fixtures_dir / name
    on = ("state",) if name == "control_flow.onnx" else ()
    outcome = onnxfold.inject_loss(path, loss, on=on)
    report = outcome.report.to_json()
    assert report["verdict"]["passed"]
    evidence = report["passes"][-1]["evidence"]
    assert {each["different"] for each in evidence["outputs"]} == {0}, "bit-identical"
    assert [each["name"] for each in evidence["added"]][-1] == "loss", "held against float64"
    stripped = onnxfold.run_passes(outcome.model, "strip-loss")
    prepared = onnxfold.run_passes(path, "upgrade-opset{to=13}", gates=False)
    stripped.save(tmp_path / "stripped.onnx")
    prepared.save(tmp_path / "before.onnx")
    wanted = (tmp_path / "before.onnx").read_bytes()
    assert (tmp_path / "stripped.onnx").read_bytes() == wanted


def test_the_command_says_what_it_added(
    net: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, folder = tmp_path / "out.onnx", tmp_path / "report"
    code, out, err = run(
        capsys,
        *("loss", net, "-o", target, "--loss", CE, "--loss", "mse{labels=wanted}"),
        *("--weight", 1, 0.5, "--data", labelled, "--report", folder),
    )
    assert (code, err) == (0, "")
    assert f"{CE} on 'gemm_1_out' (the logits before Softmax 'softmax_1' of 'probabilities')" in out
    assert "mse on 'probabilities' -> 'loss_mse', 0.5 of it" in out
    assert "classes 0 to 9" in out
    model = onnx.load(target)
    assert [each.name for each in model.graph.input] == ["image", "labels", "wanted"]
    assert [each.name for each in model.graph.output][-1] == "loss"
    assert "## Losses" in (folder / "report.md").read_text()


def test_json_lists_inputs_and_outputs(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "loss", net, "-o", tmp_path / "o.onnx", "--loss", CE, "--json")
    assert code == 0
    facts = json.loads(out)["loss"]
    assert facts["total"] == "loss"
    assert facts["losses"][0]["on"] == ["gemm_1_out"]
    assert facts["inputs"] == [
        {"name": "labels", "dtype": "int64", "shape": ["N"], "holds": "classes 0 to 9"}
    ]
    assert [each["name"] for each in facts["outputs"]] == [f"loss_{CE.replace('-', '_')}", "loss"]


def test_an_older_model_is_upgraded_and_that_is_said(
    fixtures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fixtures_dir / "constant_nodes.onnx"
    code, out, _ = run(capsys, "loss", path, "-o", tmp_path / "o.onnx", "--loss", CE)
    assert code == 0
    assert "opset 11 -> 13" in out


def test_a_training_graph_learns(fixtures_dir: Path) -> None:
    path = fixtures_dir / "tiny_autoencoder_float.onnx"
    outcome = onnxfold.inject_loss(
        path, "mse", labels="window", train="sgd{learning-rate=0.5}", trainable=r"const_\d+"
    )
    report = outcome.report.to_json()
    gates = {row["pass"].split("{")[0]: row["evidence"] for row in report["passes"]}
    assert gates["lower-gradient"]["verdict"]["status"] == "passed"
    assert report["loss"]["training"] is True
    session = Session(outcome.model)
    window = np.random.default_rng(0).normal(size=(8, 5, 16, 1)).astype(np.float32)
    state: dict[str, Any] = {}
    losses: list[float] = []
    for _ in range(5):
        found = session.run({"window": window, **state})
        losses.append(float(found["loss"]))
        state = {name[4:]: value for name, value in found.items() if name.startswith("new_state_")}
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_gradients_by_inputs(fixtures_dir: Path, tmp_path: Path) -> None:
    path = fixtures_dir / "tiny_autoencoder_float.onnx"
    outcome = onnxfold.inject_loss(path, "mse", grad="inputs")
    names = [value.name for value in outcome.model.graph.outputs]
    assert names == ["restored", "loss_mse", "loss", "grad_window"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--loss", "msee"), "unknown loss 'msee'; did you mean 'mse'?"),
        (("--loss", "mse", "--on", "probabilitys"), "did you mean 'probabilities'?"),
        (("--loss", "triplet"), "name them with on (--on), in this order"),
        (("--loss", "mse", "--grad", "nothing"), "no real tensor matches 'nothing'"),
        (("--loss", "mse", "--train", "adamm"), "'adamm' is not one of sgd, momentum, adam"),
        (("--loss", "mse", "--train", "adam,sgd"), "train is one optimizer"),
        (("--loss", "mse", "--trainable", "w"), "trainable is for train"),
        (("--loss", "mse", "--weight", "1", "2"), "2 weights for 1 losses"),
        (("--loss", "own.py"), "loss 'own.py' names no function: write own.py:FUNCTION"),
        ((), "--loss"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    net: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    target = tmp_path / "out.onnx"
    code, out, err = run(capsys, "loss", net, "-o", target, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not target.exists()


def test_labels_of_another_type_are_named(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((2, 3, 32, 32), np.float32)
    for labels, got in (
        (np.array([0.5, 1.5]), "float64[1]"),
        (np.array([[0], [1]]), "int64[1, 1]"),
    ):
        data = tmp_path / "samples.npz"
        np.savez(data, image=images, labels=labels)
        code, _, err = run(
            capsys, *("loss", net, "-o", tmp_path / "o.onnx", "--loss", CE, "--data", data)
        )
        assert code == 2
        assert f"input 'labels': wants int64[N], got {got}" in err
    assert not (tmp_path / "o.onnx").exists()


def test_labels_that_are_no_classes_are_named(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((4, 3, 32, 32), np.float32)
    data = tmp_path / "samples.npz"
    np.savez(data, image=images, labels=np.array([0, 1, 2, 10]))
    command = ("loss", net, "-o", tmp_path / "o.onnx", "--data", data)
    code, _, err = run(capsys, *command, "--loss", CE)
    assert code == 2
    assert "sample 3: 'labels' holds 10, and the classes are 0 to 9" in err
    assert not (tmp_path / "o.onnx").exists()
    code, _, err = run(capsys, "verify", net, net, "--data", data, "--loss", CE)
    assert code == 2
    assert f"sample 3: loss {CE} of the reference is not a number" in err
    assert run(capsys, *command, "--loss", f"{CE}{{ignore-index=10}}")[0] == 0


def test_data_without_labels_is_named(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "samples.npz"
    np.savez(data, image=np.zeros((4, 3, 32, 32), np.float32), answers=np.zeros(4, np.int64))
    command = ("loss", net, "-o", tmp_path / "o.onnx", "--data", data, "--loss", CE)
    code, _, err = run(capsys, *command)
    assert code == 2
    assert (
        "wants an array 'labels' of right answers beside the inputs, and there is 'answers'" in err
    )
    assert not (tmp_path / "o.onnx").exists()
    assert run(capsys, *command, "--labels", "answers")[0] == 0


def test_a_quantized_model_says_what_to_do(
    fixtures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fixtures_dir / "tiny_resnet.onnx"
    code, _, err = run(capsys, "loss", path, "-o", tmp_path / "o.onnx", "--loss", "mse")
    assert code == 2
    assert "output 'probabilities' is quantized to int8" in err
    assert "on=softmax_1_out" in err
    outcome = onnxfold.inject_loss(path, "mse", on="softmax_1_out")
    assert outcome.report.passed


def test_what_breaks_an_output_is_not_written(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = inject_loss.splice

    def damaging(part: Any, bindings: Any, prefix: str, rewriter: Any) -> Any:
        bias = rewriter.model.graph.initializers["head.bias"]
        bias.const_value = ir.tensor(bias.const_value.numpy() + 1)
        return real(part, bindings, prefix, rewriter)

    monkeypatch.setattr(inject_loss, "splice", damaging)
    with pytest.raises(NotEquivalentError, match=r"broke its contract \(additive\)"):
        onnxfold.inject_loss(net, "mse")


def test_verify_by_loss(
    net: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("verify", net, net, "--data", labelled, "--loss", CE)
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "in the units of the loss, 48 samples" in out
    code, out, _ = run(capsys, *words, "--json", "--budget", "loss=0")
    assert code == 0
    document = json.loads(out)
    (found,) = document["losses"]
    assert found["difference"] == found["low"] == found["high"] == 0
    assert found["verdict"]["status"] == "passed"
    assert document["budget"]["loss"] == 0
    code, out, _ = run(capsys, *words, "--format", "markdown")
    assert "## Losses" in out


def test_verify_by_loss_fails_a_worse_model(
    net: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = onnx.load(net)
    for each in worse.graph.initializer:
        if each.name == "head.weight":
            array = onnx.numpy_helper.to_array(each) * -1
            each.CopyFrom(onnx.numpy_helper.from_array(array, each.name))
    path = tmp_path / "worse.onnx"
    onnx.save(worse, path)
    words = ("verify", net, path, "--data", labelled, "--loss", CE)
    code, out, err = run(capsys, *words)
    assert code == 1
    assert f"{CE}: the candidate is worse by" in err
    assert "failed" in out
    assert run(capsys, *words, "--budget", "loss=1000")[0] == 0
    better = run(capsys, "verify", path, net, "--data", labelled, "--loss", CE)
    assert better[0] == 0, "the other way round it is an improvement"


def test_verify_by_loss_says_when_samples_are_too_few(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "one.npz"
    np.savez(data, image=np.zeros((1, 3, 32, 32), np.float32), labels=np.array([1]))
    words = ("verify", net, net, "--data", data, "--loss", CE, "--budget", "loss=0.1")
    code, _, err = run(capsys, *words)
    assert code == 5
    assert "1 samples do not prove <= 0.1" in err


def test_verify_by_loss_wants_labels_and_a_loss(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "verify", net, net, "--loss", CE)
    assert code == 2
    assert "no array 'labels'" in err
    code, _, err = run(capsys, "verify", net, net, "--budget", "loss=0.1")
    assert code == 2
    assert "a budget of loss needs to know which" in err


@pytest.mark.parametrize("loss", [None, 3, [1], ["mse", None]])
def test_what_is_no_name_is_no_loss(loss: Any, net: Path) -> None:
    with pytest.raises(UsageError, match="name losses, like 'mse'"):
        onnxfold.inject_loss(net, loss)


def test_a_model_with_a_loss_takes_no_second_one(net: Path) -> None:
    outcome = onnxfold.inject_loss(net, "mse")
    assert read_record(load_ir(outcome.model)) is not None
    with pytest.raises(UsageError, match="run strip-loss first, and give all losses at once"):
        onnxfold.inject_loss(outcome.model, CE)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_of_the_library_goes_in_and_out(
    name: str, parse: Callable[..., ir.Model]
) -> None:
    names = registered_loss(name).tensors
    shape = "N,12,12,3" if name in ("psnr", "ssim") else "N,6"
    outputs = ", ".join(f"float[{shape}] out{index}" for index in range(len(names)))
    body = " ".join(f"t{i} = Mul(x, s{i})  out{i} = Softmax(t{i})" for i in range(len(names)))
    scales = ", ".join(f"float s{index} = {{{index + 1}}}" for index in range(len(names)))
    model = parse(f"g (float[{shape}] x) => ({outputs}) <{scales}> {{ {body} }}", opset=18)
    before = model_bytes(model)
    outcome = onnxfold.inject_loss(model, name, on=[f"out{index}" for index in range(len(names))])
    evidence = outcome.report.to_json()["passes"][-1]["evidence"]
    assert evidence["verdict"]["status"] == "passed"
    assert [each["name"] for each in evidence["added"]][-1] == "loss", "held against float64"
    stripped = onnxfold.run_passes(outcome.model, "strip-loss", gates=False)
    assert model_bytes(stripped.model) == before
