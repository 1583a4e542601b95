"""The negative evidence lower bound of a variational autoencoder."""

from __future__ import annotations

from typing import Any, Literal

from onnxfold.passes.loss.binary import binary_cross_entropy
from onnxfold.passes.loss.declaration import Scores, loss
from onnxfold.passes.loss.gaussian import gaussian_losses, latent_divergence
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected
from onnxfold.passes.loss.shapes import need_samples


def _scores(options: Any) -> Scores:
    return "logits" if options.likelihood == "bernoulli" else "values"


@loss("vae-elbo", tensors=("reconstruction", "mean", "log_variance"), scores=_scores)
def vae_elbo(
    graph: LossGraph,
    reconstruction: Variable,
    mean: Variable,
    log_variance: Variable,
    *,
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
    sigma: float = 1.0,
    beta: float = 1.0,
    reduction: Reduction = "mean",
    epsilon: Literal["none", "input", "random"] = "none",
    seed: int = 0,
) -> Variable:
    """-ELBO of each sample: reconstruction loss, summed over features, + beta KL(latent, N(0, 1)).

    The Bernoulli reconstruction loss is binary cross-entropy, the reconstruction being logits; the
    Gaussian one is ((x - r)^2 / sigma^2 + log(2 pi sigma^2)) / 2. The divergence is that of
    ``vae-kl``.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes; beta: Higgins et al., beta-VAE.

    Shapes: reconstruction and targets (the model's input) ``[N, ...]``, mean and log_variance
    ``[N, ...]``; losses ``[N]``. Units: nats.

    Args:
        graph: The graph to build in.
        reconstruction: Logits (bernoulli) or means (gaussian) of the features.
        mean: mu of the latents.
        log_variance: The logarithm of the latents' variance.
        likelihood: The distribution of the features.
        sigma: The features' standard deviation; gaussian only.
        beta: Weight of the divergence.
        reduction: What becomes of the samples' losses.
        epsilon: Estimate the divergence from draws, as ``vae-kl`` does.
        seed: Seeds the draws of ``epsilon=random``.
    """
    axes = need_samples(reconstruction, "reconstruction")
    targets = graph.data_input("targets", graph.dtype, reconstruction.shape)
    if likelihood == "bernoulli":
        losses = binary_cross_entropy(graph, reconstruction, targets)
    else:
        losses = gaussian_losses(graph, targets, reconstruction, sigma)
    divergence = latent_divergence(graph, mean, log_variance, epsilon, seed)
    if beta != 1:
        divergence = graph.op("Mul", divergence, float(beta))
    total = graph.op("Add", graph.reduce("ReduceSum", losses, axes), divergence)
    return collected(graph, total, reduction)
