"""Losses of variational autoencoders: exact divergences and drawn ones."""

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
MEAN = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
SPREAD = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)


def test_draws_estimate_the_divergence(run: Run) -> None:
    mean, spread = (np.repeat(each, 20000, 0) for each in (MEAN[:1], SPREAD[:1]))
    exact = run("vae-kl", MEAN[:1], SPREAD[:1], tensors=2)
    noise = np.random.default_rng(2).standard_normal(mean.shape).astype(np.float32)
    given = run("vae-kl{epsilon=input}", mean, spread, noise, tensors=2)
    drawn = run("vae-kl{epsilon=random seed=3}", mean, spread, tensors=2)
    np.testing.assert_allclose([given, drawn], [exact, exact], rtol=0.1)
    assert given != drawn


def test_a_seed_is_repeatable(run: Run) -> None:
    first, again, other = (
        run(f"vae-kl{{epsilon=random seed={seed} reduction=none}}", MEAN, SPREAD, tensors=2)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_bound_is_reconstruction_and_divergence(run_variant: Run) -> None:
    x = np.random.default_rng(2).random((3, 2, 2), np.float32)
    r = np.random.default_rng(3).standard_normal((3, 2, 2)).astype(np.float32)
    total = run_variant("vae-elbo{beta=2 reduction=none}", r, MEAN, SPREAD, x, tensors=3)
    binary = run_variant("bce-with-logits{reduction=none}", r, x).sum((1, 2))
    divergence = run_variant("vae-kl{reduction=none}", MEAN, SPREAD, tensors=2)
    np.testing.assert_allclose(total, binary + 2 * divergence, rtol=1e-6)


def test_logits_of_a_thousand(run_variant: Run) -> None:
    zeros = np.zeros((1, 1), np.float32)
    r, x = np.array([[1000, -1000]], np.float32), np.array([[1, 1]], np.float32)
    assert run_variant("vae-elbo", r, zeros, zeros, x, tensors=3) == 1000


def test_a_negative_log_variance_far_out(run_variant: Run) -> None:
    zeros = np.zeros((1, 1), np.float32)
    assert run_variant("vae-kl", zeros, zeros - 1000, tensors=2) == 499.5


def test_shapes_and_options_that_do_not_fit(build: Build) -> None:
    with pytest.raises(UsageError, match="mean and log_variance must have the same shape"):
        build("vae-kl", [MEAN, SPREAD[:, :1]], tensors=2)
    with pytest.raises(UsageError, match="mean must have an axis of samples"):
        build("vae-kl", [MEAN[0], SPREAD[0]], tensors=2)
    with pytest.raises(UsageError, match=r"sigma is .*; it must be positive"):
        build("vae-elbo{likelihood=gaussian sigma=0}", [MEAN, MEAN, SPREAD], tensors=3)
