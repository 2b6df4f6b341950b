"""Earnings on height in dollars and logarithms, flat priors (Gelman and Hill 2006, chapter 4)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def earn_height(height: Any, earn: Any = None) -> None:
    """In dollars: the intercept is some -60,000, sigma some 19,000."""
    beta = vx.sample("beta", d.Flat(2))
    sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
    vx.sample("earn", d.Normal(beta[0] + beta[1] * height, sigma), obs=earn)  # [N]


@vx.model
def logearn_height(height: Any, earn: Any) -> None:
    """In logarithms."""
    beta = vx.sample("beta", d.Flat(2))
    sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
    mean = beta[0] + beta[1] * height  # [N]
    vx.sample("log_earn", d.Normal(mean, sigma), obs=jnp.log(jnp.asarray(earn, float)))
