from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.passes.errors import NotEquivalentError, UsageError
from onnxfold.passes.loss.plan import LossRequest
from onnxfold.runtime.compiler.loss_metric import LossMetric
from onnxfold.runtime.compiler.task import TaskResult, within_budget
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.session import Session
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify.budget import Budget

Parse = Callable[..., ir.Model]

CE = "sparse-softmax-cross-entropy"
NET = "g (float[N,3] x) => (float[N,3] p) { z = Neg(x)  p = Softmax(z) }"


def samples(count: int = 6) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    rng = np.random.default_rng(0)
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for _ in range(count):
        scores = np.exp(rng.normal(size=(1, 3))).astype(np.float32)
        label = rng.integers(0, 3, 1)
        found.append(({"p": scores / scores.sum()}, {"labels": label}))
    return found


def test_probabilities_stand_in_for_logits_that_are_no_output(parse: Parse) -> None:
    metric = LossMetric(parse(NET), LossRequest(CE))
    known = samples()
    wanted = [float(np.log(out["p"][0, int(data["labels"][0])])) for out, data in known]
    assert metric(known) == pytest.approx(sum(wanted) / len(wanted), rel=1e-6)
    assert metric.__name__ == f"minus {CE}"


def test_several_losses_are_weighed(parse: Parse) -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }")
    request = LossRequest("mse,l1", weight=(2.0, 0.5))
    metric = LossMetric(model, request)
    known = [({"y": np.full((1, 3), 3, np.float32)}, {"labels": np.ones((1, 3), np.float32)})]
    assert metric(known) == pytest.approx(-(2 * 4 + 0.5 * 2))


def test_scores_that_are_better_higher_stay_positive(parse: Parse) -> None:
    model = parse("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    metric = LossMetric(model, LossRequest("r-squared"))
    y = np.arange(5, dtype=np.float32)
    known = [({"y": y[i : i + 1] * 0.9}, {"labels": y[i : i + 1]}) for i in range(5)]
    assert metric(known) == pytest.approx(1 - 0.01 * 30 / 10, rel=1e-5), "of all samples at once"


def test_a_tensor_inside_is_refused(parse: Parse) -> None:
    with pytest.raises(UsageError, match="is about 'z', which is no output of the model"):
        LossMetric(parse(NET), LossRequest("mse", ("z",)))


def test_labels_are_asked_for(parse: Parse) -> None:
    metric = LossMetric(parse(NET), LossRequest(CE))
    outputs = {"p": np.full((1, 3), 1 / 3, np.float32)}
    with pytest.raises(UsageError, match=r"no array 'labels' \(int64\[N\]\)"):
        metric([(outputs, {"truth": np.array([0])})])
    with pytest.raises(UsageError, match=r"'labels' wants int64\[N\], got int64\[1, 1\]"):
        metric([(outputs, {"labels": np.array([[0]])})])


def labelled(model: ir.Model, labels: list[int]) -> FeedSource:
    x = np.random.default_rng(3).normal(size=(len(labels), 3)).astype(np.float32)
    return open_feeds({"x": x, "labels": np.array(labels)}, input_specs(model))


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_named_with_its_sample(parse: Parse, label: int) -> None:
    model = parse(NET)
    metric = LossMetric(model, LossRequest(CE))
    wanted = rf"sample 2: 'labels' holds {label}, and the classes are 0 to 2: correct the labels"
    with pytest.raises(UsageError, match=wanted):
        metric.check_labels(model, labelled(model, [0, 2, label, 1]))


def test_a_label_that_the_loss_leaves_out_is_fine(parse: Parse) -> None:
    model = parse(NET)
    ignoring = LossMetric(model, LossRequest(f"{CE}{{ignore-index=-1}}"))
    ignoring.check_labels(model, labelled(model, [0, 2, -1, 1]))
    LossMetric(model, LossRequest("mse")).check_labels(model, labelled(model, [7, 7]))


def test_compile_says_which_label_is_no_class(parse: Parse) -> None:
    model = parse(NET)
    with pytest.raises(UsageError, match="sample 1: 'labels' holds 9, and the classes are 0 to 2"):
        onnxfold.compile(model, data=labelled(model, [0, 9, 1, 1]), loss=CE)


@pytest.fixture
def data(fixtures_dir: Path) -> dict[str, Any]:
    images = np.random.default_rng(0).normal(size=(32, 3, 32, 32)).astype(np.float32)
    session = Session(fixtures_dir / "conv_net.onnx")
    answers = np.argmax(session.run({"image": images})["probabilities"], axis=1)
    return {"image": images, "labels": answers}


def test_compile_measures_by_it(fixtures_dir: Path, data: dict[str, Any]) -> None:
    path = fixtures_dir / "conv_net.onnx"
    outcome = onnxfold.compile(
        path, data=data, loss=CE, budget="loss=0.1", keep_slower=True, preset="fast"
    )
    task = outcome.report.to_json()["task"]
    assert task["metric"] == f"minus {CE}"
    assert task["result"] >= task["original"] - 0.1
    assert task["rows"] == 16


def test_compile_refuses_what_does_not_go_together(
    fixtures_dir: Path, data: dict[str, Any]
) -> None:
    path = fixtures_dir / "conv_net.onnx"
    with pytest.raises(UsageError, match="by a metric or by losses, not by both"):
        onnxfold.compile(path, data=data, loss=CE, metric="file.py:function")
    with pytest.raises(UsageError, match="a budget of loss needs to know which"):
        onnxfold.compile(path, data=data, budget="loss=0.1")


@pytest.mark.parametrize(("limit", "held"), [("0.1", True), ("0.04", False), ("0", False)])
def test_the_budget_is_in_the_units_of_the_loss(limit: str, held: bool) -> None:
    task = TaskResult(10, original=-2.0, candidate=-2.05, name="minus mse")
    assert within_budget(task, Budget.from_text(f"loss={limit}")) == held


@pytest.mark.slow
def test_compile_holds_the_budget_of_a_loss(fixtures_dir: Path, data: dict[str, Any]) -> None:
    path = fixtures_dir / "conv_net.onnx"
    with pytest.raises(NotEquivalentError, match=r"more is lost than the budget of -10"):
        onnxfold.compile(
            path, data=data, loss=CE, budget="loss=-10", keep_slower=True, preset="fast"
        )
