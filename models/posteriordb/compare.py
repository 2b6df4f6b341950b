"""Draws of a posterior against its reference, parameter by parameter.

z = |mean - reference| / sqrt(mcse^2 + reference's mcse^2),   mcse = sd / sqrt(ESS)
error = |mean - reference| / reference's sd,                  ratio = sd / reference's sd
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

import varax as vx

from .data import Reference

Z, ERROR, RATIO = 5.0, 0.1, (0.93, 1.07)  # what long runs of a sampler are to meet
GUIDE_RATIO = (0.85, 1.15)  # of the standard deviations of a guide


@dataclasses.dataclass(frozen=True)
class Comparison:
    """P parameters of some draws beside the reference's.

    Attributes:
        names: [P].
        mean, sd: of the draws, [P].
        ess: their effective sample size, [P]; their number, for independent draws.
        r_hat: between chains, [P]; NaN for one chain.
        z, error, ratio: as above, [P].
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    z: np.ndarray
    error: np.ndarray
    ratio: np.ndarray

    @property
    def right(self) -> bool:
        """Whether draws of a sampler are the reference's within Monte Carlo error, and near it."""
        return bool((self.z <= Z).all()) and self.near(ERROR, RATIO)

    @property
    def close(self) -> bool:
        """Whether the draws of a guide have the reference's means and standard deviations."""
        return self.near(ERROR, GUIDE_RATIO)

    def near(self, error: float, ratio: tuple[float, float]) -> bool:
        """Whether all parameters are within bounds; what is not finite is not."""
        low, high = ratio
        inside = (self.error <= error) & (self.ratio >= low) & (self.ratio <= high)
        return bool(inside.all())

    def __str__(self) -> str:
        head = f"{'':14}{'mean':>12}{'sd':>12}{'ESS':>8}{'z':>7}{'error':>8}{'sd ratio':>10}"
        rows = [
            f"{name:14}{mean:12.4g}{sd:12.4g}{ess:8.0f}{z:7.2f}{error:8.3f}{ratio:10.3f}"
            for name, mean, sd, ess, z, error, ratio in zip(
                self.names,
                self.mean,
                self.sd,
                self.ess,
                self.z,
                self.error,
                self.ratio,
                strict=True,
            )
        ]
        return "\n".join([head, *rows])


def compare(reference: Reference, draws: np.ndarray, *, independent: bool = False) -> Comparison:
    """Compare draws [chains, draws, P] with a reference; `independent` ones have no mixing."""
    draws = np.asarray(draws, np.float64)
    count = draws.shape[0] * draws.shape[1]
    flat = draws.reshape(count, -1)
    mean, sd = flat.mean(0), flat.std(0, ddof=1)
    if independent:
        ess, r_hat = np.full(len(mean), float(count)), np.full(len(mean), np.nan)
    else:
        ess, r_hat = effective_sample_size(draws), split_gelman_rubin(draws)
    difference = np.abs(mean - reference.mean)
    mcse = sd / np.sqrt(ess)
    return Comparison(
        reference.names,
        mean,
        sd,
        np.asarray(ess),
        np.asarray(r_hat),
        difference / np.hypot(mcse, reference.mcse_mean),
        difference / reference.sd,
        sd / reference.sd,
    )


def columns(measure: vx.Measure, choices: dict[str, Any], reference: Reference) -> np.ndarray:
    """The reference's parameters at choices [n, ...] of the model: [n, P].

    Those that the model computes from its choices (`vx.deterministic`) are among them.
    """

    def one(c: Any) -> dict[str, Any]:
        trace, _ = measure.generate(jax.random.key(0), c)  # all is given: nothing is drawn
        return {site: trace[site] for site in reference.sites}

    return reference.columns(jax.jit(lambda c: jax.lax.map(one, c))(choices))
