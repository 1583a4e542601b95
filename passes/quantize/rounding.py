"""Codes of weights that leave the least quadratic error: nearest plane, then coordinate descent.

The error of a row is (w - q)^T H (w - q). With H = R^T R, R upper triangular, it is |R (w - q)|^2,
and codes can be chosen from the last input to the first, each best for what is chosen already:
Babai's nearest-plane algorithm, which is GPTQ (Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", 2022) without the inverse of H. Then single
codes are changed one after another as long as that gains.

Everything is summed by ``np.einsum``, in an order of its own: that of BLAS, and with it now
and then a code, would depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from onnxfold.passes.constants import Array

_BLOCK = 64

Place: TypeAlias = tuple[slice | Array | int, ...]
"""An index into weights."""


@dataclass(frozen=True, eq=False)
class Grid:
    """What codes of weights [groups, outputs, inputs] stand for: (code - zero) * scale.

    Attributes:
        scale: float64, broadcasts to the weights.
        zero: float64, likewise.
        low: Smallest code to use.
        high: Largest code to use.
    """

    scale: Array
    zero: Array
    low: float
    high: float

    def nearest(self, weights: Array, place: Place = ()) -> Array:
        """Codes (float64) nearest to ``weights``, which lie at ``place``."""
        steps = weights / self.scale[place] + self.zero[place]
        codes: Array = np.clip(np.rint(steps), self.low, self.high)
        return codes

    def reals(self, codes: Array, place: Place = ()) -> Array:
        """What ``codes`` at ``place`` stand for."""
        real: Array = (codes - self.zero[place]) * self.scale[place]
        return real


def quadratic_error(errors: Array, hessian: Array) -> Array:
    """e^T H e of each row.

    Args:
        errors: [groups, outputs, inputs].
        hessian: [groups, inputs, inputs].

    Returns:
        [groups, outputs].
    """
    products = np.einsum("gok,gkl->gol", errors, hessian)
    total: Array = np.einsum("gol,gol->go", products, errors)
    return total


def damped(hessian: Array, damping: float) -> Array:
    """``hessian`` plus a share of its mean diagonal, which makes it positive definite."""
    size = hessian.shape[-1]
    mean = np.einsum("gkk->g", hessian) / size
    # A group whose inputs are all zero: any codes do, and the nearest are found.
    mean = np.where(mean > 0, mean, 1.0)
    added: Array = hessian + (damping * mean)[:, np.newaxis, np.newaxis] * np.eye(size)
    return added


def cholesky(matrices: Array) -> Array:
    """Lower triangular L with L L^T = A for each positive definite A of [groups, n, n]."""
    lower = np.zeros_like(matrices)
    size = matrices.shape[-1]
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        left = np.ascontiguousarray(np.swapaxes(lower[:, start:stop, :start], 1, 2))
        panel = matrices[:, start:, start:stop] - np.einsum(
            "gik,gkj->gij", lower[:, start:, :start], left
        )
        for column in range(stop - start):
            known = panel[:, column:, :column]
            rest = panel[:, column:, column] - np.einsum("gik,gk->gi", known, known[:, 0])
            panel[:, column:, column] = rest / np.sqrt(rest[:, :1])
            panel[:, :column, column] = 0.0
        lower[:, start:, start:stop] = panel
    return lower


def nearest_plane(weights: Array, grid: Grid, hessian: Array) -> Array:
    """Codes chosen one input after another, those of the largest moments first.

    Args:
        weights: float64 [groups, outputs, inputs].
        grid: What codes stand for.
        hessian: Positive definite, [groups, inputs, inputs].

    Returns:
        float64 codes, of the weights' shape.
    """
    groups, outputs, inputs = weights.shape
    order = np.argsort(np.einsum("gkk->gk", hessian), axis=1, kind="stable")
    number: Array = np.arange(len(weights))
    ordered = np.take_along_axis(hessian, order[:, :, np.newaxis], axis=1)
    ordered = np.take_along_axis(ordered, order[:, np.newaxis], axis=2)
    root = cholesky(ordered)
    codes = np.empty_like(weights)
    # Inputs before outputs: what is summed lies side by side.
    errors = np.zeros((groups, inputs, outputs))
    for k in range(inputs - 1, -1, -1):
        place: Place = (number, slice(None), order[:, k])
        below = np.ascontiguousarray(root[:, k + 1 :, k])
        pull = np.einsum("gjo,gj->go", errors[:, k + 1 :], below) / root[:, k, k, np.newaxis]
        chosen = grid.nearest(weights[place] - pull, place)
        codes[place] = chosen
        errors[:, k] = grid.reals(chosen, place) - weights[place]
    return codes


def descend(weights: Array, codes: Array, grid: Grid, hessian: Array, sweeps: int) -> Array:
    """Change single codes, each to the best given all others, until no change gains.

    Args:
        weights: float64 [groups, outputs, inputs].
        codes: Where to start; not written to.
        grid: What codes stand for.
        hessian: [groups, inputs, inputs].
        sweeps: Rounds over all inputs at most.

    Returns:
        float64 codes of no greater error.
    """
    inputs = weights.shape[2]
    codes = np.array(codes)
    slopes = np.einsum("gok,gkl->gol", grid.reals(codes) - weights, hessian)
    for _ in range(sweeps):
        moved = False
        for k in range(inputs):
            curvature = hessian[:, k, k, np.newaxis]
            alive = curvature > 0
            place: Place = (slice(None), slice(None), k)
            real = grid.reals(codes[place], place)
            target = real - slopes[place] / np.where(alive, curvature, 1.0)
            best = grid.nearest(target, place)
            steps = grid.reals(best, place) - real
            gains = steps * (steps * curvature + 2 * slopes[place]) < 0
            group, output = np.nonzero(gains & alive)
            if not len(group):
                continue
            moved = True
            codes[group, output, k] = best[group, output]
            slopes[group, output] += steps[group, output, np.newaxis] * hessian[group, k]
        if not moved:
            break
    return codes
