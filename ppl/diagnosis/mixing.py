"""Whether Markov chains have mixed: rank-normalised R-hat, effective sample sizes, E-BFMI.

Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021 (Bayesian Analysis 16): chains are split in
halves; values are replaced by the normal scores of their ranks, so that nothing rests on moments
that may not exist; the tails are looked at by themselves.

All take draws [chains, draws, n] of n quantities and return [n]; NaN for a constant quantity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

FEWEST = 4  # draws to a half chain


def r_hat(draws: Any) -> np.ndarray:
    """The larger R-hat of the normal scores and of their distances from the median."""
    x = split(draws)
    folded = np.abs(x - np.median(x, (0, 1)))
    return _require(x, np.maximum(_r_hat(normal_scores(x)), _r_hat(normal_scores(folded))))


def ess_bulk(draws: Any) -> np.ndarray:
    """Effective sample size of the normal scores: for means and medians."""
    x = split(draws)
    return _require(x, ess(normal_scores(x)))


def ess_tail(draws: Any) -> np.ndarray:
    """The smaller effective sample size of the events x <= 5 % and x <= 95 % quantile."""
    x = split(draws)
    both = [ess((x <= np.quantile(x, q, (0, 1))).astype(float)) for q in (0.05, 0.95)]
    return _require(x, np.fmin(*both))


def ess_mean(draws: Any) -> np.ndarray:
    """Effective sample size of the values as they are: sd / sqrt of it is the mean's error."""
    x = split(draws)
    return _require(x, ess(x))


def ess(x: np.ndarray) -> np.ndarray:
    """m n / (1 + 2 sum_t rho_t), cut off by Geyer's initial monotone sequence (1992).

    Antithetic chains are counted as at most m n log10(m n) draws.
    """
    m, n = x.shape[:2]
    autocovariance = _autocovariance(x)  # [chains, lags, quantities]
    within = autocovariance[:, 0].mean(0) * n / (n - 1)
    total = within * (n - 1) / n + (x.mean(1).var(0, ddof=1) if m > 1 else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - autocovariance.mean(0)) / total
    rho[0] = 1.0
    pairs = rho[: n - n % 2].reshape(n // 2, 2, -1).sum(1)  # rho_2t + rho_2t+1
    last = max((n - 3) // 2, 1)
    positive = np.cumprod(pairs[:last] > 0, 0).astype(bool)
    monotone = np.minimum.accumulate(pairs[:last], 0)
    stop = positive.sum(0)  # the first pair that is not positive
    following = np.take_along_axis(rho[: 2 * last + 2], 2 * stop[None], 0)[0]
    tau = -1 + 2 * (monotone * positive).sum(0) + np.maximum(following, 0)
    tau = np.maximum(tau, 1 / np.log10(m * n))
    return np.where(total > 0, m * n / tau, np.nan)


def e_bfmi(energy: Any) -> np.ndarray:
    """Per chain, the energy's mean squared step over its variance (Betancourt 2016), [chains]."""
    energy = np.asarray(energy, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.diff(energy, axis=1) ** 2).mean(1) / energy.var(1)


def split(draws: Any) -> np.ndarray:
    """Each chain in two halves, the middle draw of an odd number left out: [2 m, n // 2, ...]."""
    x = np.asarray(draws, np.float64)
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, x.shape[1] - half :]])


def normal_scores(x: np.ndarray) -> np.ndarray:
    """Phi^-1((rank - 3/8) / (S + 1/4)) over all chains; ties share their mean rank (Blom 1958)."""
    flat = x.reshape(-1, x.shape[-1])
    ranks = np.stack([_ranks(column) for column in flat.T], 1).reshape(x.shape)
    return ndtri((ranks - 0.375) / (x.shape[0] * x.shape[1] + 0.25))


def _ranks(x: np.ndarray) -> np.ndarray:
    ordered = np.sort(x)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right") + 1) / 2


def _r_hat(x: np.ndarray) -> np.ndarray:
    n = x.shape[1]
    within = x.var(1, ddof=1).mean(0)
    between = x.mean(1).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((n - 1) / n + between / within)


def _autocovariance(x: np.ndarray) -> np.ndarray:
    """Per chain and lag, with 1 / n, by Fourier transform."""
    n = x.shape[1]
    size = 2 ** int(np.ceil(np.log2(2 * n)))
    power = np.abs(np.fft.rfft(x - x.mean(1, keepdims=True), size, axis=1)) ** 2
    return np.fft.irfft(power, size, axis=1)[:, :n] / n


def _require(x: np.ndarray, found: np.ndarray) -> np.ndarray:
    """NaN where a quantity is constant or not finite, or there are too few draws."""
    sound = np.isfinite(x).all((0, 1)) & (np.ptp(x, (0, 1)) > 0) & (x.shape[1] >= FEWEST)
    return np.where(sound, found, np.nan)
