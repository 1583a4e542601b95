"""Embeddings: which outputs are, how their ranking is judged, and what compile makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.parser import parse_model

from onnxfold.runtime.compiler.embeddings import embedding_output, embeddings, ranking_kept
from onnxfold.runtime.compiler.quality import QualityJudge
from onnxfold.runtime.compiler.task import TaskResult, within_budget
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify.budget import Budget

HEAD = '<ir_version: 10, opset_import: ["" : 21]> g '
LAYER = "a = MatMul(x, w)  s = Softmax(a)  n = LayerNormalization(s, g, b)"
POOL = f"{LAYER}  p = ReduceMean<keepdims=0>(n, axis)"


def _model(body: str, output: str = "float[N,8] y") -> ir.Model:
    rng = np.random.default_rng(0)
    proto = parse_model(
        f"{HEAD}(float[N,T,8] x) => ({output}) <float[8,8] w = {{{_numbers(rng, 64)}}}, "
        f"float[8] g = {{{_numbers(rng, 8)}}}, float[8] b = {{{_numbers(rng, 8)}}}, "
        f"int64[1] axis = {{1}}, float half = {{0.5}}> {{ {body} }}"
    )
    return ir.from_proto(proto)


def _numbers(rng: np.random.Generator, count: int) -> str:
    return ", ".join(f"{value:.6f}" for value in rng.normal(size=count))


@pytest.mark.parametrize(
    ("body", "output", "expected"),
    [
        (f"{POOL}  y = Mul(p, half)", "float[N,8] y", "y"),
        (f"{LAYER}  y = Identity(n)", "float[N,T,8] y", "y"),
        (f"{POOL}  y = Tanh(p)  z = Identity(n)", "float[N,T,8] z, float[N,8] y", "y"),
        (f"{POOL}  y = MatMul(p, w)", "float[N,8] y", ""),
        (f"{POOL}  l = MatMul(p, w)  y = Softmax(l)", "float[N,8] y", ""),
        (f"{POOL}  y = Mul(p, half)  z = MatMul(p, w)", "float[N,8] y, float[N,8] z", ""),
        ("a = MatMul(x, w)  y = ReduceMean<keepdims=0>(a, axis)", "float[N,8] y", ""),
    ],
    ids=["pooled", "tokens", "pooled before tokens", "classes", "shares", "mixed", "dense"],
)
def test_which_output_is_an_embedding(body: str, output: str, expected: str) -> None:
    assert embedding_output(_model(body, output)) == expected


def test_ranking_sees_order_only() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 16))
    assert ranking_kept([rows], [rows * 3.0]) == pytest.approx(1.0)
    noisy = rows + 0.05 * np.random.default_rng(1).normal(size=rows.shape)
    assert 0.98 < ranking_kept([rows[:20], rows[20:]], [noisy[:20], noisy[20:]]) < 1.0
    assert ranking_kept([rows], [np.full_like(rows, np.nan)]) == 0.0
    assert abs(ranking_kept([rows], [rows[::-1]])) < 0.2


def test_ranking_does_not_see_what_all_share() -> None:
    rng = np.random.default_rng(0)
    rows = 30.0 + rng.normal(size=(40, 16))
    noisy = rows + rng.normal(size=rows.shape)
    # 29 dB of signal over noise, none of it where the rows differ.
    assert ranking_kept([rows], [noisy]) < 0.8


def test_vectors_of_tokens_are_averaged() -> None:
    tokens = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_array_equal(embeddings(tokens), [[4, 5, 6, 7]])


def _judge(budget: Budget, feeds: int, labels: bool = False) -> TaskResult | None:
    model = _model(f"{POOL}  y = Mul(p, half)")
    rng = np.random.default_rng(1)
    data: list[dict[str, Any]] = [
        {"x": rng.normal(size=(1, 3, 8)).astype(np.float32)} for _ in range(feeds)
    ]
    if labels:
        data = [{**feed, "labels": np.array([0])} for feed in data]
    source = open_feeds(data, input_specs(model))
    return QualityJudge(model, source, budget).compare(model)[1]


def test_the_ranking_judges_where_nothing_else_does() -> None:
    task = _judge(Budget(), 20)
    assert task is not None
    assert (task.name, task.original, task.candidate) == ("ranking of similarities", 1.0, 1.0)
    for_labels = _judge(Budget(), 20, labels=True)
    assert for_labels is not None
    assert for_labels.name == "accuracy"
    assert _judge(Budget.from_text("sqnr=30"), 20) is None
    assert _judge(Budget(), 4) is None


@pytest.mark.parametrize(("kept", "passed"), [(0.9951, True), (0.9949, False)])
def test_half_of_the_rate_may_be_lost(kept: float, passed: bool) -> None:
    task = TaskResult(20, 1.0, kept, "ranking of similarities", 0.5)
    assert within_budget(task, Budget()) is passed
