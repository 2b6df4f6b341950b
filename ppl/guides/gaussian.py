"""Gaussian guides on the unconstrained space, in coordinates of their start.

    mean-field    u_i = c_i + s_i (delta_i + exp(rho_i) eps_i)
    full-rank     u = c + S (delta + T eps),  T lower triangular
    low-rank      u = c + s (delta + W eta + exp(rho) eps),  W [D, R]

with c and S (s: standard deviations) from `start.find_start`. All parameters are zero at first, but
for W: one learning rate suits all, whatever the units of the model.

Kucukelbir, Tran, Ranganath, Gelman and Blei 2017; Ong, Nott and Smith 2018 (low rank).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from .start import Start

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MeanField:
    """Independent normals, whose scales start at those of each coordinate given the others."""

    start: Start

    inverts = True  # its density at a given value is cheap

    def init(self, key: Array) -> Any:
        """Parameters."""
        zero = jnp.zeros_like(self.start.center)
        return {"shift": zero, "log_scale": zero}

    def distribution(self, params: Any) -> Any:
        """The distribution of u, [D]."""
        s = self.start.conditional
        loc = self.start.center + s * params["shift"]
        return npd.Normal(loc, s * jnp.exp(params["log_scale"])).to_event(1)


@dataclasses.dataclass(frozen=True)
class FullRank:
    """A normal with any covariance."""

    start: Start

    inverts = True  # its density at a given value is cheap

    def init(self, key: Array) -> Any:
        """Parameters."""
        d = self.start.center.size
        return {"shift": jnp.zeros(d), "log_scale": jnp.zeros(d), "lower": jnp.zeros((d, d))}

    def distribution(self, params: Any) -> Any:
        """The distribution of u, [D]."""
        scale = as_matrix(self.start)
        t = jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["log_scale"]))
        loc = self.start.center + scale @ params["shift"]
        return npd.MultivariateNormal(loc, scale_tril=scale @ t)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """A normal whose covariance is diagonal but for `rank` directions."""

    start: Start
    rank: int

    inverts = True

    def init(self, key: Array) -> Any:
        """Parameters: W is small and random, since its gradient is zero at zero."""
        d = self.start.center.size
        factor = 0.1 * jax.random.normal(key, (d, self.rank)) / jnp.sqrt(self.rank)
        return {"shift": jnp.zeros(d), "log_scale": jnp.zeros(d), "factor": factor}

    def distribution(self, params: Any) -> Any:
        """The distribution of u, [D]."""
        s = self.start.conditional
        loc = self.start.center + s * params["shift"]
        factor = s[:, None] * params["factor"]
        variance = (s * jnp.exp(params["log_scale"])) ** 2
        return npd.LowRankMultivariateNormal(loc, factor, variance)


@dataclasses.dataclass(frozen=True)
class Laplace:
    """The normal of the start: nothing to train."""

    start: Start

    inverts = True  # its density at a given value is cheap

    def init(self, key: Array) -> Any:
        """No parameters."""
        return {}

    def distribution(self, params: Any) -> Any:
        """The distribution of u, [D]."""
        return npd.MultivariateNormal(self.start.center, scale_tril=as_matrix(self.start))


def as_matrix(start: Start) -> Array:
    """S, [D, D]."""
    return start.scale if start.scale.ndim == 2 else jnp.diag(start.scale)
