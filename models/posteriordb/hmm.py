"""A hidden Markov model with two states and normal emissions, its path summed out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import varax as vx
from varax import dist as d

Array = jax.Array


@vx.model
def hmm_example(K: int, y: Any) -> None:
    """theta1 and theta2 are the rows of the transition matrix, mu the states' means.

    Simplices have flat priors; the first state is either, with weight one each.
    """
    theta1 = vx.sample("theta1", d.Dirichlet(jnp.ones(K)))  # [K]
    theta2 = vx.sample("theta2", d.Dirichlet(jnp.ones(K)))  # [K]
    prior = d.Normal(jnp.array([3.0, 10.0]), 1.0)
    mu = vx.sample("mu", d.Restricted(prior, d.constraints.positive_ordered_vector))  # [2]
    emission = d.Normal(mu, 1.0).log_prob(jnp.asarray(y, float)[:, None])  # [N, K]
    vx.factor("y", forward(jnp.log(jnp.stack([theta1, theta2])), emission))


def forward(log_transition: Array, log_emission: Array) -> Array:
    """log sum over the paths z of prod_t p(y_t | z_t) p(z_t | z_{t-1}); [K, K], [N, K] to []."""

    def step(alpha: Array, emission: Array) -> tuple[Array, None]:
        return jax.nn.logsumexp(alpha[:, None] + log_transition, axis=0) + emission, None

    alpha, _ = jax.lax.scan(step, log_emission[0], log_emission[1:])  # [K]
    return jax.nn.logsumexp(alpha)
