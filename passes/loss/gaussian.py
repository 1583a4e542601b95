"""Diagonal Gaussians: a latent distribution's divergence, and the likelihood of what was seen."""

from __future__ import annotations

import math
from typing import Literal

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.shapes import need_same_shape, need_samples


def latent_divergence(
    graph: LossGraph,
    mean: Variable,
    log_variance: Variable,
    epsilon: Literal["none", "input", "random"],
    seed: int,
) -> Variable:
    """KL(N(mean, e^log_variance), N(0, 1)) of each sample, exact or estimated from one draw."""
    need_same_shape(mean, log_variance, "mean and log_variance")
    axes = need_samples(mean, "mean")
    if epsilon == "none":
        squares = graph.op("Add", graph.op("Exp", log_variance), graph.op("Mul", mean, mean))
        terms = graph.op("Sub", graph.op("Sub", squares, 1.0), log_variance)
    else:
        noise = _draws(graph, mean, epsilon, seed)
        deviation = graph.op("Exp", graph.op("Mul", log_variance, 0.5))
        z = graph.op("Add", mean, graph.op("Mul", deviation, noise))
        terms = graph.op("Sub", graph.op("Mul", z, z), log_variance)
        terms = graph.op("Sub", terms, graph.op("Mul", noise, noise))
    return graph.op("Mul", graph.reduce("ReduceSum", terms, axes), 0.5)


def gaussian_losses(
    graph: LossGraph, x: Variable, reconstruction: Variable, sigma: float
) -> Variable:
    """-log N(x; reconstruction, sigma^2) = ((x - r)^2 / sigma^2 + log(2 pi sigma^2)) / 2.

    Raises:
        UsageError: sigma is not positive.
    """
    if not sigma > 0:
        raise UsageError(f"sigma is {sigma}; it must be positive")
    error = graph.op("Mul", graph.op("Sub", x, reconstruction), 1 / sigma)
    squares = graph.op("Mul", error, error)
    constant = math.log(2 * math.pi * sigma * sigma)
    return graph.op("Mul", graph.op("Add", squares, constant), 0.5)


def _draws(
    graph: LossGraph, mean: Variable, epsilon: Literal["none", "input", "random"], seed: int
) -> Variable:
    if epsilon == "input":
        return graph.data_input("epsilon", graph.dtype, mean.shape)
    return graph.op("RandomNormalLike", mean, seed=float(seed))
