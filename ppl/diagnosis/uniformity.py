"""Are ranks uniform? Simultaneous bounds on their distribution function, and chi-square.

For N uniform ranks on 0, ..., S the counts c_i = #{rank < i} are binomial, Bin(N, z_i) with
z_i = i / (S + 1), and c is a Markov chain: c_i+1 - c_i given c_i is Bin(N - c_i, (z_i+1 - z_i) /
(1 - z_i)). With the smallest pointwise two-sided tail of all i,

    gamma = 2 min_i min(P(C_i <= c_i), P(C_i >= c_i)),

the probability of a smaller one is one minus that of staying inside a band, which the chain gives
exactly (Säilynoja, Bürkner and Vehtari 2022, Statistics and Computing 32, algorithm 2).
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import bdtr, bdtrc, chdtrc, gammaln, xlog1py, xlogy

POINTS = 100  # at which the distribution function is looked at, at most
ROUNDING = 1e-9  # by which equal tails may differ
NEGLIGIBLE = 1e-9  # below which the union bound serves in the place of the exact probability


def grid(draws: int) -> np.ndarray:
    """The i at which counts are taken, increasing, in 1, ..., S."""
    return np.unique(np.linspace(1, draws, min(draws, POINTS)).round().astype(int))


def counts(ranks: np.ndarray, draws: int) -> np.ndarray:
    """#{rank < i} on the grid, for ranks [N] among S draws."""
    return np.searchsorted(np.sort(ranks), grid(draws), "left")


def p_value(ranks: np.ndarray, draws: int) -> float:
    """P(a smaller gamma) of N independent uniform ranks: exact, at all points together.

    Far in the tail, below 1e-9, the union bound, which is larger.
    """
    at, n = counts(ranks, draws), len(ranks)
    below, above = _tails(n, draws)
    rows = np.arange(len(at))
    gamma = 2 * min(below[rows, at].min(), above[rows, at].min())
    bound = len(at) * gamma
    return float(bound if bound < NEGLIGIBLE else min(max(1 - _inside(n, draws, gamma), 0.0), 1.0))


def band(n: int, draws: int, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z_i, and bounds on the counts that all uniform ranks obey with probability `level`."""
    low, high = 0.0, 1.0
    for _ in range(30):  # the largest gamma whose band has at least the level
        gamma = (low + high) / 2
        low, high = (gamma, high) if _inside(n, draws, gamma) >= level else (low, gamma)
    least, most = _bounds(n, draws, low)
    return grid(draws) / (draws + 1), least, most


def chi_square(ranks: np.ndarray, draws: int) -> float:
    """The p-value of Pearson's chi-square over at most twenty bins of about equal width."""
    bins = max(2, min(20, len(ranks) // 10, draws + 1))
    edges = np.linspace(0, draws + 1, bins + 1).round()
    expected = len(ranks) * np.diff(edges) / (draws + 1)
    found = np.histogram(ranks, edges)[0]
    return float(chdtrc(bins - 1, ((found - expected) ** 2 / expected).sum()))


@functools.lru_cache(maxsize=8)
def _tails(n: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """P(C_i <= r) and P(C_i >= r), [i, r = 0, ..., N]."""
    z, r = (grid(draws) / (draws + 1))[:, None], np.arange(n + 1)
    return bdtr(r, n, z), np.where(r == 0, 1.0, bdtrc(np.maximum(r - 1, 0), n, z))


def _bounds(n: int, draws: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Per i, the least and the largest count whose two-sided tail is above gamma."""
    below, above = _tails(n, draws)
    limit = gamma / 2 * (1 + ROUNDING)
    return (below <= limit).sum(1), (above > limit).sum(1) - 1


def _inside(n: int, draws: int, gamma: float) -> float:
    """The probability that every count's two-sided tail is above gamma."""
    z = np.concatenate([[0.0], grid(draws) / (draws + 1)])
    least, most = _bounds(n, draws, gamma)
    if (least > most).any():
        return 0.0
    states, probability = np.zeros(1, int), np.ones(1)
    for i, (low, high) in enumerate(zip(least, most, strict=True)):
        after = np.arange(low, high + 1)
        share = (z[i + 1] - z[i]) / (1 - z[i])
        left, more = n - states[:, None], after - states[:, None]
        possible = (more >= 0) & (more <= left)
        k = np.where(possible, more, 0)
        log_p = gammaln(left + 1) - gammaln(k + 1) - gammaln(left - k + 1)
        log_p = log_p + xlogy(k, share) + xlog1py(left - k, -share)
        probability = probability @ np.where(possible, np.exp(log_p), 0.0)
        states = after
    return float(probability.sum())
