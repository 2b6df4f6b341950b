"""Stochastic volatility of the S&P 500 (Kim, Shephard and Chib 1998).

h_0 ~ N(0, sigma / (1 - phi^2)^{1/2}),  h_t ~ N(phi h_{t-1}, sigma),
returns_t ~ N(0, exp((mu + h_t) / 2)),
(phi + 1) / 2 ~ Beta(20, 3/2),  mu ~ Cauchy(0, 5),  sigma ~ C+(0, 2)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import varax as vx
from varax import dist as d

Array = jax.Array


@vx.model
def stochastic_volatility(centered_returns: Any) -> None:
    """centered_returns: [T]. The path is made of its standardised shocks."""
    twice = d.transforms.AffineTransform(-1.0, 2.0, domain=d.constraints.unit_interval)
    prior = d.TransformedDistribution(d.Beta(20.0, 1.5), twice)
    phi = vx.sample("persistence_of_volatility", prior)
    mu = vx.sample("mean_log_volatility", d.Cauchy(0.0, 5.0))
    sigma = vx.sample("white_noise_shock_scale", d.HalfCauchy(2.0))
    steps = len(centered_returns)
    shocks = vx.sample("std_log_volatility", d.Normal(jnp.zeros(steps), 1.0))  # [T]

    def step(h: Array, shock: Array) -> tuple[Array, Array]:
        h = phi * h + sigma * shock
        return h, h

    first = sigma * shocks[0] / jnp.sqrt(1.0 - phi**2)
    _, rest = jax.lax.scan(step, first, shocks[1:])
    h = jnp.concatenate([first[None], rest])  # [T]
    log_volatility = vx.deterministic("log_volatility", mu + h)
    vx.sample("returns", d.Normal(0.0, jnp.exp(log_volatility / 2)), obs=centered_returns)


def returns(prices: Any, days: int | None = None) -> np.ndarray:
    """Daily changes less their mean, of the last days: [days]."""
    change = np.diff(prices)[-days if days else None :]
    return change - change.mean()
