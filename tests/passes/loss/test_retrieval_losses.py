"""Losses on pairs and triplets of embeddings: batches that are too small, rows of zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxfold.passes.errors import UsageError

Array = npt.NDArray[Any]
Run = Callable[..., Array]
Build = Callable[..., Any]
NEGATIVES = "cosine-distance-with-negative-samples"
SOFTMAX = "cosine-softmax-with-negative-samples"

ROWS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
OTHERS = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)


def test_shift_is_where_the_negatives_begin(run_variant: Run) -> None:
    found = run_variant(f"{NEGATIVES}{{shift=2 negatives=2}}", ROWS, OTHERS, tensors=2)
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (ROWS, OTHERS))
    expected = [[x[j] @ y[(j + step) % 4] for step in (0, 2, 3)] for j in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("text", [NEGATIVES, SOFTMAX])
def test_a_positive_is_never_its_own_negative(build: Build, run: Run, text: str) -> None:
    message = r"shift 2 \+ negatives 3 - 1 must be less than the batch of 4"
    with pytest.raises(UsageError, match=message):
        build(f"{text}{{shift=2 negatives=3}}", [ROWS, OTHERS], tensors=2)
    with pytest.raises(UsageError, match="shift is 0 and negatives 1; both must be at least 1"):
        build(f"{text}{{shift=0}}", [ROWS, OTHERS], tensors=2)
    too_many = run(f"{text}{{shift=2 negatives=3}}", ROWS, OTHERS, tensors=2, dynamic=True)
    assert np.isnan(too_many).all()
    enough = run(f"{text}{{shift=2 negatives=2}}", ROWS, OTHERS, tensors=2, dynamic=True)
    assert np.isfinite(enough).all()


def test_a_batch_of_one(run: Run) -> None:
    one = ROWS[:1]
    assert np.isnan(run(NEGATIVES, one, one, tensors=2, dynamic=True)).all()
    assert run("all-pairs", one, one, tensors=2) == 0


def test_the_margin_of_cosines(run: Run) -> None:
    options = "shift=1 negatives=3"
    cosines = run(f"{NEGATIVES}{{{options}}}", ROWS, OTHERS, tensors=2)
    margin = run(f"{NEGATIVES}{{{options} output=margin}}", ROWS, OTHERS, tensors=2)
    expected = cosines[:, 0].mean() - cosines[:, 1:].mean()
    np.testing.assert_allclose(margin, expected, rtol=1e-5)


def test_rows_of_zeros_are_like_nothing(run_variant: Run) -> None:
    zeros = np.zeros_like(ROWS)
    assert not run_variant(NEGATIVES, zeros, ROWS, tensors=2).any()
    found = run_variant("all-pairs{similarity=cosine}", zeros, ROWS, tensors=2)
    np.testing.assert_allclose(found, np.log(4), rtol=1e-6)


def test_extra_candidates_are_negatives(run_variant: Run) -> None:
    found = run_variant("all-pairs{reduction=none}", ROWS[:2], OTHERS, tensors=2)
    scores: Array = np.einsum("id,jd->ij", ROWS[:2], OTHERS, dtype=np.float64)
    expected = np.log(np.exp(scores).sum(1)) - np.diag(scores)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_similarities_of_a_thousand(run_variant: Run) -> None:
    eye = np.eye(3, dtype=np.float32) * 1000
    assert run_variant("all-pairs", eye, eye, tensors=2) == 0
    wrong = run_variant("all-pairs{over=both}", eye, -eye, tensors=2)
    np.testing.assert_allclose(wrong, 1e6 + np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ("all-pairs", [(4, 3), (4, 2)], "queries have 3 numbers each, candidates 2"),
        ("all-pairs", [(4, 3), (3, 3)], "4 queries have only 3 candidates"),
        ("all-pairs", [(4, 3, 1), (4, 3)], "queries must have 2 dimensions, not 3"),
        ("all-pairs{temperature=-1}", [(4, 3), (4, 3)], "temperature is -1.0"),
        (NEGATIVES, [(4, 3), (4, 2)], "queries and documents must have the same shape"),
        (f"{SOFTMAX}{{gamma=0}}", [(4, 3), (4, 3)], "gamma is 0.0; it must be positive"),
        ("triplet", [(4, 3), (4, 3), (4, 2)], "anchor and negative must have the same shape"),
        ("triplet{margin=0}", [(4, 3)] * 3, "margin is 0.0; it must be positive"),
    ],
)
def test_shapes_and_options_that_do_not_fit(
    build: Build, text: str, shapes: list[tuple[int, ...]], message: str
) -> None:
    inputs = [np.zeros(shape, np.float32) for shape in shapes]
    with pytest.raises(UsageError, match=message):
        build(text, inputs, tensors=len(inputs))


def test_triplets_of_weighted_samples(run: Run) -> None:
    a, p, n = ROWS[:2], OTHERS[:2], ROWS[2:]
    losses = run("triplet{reduction=none}", a, p, n, tensors=3)
    weights = np.array([3, 1], np.float32)
    found = run("triplet{weighted}", a, p, n, weights, tensors=3)
    np.testing.assert_allclose(found, np.average(losses, weights=weights), rtol=1e-6)


def semi_hard(x: Array, labels: Array, margin: float, power: int) -> float:
    """The definition, pair by pair, in float64."""
    distances: Array = np.linalg.norm(x[:, None] - x[None].astype(np.float64), axis=2) ** power
    losses: list[float] = []
    for a, p in np.argwhere((labels[:, None] == labels) & ~np.eye(len(x), dtype=bool)).tolist():
        negatives = distances[a][labels != labels[a]]
        outside = negatives[negatives > distances[a, p]]
        negative = outside.min() if outside.size else negatives.max()
        losses.append(max(distances[a, p] - negative + margin, 0))
    return float(np.mean(losses))


@pytest.mark.parametrize(("distance", "power"), [("euclidean", 1), ("squared", 2)])
def test_semi_hard_negatives_of_the_batch(run_variant: Run, distance: str, power: int) -> None:
    random = np.random.default_rng(2)
    x = random.standard_normal((12, 4)).astype(np.float32)
    labels = random.integers(0, 3, 12)
    found = run_variant(f"semi-hard-triplet{{distance={distance} margin=0.7}}", x, labels)
    np.testing.assert_allclose(found, semi_hard(x, labels, 0.7, power), rtol=1e-5)


def test_a_negative_as_far_as_the_positive_is_not_further(run_variant: Run) -> None:
    x, labels = np.array([[0], [1], [-1], [3]], np.float32), np.array([0, 0, 1, 2])
    expected = semi_hard(x, labels, 1.0, 1)
    np.testing.assert_allclose(run_variant("semi-hard-triplet", x, labels), expected, rtol=1e-6)


def test_a_batch_without_pairs_or_negatives(run_variant: Run) -> None:
    assert run_variant("semi-hard-triplet", ROWS, np.arange(4)) == 0
    assert run_variant("semi-hard-triplet", ROWS, np.zeros(4, np.int64)) == 0
    assert run_variant("semi-hard-triplet", ROWS[:1], np.zeros(1, np.int64)) == 0
