"""Exact confidence bounds for a rate, from a count of events among independent samples."""

from __future__ import annotations

import math

_STEPS = 200
_TINY = 1e-300


def rate_upper_bound(events: int, samples: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson upper bound of a rate.

    Zero events among 299 samples give just under 1 % at 95 % confidence.

    Args:
        events: How often it happened.
        samples: How often it could have happened.
        confidence: Probability that the bound holds.
    """
    if samples == 0 or events >= samples:
        return 1.0
    return _beta_quantile(confidence, events + 1, samples - events)


def rate_lower_bound(events: int, samples: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson lower bound of a rate."""
    if samples == 0 or events == 0:
        return 0.0
    return _beta_quantile(1 - confidence, events, samples - events + 1)


def samples_needed(rate: float, confidence: float = 0.95) -> int:
    """How many samples without an event show that the rate is below ``rate``."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, for a probability of at least 1/2.

    P(|T| > t) = I_x(v/2, 1/2) with x = v / (v + t^2) (DLMF 8.17 and 26.7).
    """
    x = _beta_quantile(2 * (1 - probability), degrees / 2, 0.5)
    return math.sqrt(degrees * (1 - x) / x)


def _beta_quantile(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):  # each step halves the interval: 60 reach float64's resolution
        middle = (low + high) / 2
        if _beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    factor = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta)
    # The fraction converges fast on this side of the mean; the symmetry gives the other side.
    if x < (a + 1) / (a + b + 2):
        return factor * _beta_fraction(x, a, b) / a
    return 1 - factor * _beta_fraction(1 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Continued fraction of I_x(a, b) (DLMF 8.17.22), by the modified Lentz method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS + 1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY
