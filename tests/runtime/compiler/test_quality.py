from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.compiler import quality as module
from onnxfold.runtime.compiler.clock import make_clock
from onnxfold.runtime.compiler.quality import Metric, QualityJudge
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.session import Session, SessionConfig
from onnxfold.runtime.specs import ModelLike, input_specs
from onnxfold.runtime.verify.budget import Budget


@pytest.mark.parametrize(("samples", "proven"), [(20, False), (300, True)])
def test_decisions_that_few_samples_cannot_prove_are_told_from_wrong_ones(
    samples: int, proven: bool, parse: Callable[..., ir.Model]
) -> None:
    model = parse("""g (float[N,3] x) => (float[N,3] y, bool[N] positive)
        <int64[1] axis = {1}, float zero = {0}>
        { y = Neg(x)  s = ReduceSum <keepdims = 0> (x, axis)  positive = Greater(s, zero) }""")
    data = {"x": np.random.default_rng(0).standard_normal((samples, 3)).astype(np.float32)}
    quality = QualityJudge(model, open_feeds(data, input_specs(model)), Budget())(model)
    assert quality.passed == proven
    assert ("too few samples" in quality.text) != proven


CLASSIFIER = "g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }"


@pytest.mark.parametrize(("label", "shown"), [(3, "3"), (-1, "-1"), (0.5, "0.5"), ("a", "'a'")])
def test_labels_that_are_no_classes_are_refused(
    label: object, shown: str, parse: Callable[..., ir.Model]
) -> None:
    model = parse(CLASSIFIER)
    data = {"x": np.ones((2, 3), np.float32), "labels": np.array([label, label])}
    with pytest.raises(UsageError, match=f"sample 0: 'labels' holds {shown}, which is no class"):
        QualityJudge(model, open_feeds(data, input_specs(model)), Budget())


def test_where_the_original_is_never_right_its_decisions_are_what_counts(
    parse: Callable[..., ir.Model],
) -> None:
    model, other = parse(CLASSIFIER), parse(CLASSIFIER.replace("Neg(x)", "Identity(x)"))
    numbers = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    data = {"x": numbers, "labels": np.argmax(numbers, axis=1)}
    budget = Budget(sqnr_db=None, cosine=None)
    judge = QualityJudge(model, open_feeds(data, input_specs(model)), budget)
    assert judge(model).passed
    assert not judge(other).passed


@pytest.mark.parametrize(("limit", "runs"), [(20.0, 1), (30.0, 2)])
def test_what_is_just_within_the_budget_is_run_without_optimizations_too(
    limit: float, runs: int, parse: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    near = parse("g (float[N,3] x) => (float[N,3] y) <float f = {1.03}> { y = Mul(x, f) }")
    judge = QualityJudge(
        model, open_feeds({"x": numbers}, input_specs(model)), Budget(limit, None, None)
    )
    loaded: list[bool] = []

    class Counted(Session):
        def __init__(self, loading: ModelLike, config: SessionConfig) -> None:
            loaded.append(config.optimize)
            super().__init__(loading, config)

    monkeypatch.setattr(module, "Session", Counted)
    quality = judge(near)
    assert quality.passed
    assert quality.score == pytest.approx(30.46, abs=0.01)
    assert loaded == [True, False][:runs]


BROKEN = """g (float[N,3] x) => (float[N,3] y) <int64[1] shape = {7}> { y = Reshape(x, shape) }"""


def test_what_does_not_run_is_far_off_and_is_not_timed(parse: Callable[..., ir.Model]) -> None:
    model, broken = parse(CLASSIFIER), parse(BROKEN)
    feeds = open_feeds({"x": np.ones((2, 3), np.float32)}, input_specs(model))
    quality = QualityJudge(model, feeds, Budget())(broken)
    assert (quality.passed, quality.score) == (False, -math.inf)
    assert quality.text.startswith("does not run: ")
    clock = make_clock(feeds, Silent())
    assert set(clock({"original": model, "broken": broken, "same": model})) == {"original", "same"}


Samples = Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]


def mean_sign(samples: Samples) -> float:
    """How often the first output has the sign that the sample names."""
    return float(np.mean([np.sign(out["y"][0, 0]) == arrays["sign"] for out, arrays in samples]))


@pytest.mark.parametrize(("scale", "passed"), [(1.02, True), (-1.0, False)])
def test_the_metric_of_the_user_judges(
    scale: float, passed: bool, parse: Callable[..., ir.Model]
) -> None:
    model = parse(CLASSIFIER)
    text = "g (float[N,3] x) => (float[N,3] y) <float c = {%s}> { y = Mul(x, c) }" % -scale
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 3)).astype(np.float32)} for _ in range(8)]
    samples = [{**feed, "sign": -np.sign(feed["x"][0, 0])} for feed in feeds]
    source = open_feeds(samples, input_specs(model))
    judge = QualityJudge(model, source, Budget(), mean_sign, "mean_sign")
    quality = judge(parse(text))
    assert quality.passed == passed
    assert f"mean_sign {1.0 if passed else 0.0:.4g} (was 1)" in quality.text


def not_a_number(samples: Samples) -> float:
    return math.nan * len(list(samples))


def failing(samples: Samples) -> float:
    return list(samples)[99][0]["y"][0, 0]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (not_a_number, "the metric is nan"),
        (failing, "the metric failed: IndexError"),
    ],
)
def test_a_metric_that_fails_is_a_usage_error(
    metric: Metric, message: str, parse: Callable[..., ir.Model]
) -> None:
    model = parse(CLASSIFIER)
    feeds = open_feeds({"x": np.ones((2, 3), np.float32)}, input_specs(model))
    with pytest.raises(UsageError, match=message):
        QualityJudge(model, feeds, Budget(), metric)


def test_the_noise_is_that_of_all_samples_whatever_the_metric_reads(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse(CLASSIFIER)
    feeds = open_feeds({"x": np.ones((5, 3), np.float32)}, input_specs(model))

    def first(samples: Samples) -> float:
        return float(next(iter(samples))[0]["y"][0, 0])

    comparer, task = QualityJudge(model, feeds, Budget(), first).compare(model)
    assert next(iter(comparer.metrics.values())).elements == 15
    assert task is not None
    assert (task.rows, task.original, task.candidate) == (5, -1.0, -1.0)
