"""Draws of a target against its ground truth, by the gym's rule.

    |mean - truth| <= 5 (var / ESS + mcse^2)^{1/2}
    |var - sd^2|   <= 5 ((m4 - var^2) / ESS)^{1/2},      m4 the fourth central moment

The ground truth has no standard error for its standard deviations. The effective sample size is
that of the draws for the mean, and that of their squared deviations for the variance: chains of
NUTS have fewer effective draws of the latter, often by a factor of ten.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from .data import Truth

Z = 5.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One part of a target, of any shape.

    Attributes:
        mean, sd: of the draws.
        ess: effective sample size for the means.
        r_hat: between chains.
        z_mean, z_variance: distances from the truth in standard errors.
        error: of the means, in the truth's standard deviations.
        ratio: of the standard deviations.
    """

    mean: np.ndarray
    sd: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    z_mean: np.ndarray
    z_variance: np.ndarray
    error: np.ndarray
    ratio: np.ndarray

    @property
    def right(self) -> bool:
        """Whether every mean and variance is within five standard errors."""
        return bool((self.z_mean <= Z).all() and (self.z_variance <= Z).all())


def compare(truth: dict[str, Truth], draws: dict[str, Any]) -> dict[str, Comparison]:
    """Compare draws with the truth, both by part; draws have shape [chains, draws, *shape]."""
    return {part: _compare(truth[part], np.asarray(draws[part], np.float64)) for part in truth}


def _compare(truth: Truth, x: np.ndarray) -> Comparison:
    mean = x.mean((0, 1))
    square = (x - mean) ** 2
    variance = square.mean((0, 1))
    ess = np.asarray(effective_sample_size(x))
    error = np.abs(mean - truth.mean)
    spread = square.var((0, 1)) / np.asarray(effective_sample_size(square))
    return Comparison(
        mean,
        np.sqrt(variance),
        ess,
        np.asarray(split_gelman_rubin(x)),
        error / np.sqrt(variance / ess + truth.mcse_mean**2),
        np.abs(variance - truth.sd**2) / np.sqrt(spread),
        error / truth.sd,
        np.sqrt(variance) / truth.sd,
    )
