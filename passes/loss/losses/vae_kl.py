"""Divergence of a variational autoencoder's latent distribution from the standard normal one."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.gaussian import latent_divergence
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected


@loss("vae-kl", tensors=("mean", "log_variance"))
def vae_kl(
    graph: LossGraph,
    mean: Variable,
    log_variance: Variable,
    *,
    reduction: Reduction = "mean",
    epsilon: Literal["none", "input", "random"] = "none",
    seed: int = 0,
) -> Variable:
    """KL(N(mu, e^lv), N(0, 1)) per sample: sum of (e^lv + mu^2 - 1 - lv) / 2 over the latents.

    One diagonal Gaussian per sample. With ``epsilon`` the divergence is estimated from one draw
    z = mu + e^(lv / 2) eps instead: sum of (z^2 - lv - eps^2) / 2.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, appendix B;
    torch.distributions.kl_divergence.

    Shapes: mean and log_variance ``[N, ...]``; losses ``[N]``. Units: nats.

    Args:
        graph: The graph to build in.
        mean: mu.
        log_variance: lv, the logarithm of the variance.
        reduction: What becomes of the samples' losses.
        epsilon: ``input`` takes the draws as the input ``epsilon``; ``random`` draws in the
            graph, anew each run; ``none`` computes the divergence exactly.
        seed: Seeds the draws of ``random``.
    """
    divergence = latent_divergence(graph, mean, log_variance, epsilon, seed)
    return collected(graph, divergence, reduction)
