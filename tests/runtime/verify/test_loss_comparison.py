from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.plan import LossRequest
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify.loss_comparison import LossDifference, compare_losses

Parse = Callable[..., ir.Model]

CE = "sparse-softmax-cross-entropy"
NET = """g (float[N,3] x) => (float[N,3] y) <float s = {SCALE}> { y = Mul(x, s) }"""
CLASSIFIER = """g (float[N,3] x) => (float[N,3] p) <float s = {SCALE}>
{ z = Mul(x, s)  p = Softmax(z) }"""


def net(parse: Parse, scale: float, text: str = NET) -> ir.Model:
    return parse(text.replace("SCALE", str(scale)))


def samples(model: ir.Model, count: int = 40, **extra: Any) -> FeedSource:
    x = np.random.default_rng(5).normal(size=(count, 3)).astype(np.float32)
    return open_feeds({"x": x, **extra}, input_specs(model))


def targets(count: int = 40) -> Array:
    return np.random.default_rng(6).normal(size=(count, 3)).astype(np.float32)


def mean_square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).mean())


def compared(
    parse: Parse, scale: float, loss: str = "mse", limit: float | None = None, **request: Any
) -> LossDifference:
    reference = net(parse, 0)
    feeds = samples(reference, labels=targets())
    asked = LossRequest(loss, **request)
    (found,) = compare_losses(reference, net(parse, scale), feeds, asked, limit)
    return found


def test_the_means_are_those_of_the_samples(parse: Parse) -> None:
    found = compared(parse, 0.5)
    x = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32)
    assert found.samples == 40
    assert found.reference == pytest.approx(mean_square(targets()), rel=1e-6)
    wanted = mean_square(0.5 * x - targets())
    assert found.candidate == pytest.approx(wanted, rel=1e-6)
    assert found.difference == pytest.approx(found.candidate - found.reference)
    assert found.low < found.difference < found.high
    assert (found.loss, found.on, found.better) == ("mse", ("y",), "lower")


def test_batches_and_single_samples_agree(parse: Parse) -> None:
    model = net(parse, 0)
    x = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32)
    arrays = {"x": x, "labels": targets()}
    request = LossRequest("mse")
    found: list[LossDifference] = []
    for size in (1, 8):
        feeds = open_feeds(arrays, input_specs(model), batch_size=size)
        found += compare_losses(model, net(parse, 0.5), feeds, request)
    one, eight = found
    assert one.samples == eight.samples == 40
    assert (one.low, one.high) == pytest.approx((eight.low, eight.high), rel=1e-5)


def test_a_model_is_as_good_as_itself(parse: Parse) -> None:
    found = compared(parse, 0, limit=0.0)
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.verdict.passed


def test_what_is_proven_worse_fails(parse: Parse) -> None:
    found = compared(parse, 2)
    assert found.low > 0
    assert not found.verdict.passed
    assert not found.verdict.inconclusive
    assert "mse: the candidate is worse by" in found.verdict.reasons[0]


def test_the_limit_is_in_the_units_of_the_loss(parse: Parse) -> None:
    worse = compared(parse, 2)
    assert compared(parse, 2, limit=worse.high + 1e-6).verdict.passed
    open_ = compared(parse, 2, limit=worse.difference).verdict
    assert open_.inconclusive
    assert "40 samples do not prove" in open_.reasons[0]
    assert compared(parse, 2, limit=worse.low - 1e-6).verdict.status == "failed"


def test_logits_are_taken_from_behind_the_softmax(parse: Parse) -> None:
    reference = net(parse, 1, CLASSIFIER)
    labels = np.random.default_rng(7).integers(0, 3, 40)
    feeds = samples(reference, labels=labels)
    other = net(parse, 1.1, CLASSIFIER)
    found = compare_losses(reference, other, feeds, LossRequest(f"{CE},{CE}{{from-probabilities}}"))
    logits, probabilities = found
    assert (logits.on, probabilities.on) == (("z",), ("p",))
    assert logits.difference == pytest.approx(probabilities.difference, rel=1e-3)


def test_higher_may_be_better(parse: Parse, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from onnxfold.passes.loss import loss\n"
        "@loss('agreement', better='higher')\n"
        "def agreement(graph, predictions):\n"
        "    targets = graph.data_input('targets', graph.dtype, predictions.shape)\n"
        "    return graph.reduce('ReduceMean', graph.op('Mul', predictions, targets))\n"
    )
    reference = net(parse, 0)
    x = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32)
    feeds = samples(reference, labels=x)
    (found,) = compare_losses(reference, net(parse, 2), feeds, LossRequest(f"{path}:agreement"))
    assert found.difference == pytest.approx(2 * mean_square(x), rel=1e-5)
    assert found.verdict.passed, "more is better"
    assert "jackknife" in found.method, "it has no reduction: all samples at once"
    (turned,) = compare_losses(net(parse, 2), reference, feeds, LossRequest(f"{path}:agreement"))
    assert turned.verdict.status == "failed"


def test_one_sample_proves_nothing(parse: Parse) -> None:
    reference = net(parse, 0)
    feeds = samples(reference, 1, labels=targets(1))
    (found,) = compare_losses(reference, net(parse, 2), feeds, LossRequest("mse"), 1e6)
    assert found.verdict.inconclusive


def test_labels_go_by_the_name_that_is_given(parse: Parse) -> None:
    reference = net(parse, 0)
    feeds = samples(reference, truth=targets())
    (found,) = compare_losses(reference, reference, feeds, LossRequest("mse", labels="truth"))
    assert found.difference == 0


@pytest.mark.parametrize(
    ("extra", "request_", "message"),
    [
        ({}, LossRequest("mse"), "sample 0: no array 'labels' (float32[N,3]) for the loss"),
        (
            {"labels": np.zeros((40, 2), np.float32)},
            LossRequest("mse"),
            "'labels' wants float32[N,3], got float32[1, 2]",
        ),
        (
            {"labels": np.zeros((40, 3), np.float32)},
            LossRequest(CE),
            "'labels' wants int64[N], got float32[1, 3]",
        ),
        ({}, LossRequest("mse", ("q",)), "the reference: the model has no output and no tensor"),
        ({}, LossRequest("msee"), "unknown loss 'msee'; did you mean 'mse'?"),
    ],
)
def test_bad_input_is_one_clear_line(
    parse: Parse, extra: dict[str, Any], request_: LossRequest, message: str
) -> None:
    reference = net(parse, 0)
    with pytest.raises(UsageError) as caught:
        compare_losses(reference, reference, samples(reference, **extra), request_)
    assert message in str(caught.value)


def test_a_candidate_without_the_tensor_is_named(parse: Parse) -> None:
    reference = net(parse, 1, CLASSIFIER)
    other = parse("g (float[N,3] x) => (float[N,3] p) { p = Softmax(x) }")
    feeds = samples(reference, labels=targets())
    with pytest.raises(UsageError, match="the candidate: the model has no output and no tensor"):
        compare_losses(reference, other, feeds, LossRequest("mse", ("z",)))


def test_negatives_from_the_batch_need_all_samples_at_once(parse: Parse) -> None:
    # reduction=none gives a loss a sample, but of one sample alone it is 0.
    text = "g (float[1,3] x) => (float[1,3] a, float[1,3] b) {{ a = Mul(x, s)  b = Neg(x) }}"
    models = [
        parse(text.replace("{{", f"<float s = {{{scale}}}> {{").replace("}}", "}"))
        for scale in (1, 1.5)
    ]
    request = LossRequest("all-pairs", ("a", "b"))
    (found,) = compare_losses(models[0], models[1], samples(models[0]), request)
    x: Array = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32)
    scores: Array = np.einsum("ik,jk->ij", x, -x)
    wanted: Array = np.log(np.exp(scores).sum(axis=1)) - scores.diagonal()
    assert found.reference == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert "jackknife" in found.method


def test_a_score_of_the_whole_set_is_one_of_the_whole_set(parse: Parse) -> None:
    reference = net(parse, 1)
    x = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32)
    feeds = samples(reference, labels=x)
    (found,) = compare_losses(reference, net(parse, 0.9), feeds, LossRequest("r-squared"))
    assert found.reference == 1
    spread = np.square(x - x.mean(axis=0)).sum(axis=0)
    wanted = 1 - np.square(0.1 * x).sum(axis=0) / spread
    assert found.candidate == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert found.verdict.status == "failed", "higher is better"


def test_a_candidate_that_is_not_a_number_fails(parse: Parse) -> None:
    found = compared(parse, float("nan"))
    assert not found.verdict.passed
    assert "that of the candidate is not a number" in found.verdict.reasons[0]
