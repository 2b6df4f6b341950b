"""Importance sampling with k particles, and importance resampling."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from ..site import bind_site, make_site
from .base import Algorithm, Particle, Target


@dataclasses.dataclass(frozen=True)
class Importance(Algorithm):
    """k independent proposals.

        Z^ = 1/k sum_i w_i,   w_i = gamma(u_i) / r(u_i),   u_i ~ r

    `conditional` puts the given particle in the place of one of them. `draw` picks one with
    probability w_i / sum_j w_j (sampling importance resampling).

    Args:
        particles: k >= 1.
        estimator: of the index that `draw` picks (default: as for any discrete choice).

    Rubin 1988; Domke and Sheldon 2018; Lew, Cusumano-Towner and Mansinghka 2022.
    """

    particles: int
    estimator: Any = None
    name = "importance"

    def evidence(self, target: Target) -> jax.Array:
        return self._mean(self._propose(target, self.particles).log_weight)

    def conditional(self, target: Target, retained: Particle) -> jax.Array:
        weight = retained.log_weight[None]
        if self.particles > 1:
            others = self._propose(target, self.particles - 1).log_weight
            weight = jnp.concatenate([weight, others])
        return self._mean(weight)

    def draw(self, target: Target) -> tuple[Particle, jax.Array]:
        particles = self._propose(target, self.particles)
        log_z = self._mean(particles.log_weight)
        return pick(particles, target, self.estimator), log_z

    def _propose(self, target: Target, n: int) -> Particle:
        return jax.vmap(lambda _: target.propose())(jnp.arange(n))

    def _mean(self, log_w: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(log_w) - jnp.log(self.particles)


def pick(particles: Particle, target: Target, estimator: Any) -> Particle:
    """One particle, with probability proportional to its weight."""
    if len(particles.log_weight) == 1:
        return jax.tree.map(lambda x: x[0], particles)
    address = (*target.prefix, "index")
    weights = npd.Categorical(logits=particles.log_weight, validate_args=False)
    index = bind_site(*make_site(address, "draw", weights, estimator=estimator))
    return jax.tree.map(lambda x: x[index], particles)
