"""What the losses are made of can be differentiated, at the points where formulas break too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fixtures.vectors.loss_cases import Case, load
from fixtures.vectors.losses import path_of
from onnxfold.passes.loss.build import LossModel
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

Array = npt.NDArray[Any]
Build = Callable[..., LossModel]
Evaluate = Callable[..., dict[str, Any]]
Gradients = Callable[..., list[Array]]
NAN, INF = np.nan, np.inf


@pytest.fixture
def gradients(build: Build, evaluate: Evaluate) -> Gradients:
    def compute(
        text: str, inputs: Sequence[Array], tensors: int = 1, dynamic: bool = False
    ) -> list[Array]:
        built = build(text, inputs, tensors=tensors, dynamic=dynamic)
        names = ",".join(built.tensors)
        steps = parse_passes(f"add-gradient{{wrt={names}}},lower-gradient")
        Pipeline(tuple(steps)).run(built.model)
        outputs = evaluate(
            built.model, dict(zip((*built.tensors, *built.data), inputs, strict=True))
        )
        return [outputs[f"grad_{name}"] for name in built.tensors]

    return compute


def f32(*rows: Any) -> Array:
    return np.array(rows, np.float32)


@pytest.mark.parametrize("package", ["torch", "tensorflow"])
def test_gradients_are_those_of_other_packages(package: str, gradients: Gradients) -> None:
    cases = [each for each in load(path_of(package)) if each.gradients]
    for number, case in enumerate(cases[::4]):
        _compare(case, gradients(case.loss, case.inputs, case.tensors, bool(number % 2)))


def _compare(case: Case, found: list[Array]) -> None:
    for gradient, expected in zip(found, case.gradients, strict=True):
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=2e-6, rtol=0)


CORNERS: dict[str, tuple[str, list[Array], list[Any]]] = {
    "binary cross-entropy at 0 and far out": (
        "bce-with-logits{reduction=sum}",
        [f32(0, 1000, -1000, 1000), f32(1, 1, 0, 0)],
        [-0.5, 0, 0, 1],
    ),
    "focal with a gamma below 1": (
        "focal{gamma=0.5 alpha=-1 reduction=sum}",
        [f32(1000, -1000), f32(1, 0)],
        [0, 0],
    ),
    "softmax focal with a gamma below 1": (
        "sparse-softmax-focal{gamma=0.5 reduction=sum}",
        [f32([1000, 0], [0, 0]), np.array([0, -1])],
        [[0, 0], [NAN, NAN]],
    ),
    "huber at its joints": (
        "huber{reduction=sum}",
        [f32(1, -1, 0, 3), f32(0, 0, 0, 0)],
        [1, -1, 0, 1],
    ),
    "l1 of equal numbers": ("l1", [f32(1), f32(1)], [0]),
    "a label that is ignored": (
        "sparse-softmax-cross-entropy{ignore-index=-1 reduction=sum}",
        [f32([0, 0], [9, 0]), np.array([0, -1])],
        [[-0.5, 0.5], [0, 0]],
    ),
    "a label that is no class": (
        "sparse-softmax-cross-entropy{reduction=sum}",
        [f32([0, 0], [0, 0]), np.array([0, -1])],
        [[-0.5, 0.5], [NAN, NAN]],
    ),
    "nothing but ignored labels": (
        "sparse-softmax-cross-entropy{ignore-index=-1}",
        [f32([1, 2]), np.array([-1])],
        [[0, 0]],
    ),
    "a probability of 0": (
        "sparse-softmax-cross-entropy{from-probabilities}",
        [f32([0, 1]), np.array([0])],
        [[0, 0]],
    ),
    "a masked class": (
        "softmax-cross-entropy{reduction=sum}",
        [f32([0, 0, -INF]), f32([1, 0, 0])],
        [[-0.5, 0.5, 0]],
    ),
    "divergence from a target of 0": (
        "kl-divergence{reduction=sum}",
        [f32([0, 0]), f32([1, 0])],
        [[-0.5, 0.5]],
    ),
    "reverse divergence from a masked class": (
        "kl-divergence{direction=reverse reduction=sum}",
        [f32([0, 0, -INF]), f32([0.5, 0.5, 0])],
        [[0, 0, 0]],
    ),
    "identical images": ("psnr", [np.ones((1, 1, 1, 1), np.float32)] * 2, [[[[0]]]]),
    "no noise": ("sqnr", [f32(1), f32(1)], [0]),
    "silence": ("sqnr", [f32(1), f32(0)], [-20 / np.log(10)]),
    "targets that do not vary": ("r-squared", [f32(1, 2), f32(1, 1)], [0, 0]),
    "one cluster and one label": (
        "normalized-mutual-information",
        [f32([1, 0], [1, 0]), np.array([0, 0])],
        [[0, 0], [0, 0]],
    ),
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name: str, gradients: Gradients) -> None:
    text, inputs, expected = CORNERS[name]
    (found,) = gradients(text, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rows_of_zeros_and_equal_embeddings(gradients: Gradients) -> None:
    zeros, ones = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    for text in ("all-pairs{similarity=cosine}", "cosine-softmax-with-negative-samples"):
        for found in gradients(text, [zeros, zeros], 2):
            np.testing.assert_array_equal(found, zeros)
    near, same, far = gradients("triplet{margin=9}", [ones, ones, zeros], 3)
    assert np.isfinite([near, same, far]).all()


def test_a_row_without_any_similarity(gradients: Gradients, run: Callable[..., Array]) -> None:
    huge = np.finfo(np.float32).max
    queries, candidates = f32([-huge, 0], [0, 1]), f32([huge, 1], [huge, 2])
    losses = run("all-pairs{reduction=none}", queries, candidates, tensors=2)
    np.testing.assert_allclose(losses, [-INF, np.log1p(np.exp(-1))], rtol=1e-6)
    of_queries, _ = gradients("all-pairs{reduction=none}", [queries, candidates], 2)
    assert not np.isnan(of_queries).any()


def test_semi_hard_triplets_of_equal_samples(gradients: Gradients) -> None:
    x = f32([0, 0], [0, 0], [1, 0], [0, 2])
    (found,) = gradients("semi-hard-triplet{reduction=sum}", [x, np.array([0, 0, 1, 2])])
    # Both pairs have distance 0, and the negative at distance 1 on the margin.
    assert np.isfinite(found).all()
    (found,) = gradients("semi-hard-triplet{reduction=sum margin=3}", [x, np.array([0, 0, 1, 2])])
    np.testing.assert_allclose(found, [[1, 0], [1, 0], [-2, 0], [0, 0]], atol=1e-6)
    (found,) = gradients("semi-hard-triplet", [x, np.zeros(4, np.int64)])
    np.testing.assert_array_equal(found, np.zeros_like(x))


def test_identical_images_have_no_slope(gradients: Gradients) -> None:
    images = np.random.default_rng(0).random((2, 1, 12, 12), np.float32)
    (found,) = gradients("ssim", [images, images])
    assert np.abs(found).max() < 1e-6
    flat = np.ones((1, 1, 12, 12), np.float32)
    (found,) = gradients("ssim", [flat, flat])
    assert np.abs(found).max() < 1e-6
