"""A mixture of two normals, their means in order."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def low_dim_gauss_mix(N: int, y: Any = None) -> None:
    """theta is the weight of the lower component; which one a value came from is summed out."""
    prior = d.Normal(jnp.zeros(2), 2.0)
    mu = vx.sample("mu", d.Restricted(prior, d.constraints.ordered_vector))  # [2]
    sigma = vx.sample("sigma", d.HalfNormal(2.0 * jnp.ones(2)))  # [2]
    theta = vx.sample("theta", d.Beta(5.0, 5.0))
    weights = d.Categorical(jnp.stack([theta, 1.0 - theta]))
    mixture = d.MixtureSameFamily(weights, d.Normal(mu, sigma))
    vx.sample("y", mixture.expand((N,)), obs=y)  # [N]
