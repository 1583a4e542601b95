"""The published numbers of each loss, to a millionth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]
Run = Callable[..., Array]


def f32(*rows: Any) -> Array:
    return np.array(rows, np.float32)


LOGITS = f32([2, -5, 0.5, -0.1], [0, 0, 1.9, 1.4], [-100, 100, -100, -100])
SHIFTED = f32([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1])
QUERIES, CANDIDATES = f32([1, 0], [0, 1], [1, 1]), f32([1, 2], [3, 1], [0, 1])
P, Q = f32([0.2, 0.3, 0.5], [0, 0.4, 0.6]), f32([0.1, 0.6, 0.3], [0.3, 0.3, 0.4])
X = np.array([*range(1, 10), 50.0])
WINSORIZED = np.array([2, *range(2, 10), 9.0])
Y = f32(2.1, 3.9, 6.2, 7.8, 10.1, 12.2, 13.8, 16.1, 18, 21)
IMAGES = np.zeros((1, 2, 2, 1), np.float32)

VECTORS: dict[str, tuple[str, int, list[Array], Any]] = {
    "sparse, one row": (
        "sparse-softmax-cross-entropy",
        1,
        [f32([0, 1, 2]), np.array([1])],
        1.4076059644443804,
    ),
    "sparse, TensorFlow's own": (
        "sparse-softmax-cross-entropy{reduction=none}",
        1,
        [LOGITS, np.array([0, 3, 1])],
        [0.29750752, 1.1448325, 0],
    ),
    "sparse, logits of 1000": (
        "sparse-softmax-cross-entropy{reduction=none}",
        1,
        [f32([1000, -1000], [1000, -1000], [-1000, -1000]), np.array([0, 1, 1])],
        [0, 2000, np.log(2)],
    ),
    "soft labels": (
        "softmax-cross-entropy{reduction=none}",
        1,
        [LOGITS, np.eye(4, dtype=np.float32)[[0, 3, 1]]],
        [0.29750752, 1.1448325, 0],
    ),
    "normalized mutual information": (
        "normalized-mutual-information",
        1,
        [f32([0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]), np.array([0, 0, 1, 1])],
        0.2832385080629428,
    ),
    "kl of a latent distribution": (
        "vae-kl{reduction=none}",
        2,
        [f32([0, 0], [1, -1], [0.5, 2]), f32([0, 0], [0, 0], [-1, 0.5])],
        [0, 1, 2.3833003],
    ),
    "negative samples": (
        "cosine-distance-with-negative-samples{shift=1 negatives=2}",
        2,
        [SHIFTED, SHIFTED],
        [[1, 0.5, 0], [1, 0.5, 0.5], [1, 0, 0.5]],
    ),
    "all pairs over candidates": (
        "all-pairs{reduction=none}",
        2,
        [QUERIES, CANDIDATES],
        [2.169846, 1.5514445, 3.3490124],
    ),
    "all pairs over queries": (
        "all-pairs{over=queries reduction=none}",
        2,
        [QUERIES, CANDIDATES],
        [2.407606, 3.3490124, 0.86199474],
    ),
    "R^2 on winsorized x": (
        "r-squared",
        1,
        [(-1.3108270676691779 + 2.2601503759398517 * WINSORIZED).astype(np.float32), Y],
        0.9765552455721891,
    ),
    "R^2 of it on the original x": (
        "r-squared",
        1,
        [(-1.3108270676691779 + 2.2601503759398517 * X).astype(np.float32), Y],
        -22.659961557484362,
    ),
    "PSNR of an error of 0.1": ("psnr", 1, [IMAGES, IMAGES + np.float32(0.1)], 20),
    "PSNR at 255": ("psnr{max-value=255}", 1, [IMAGES, IMAGES + 1], 48.1308036),
    "PSNR of identical images": ("psnr", 1, [IMAGES, IMAGES], np.inf),
    "kl, sum": ("kl-divergence{from-probabilities reduction=sum}", 1, [Q, P], 0.54445004),
    "kl, mean": ("kl-divergence{from-probabilities reduction=mean}", 1, [Q, P], 0.09074167),
    "kl, batchmean": ("kl-divergence{from-probabilities}", 1, [Q, P], 0.27222502),
    "binary cross-entropy": (
        "bce-with-logits{reduction=none}",
        1,
        [f32(0, 1000, -1000, 1000, -1000), f32(0.5, 1, 0, 0, 1)],
        [np.log(2), 0, 0, 1000, 1000],
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_published_numbers(run_variant: Run, name: str) -> None:
    text, tensors, inputs, expected = VECTORS[name]
    result = run_variant(text, *inputs, tensors=tensors)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)


def test_the_original_data_of_an_altered_model_without_a_constant(run: Run) -> None:
    slope = float(WINSORIZED @ Y / (WINSORIZED @ WINSORIZED))
    predictions = [(slope * x).astype(np.float32) for x in (WINSORIZED, X)]
    found = [float(run("r-squared{centered=false}", each, Y)) for each in predictions]
    np.testing.assert_allclose(found, [0.9928982545947651, -3.2694140], rtol=1e-6)


def test_gaussian_reconstruction_and_a_bernoulli_one(run: Run) -> None:
    x, r = f32([0, 1], [1, 1]), f32([0.5, 1], [-1, 2])
    zero = np.zeros((2, 3), np.float32)
    gaussian = run("vae-elbo{likelihood=gaussian sigma=2}", r, zero, zero, x, tensors=3)
    expected = 0.5 * ((x - r) ** 2 / 4 + np.log(2 * np.pi * 4)).sum(1).mean()
    np.testing.assert_allclose(gaussian, expected, rtol=1e-6)
    bernoulli = run("vae-elbo", r, zero, zero, x, tensors=3)
    expected = (np.log1p(np.exp(r)) - r * x).sum(1).mean()
    np.testing.assert_allclose(bernoulli, expected, rtol=1e-6)
