"""PSNR and SSIM of images, against their definitions written out."""

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

X = np.random.default_rng(0).random((2, 3, 12, 14), np.float32)
Y = np.clip(X + np.random.default_rng(1).standard_normal(X.shape) * 0.1, 0, 1).astype(np.float32)


def nhwc(images: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(images, 1, -1))


def plane_ssim(x: Array, y: Array, weights: Array, peak: float, correction: float) -> float:
    """The definition, window by window, in float64."""
    size = len(weights)
    values: list[float] = []
    for top in range(x.shape[0] - size + 1):
        for left in range(x.shape[1] - size + 1):
            a, b = (
                each[top : top + size, left : left + size].astype(np.float64) for each in (x, y)
            )
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum() * correction
            c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            structure = (2 * both + c2) / ((var_a + var_b) * correction + c2)
            values.append(luminance * structure)
    return float(np.mean(values))


def expected_ssim(x: Array, y: Array, weights: Array, peak: float, correction: float) -> Array:
    planes = zip(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]), strict=True)
    values = [plane_ssim(a, b, weights, peak, correction) for a, b in planes]
    return np.array(values).reshape(x.shape[:2]).mean(1)


def test_ssim_under_a_gaussian(run_variant: Run) -> None:
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(line, line) / line.sum() ** 2
    found = run_variant("ssim{reduction=none}", X, Y)
    np.testing.assert_allclose(found, expected_ssim(X, Y, weights, 1, 1), rtol=2e-6)


def test_ssim_as_skimage_has_it(run_variant: Run) -> None:
    weights = np.full((7, 7), 1 / 49)
    text = "ssim{window=uniform size=7 sample-covariance max-value=255 reduction=none}"
    found = run_variant(text, X * 255, Y * 255)
    expected = expected_ssim(X * 255, Y * 255, weights, 255, 49 / 48)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_where_the_channels_are_makes_no_difference(run: Run, dynamic: bool) -> None:
    first = run("ssim{reduction=none}", X, Y, dynamic=dynamic)
    last = run("ssim{layout=nhwc reduction=none}", nhwc(X), nhwc(Y), dynamic=dynamic)
    np.testing.assert_allclose(first, last, rtol=1e-6)
    ratios = run("psnr{reduction=none}", X, Y, dynamic=dynamic)
    np.testing.assert_allclose(
        ratios, run("psnr{reduction=none}", nhwc(X), nhwc(Y), dynamic=dynamic), rtol=1e-6
    )


def test_identical_images(run_variant: Run) -> None:
    np.testing.assert_allclose(run_variant("ssim", X, X), 1, rtol=1e-6)
    flat = np.zeros_like(X)
    np.testing.assert_allclose(run_variant("ssim", flat, flat), 1, rtol=1e-6)
    ratios = run_variant("psnr{reduction=none}", X, np.stack([X[0], Y[1]]))
    assert ratios[0] == np.inf
    assert np.isfinite(ratios[1])


def test_the_mean_of_ratios_is_not_the_ratio_of_means(run: Run) -> None:
    ratios = run("psnr{reduction=none}", X, Y)
    assert run("psnr", X, Y) == pytest.approx(ratios.mean(), rel=1e-6)
    mse = ((X - Y).astype(np.float64) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(ratios, -10 * np.log10(mse), rtol=1e-6)


def test_one_image_without_a_batch(run: Run) -> None:
    np.testing.assert_allclose(run("psnr", X[0], Y[0]), run("psnr", X[:1], Y[:1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ssim{size=13}", "windows of 13 x 13 do not fit images of 12 x 14"),
        ("ssim{layout=nhwc}", "windows of 11 x 11 do not fit images of 3 x 12"),
        ("ssim{sample-covariance}", "sample covariance is for window=uniform"),
        ("ssim{size=1}", "size must be at least 2"),
        ("psnr{max-value=0}", "max value is 0.0; it must be positive"),
    ],
)
def test_options_that_do_not_fit(build: Build, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(text, [X])
