"""Pareto smoothed importance sampling, and k-hat, which says how far it can be trusted.

The largest M = ceil(min(S / 5, 3 sqrt(S / r))) of S importance weights are replaced by the expected
order statistics of a generalised Pareto distribution that is fitted to them, at most the largest
raw weight (Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25(72)). Its shape k-hat estimates
the tail index of the weights: they have 1 / k finite moments.

law: for q = N(0, s^2) and p = N(0, 1) the weights' tail index is 1 - s^2 where s < 1. (The weight
is w = exp(-z^2 (1 - 1/s^2) / 2) up to a constant, so that P(w > t) falls like t^(-1 / (1 - s^2)).)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...kernels.source import user_line
from ..errors_posterior import WeightsError

LARGEST = 0.7  # k-hat above which no practical number of draws is enough
PRIOR_SHAPE, PRIOR_DRAWS = 0.5, 10  # of k, as if ten more exceedances had shown a half
FEWEST = 5  # exceedances to which a distribution is fitted
FLAT = 1e-3  # a range of the log weights in the tail that is none: it may well be rounding


def psis(log_weights: Any, relative_efficiency: float = 1.0) -> tuple[np.ndarray, Any]:
    """Smoothed log weights, and k-hat.

        log_w, khat = vx.psis(log_p - log_q)
        mean = (np.exp(log_w) * f).sum()

    Args:
        log_weights: [..., S], log p - log q at draws of q; minus infinity where p is zero.
        relative_efficiency: r = effective sample size / S, for draws of a Markov chain.

    Returns:
        Normalised log weights [..., S] whose exponentials sum to 1, in float64, and k-hat [...]: a
        float for one vector. It is minus infinity where the whole tail is within 0.1 % of the
        largest weight, or five draws share that one (a finite support): such weights are bounded
        and stay as they are. It is infinity where otherwise fewer than five distinct weights lie in
        the tail.

    Raises:
        WeightsError: a weight is NaN or infinite, or all are zero.
    """
    log_w = np.asarray(log_weights, np.float64)
    require_weights(log_w)
    rows = log_w.reshape(-1, log_w.shape[-1])
    smoothed, shapes = zip(*(_smooth(row, relative_efficiency) for row in rows), strict=True)
    khat = np.array(shapes).reshape(log_w.shape[:-1])
    return np.stack(smoothed).reshape(log_w.shape), khat if khat.ndim else float(khat)


def khat_threshold(draws: int) -> float:
    """min(1 - 1 / log10 S, 0.7): with a larger k-hat, S draws are too few (section 3.2.4)."""
    return min(1 - 1 / math.log10(draws), LARGEST) if draws > 1 else -math.inf


def require_weights(log_w: np.ndarray) -> None:
    """Raise a `WeightsError` where these are no log weights."""
    shown = None
    if log_w.ndim == 0 or log_w.shape[-1] == 0:
        shown = f"an array of shape {log_w.shape}"
    elif wrong := int((np.isnan(log_w) | (log_w == np.inf)).sum()):
        nan = int(np.isnan(log_w).sum())
        shown = f"{nan} NaN and {wrong - nan} infinite among {log_w.size}"
    elif np.isneginf(log_w).all(-1).any():
        shown = f"all {log_w.shape[-1]} weights are zero (log weights -inf)"
    if shown is not None:
        raise WeightsError(
            "These are no importance weights.",
            expected="log p - log q [..., S], finite or -inf, one of each S finite",
            got=shown,
            where=user_line(),
            fix="look at the model's and the guide's log_density at draws of the guide: a guide "
            "outside the model's support, or an overflow (jax.config.update('jax_enable_x64', "
            "True) shows)",
        )


def fit_generalised_pareto(excesses: np.ndarray) -> tuple[float, float]:
    """Shape k and scale sigma of p(y) = (1 + k y / sigma)^(-1 / k - 1) / sigma.

    The quasi-Bayesian estimate of Zhang and Stephens 2009 (Technometrics 51), k drawn weakly
    towards a half (Vehtari et al., appendix C).

    Args:
        excesses: over the cutoff, [n], sorted, positive.
    """
    y, n = excesses, len(excesses)
    grid = 30 + int(math.sqrt(n))
    quartile = y[int(n / 4 + 0.5) - 1]
    theta = 1 / y[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
    shape = np.log1p(-theta[:, None] * y).mean(1)  # the best k for each theta = -k / sigma
    profile = n * (np.log(-theta / shape) - shape - 1)
    weight = np.exp(profile - profile.max())
    theta = (theta * weight).sum() / weight.sum()
    k = np.log1p(-theta * y).mean()
    sigma = -k / theta
    return (n * k + PRIOR_DRAWS * PRIOR_SHAPE) / (n + PRIOR_DRAWS), sigma


def _smooth(log_w: np.ndarray, efficiency: float) -> tuple[np.ndarray, float]:
    log_w = log_w - log_w.max()
    count = len(log_w)
    tail = math.ceil(min(count / 5, 3 * math.sqrt(count / efficiency)))
    order = np.argsort(log_w, kind="stable")
    cutoff = max(log_w[order[-min(tail + 1, count)]], math.log(np.finfo(float).tiny))
    largest = order[np.searchsorted(log_w[order], cutoff, "right") :]  # strictly above the cutoff
    if cutoff > -FLAT or (log_w == 0).sum() >= FEWEST:
        return log_w - _log_sum(log_w), -math.inf
    khat = math.inf
    excesses = np.exp(log_w[largest]) - math.exp(cutoff)
    if len(np.unique(excesses)) >= FEWEST and excesses.all():
        khat, sigma = fit_generalised_pareto(excesses)
        p = (np.arange(len(largest)) + 0.5) / len(largest)
        expected = sigma * np.expm1(-khat * np.log1p(-p)) / khat if khat else -sigma * np.log1p(-p)
        log_w = log_w.copy()
        log_w[largest] = np.minimum(np.log(expected + math.exp(cutoff)), 0.0)
    return log_w - _log_sum(log_w), float(khat)


def _log_sum(x: np.ndarray) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))
