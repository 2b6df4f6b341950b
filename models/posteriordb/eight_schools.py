"""Eight schools (Rubin 1981; Gelman et al. 2013, section 5.5): effects of coaching, partly pooled.

mu ~ N(0, 5),  tau ~ C+(0, 5),  theta_j ~ N(mu, tau),  y_j ~ N(theta_j, sigma_j)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def eight_schools_centered(sigma: Any, y: Any = None) -> None:
    """theta is drawn given mu and tau: a funnel."""
    mu = vx.sample("mu", d.Normal(0.0, 5.0))
    tau = vx.sample("tau", d.HalfCauchy(5.0))
    theta = vx.sample("theta", d.Normal(mu, tau).expand(jnp.shape(sigma)))  # [J]
    vx.sample("y", d.Normal(theta, sigma), obs=y)  # [J]


@vx.model
def eight_schools_noncentered(sigma: Any, y: Any = None) -> None:
    """theta = mu + tau theta_trans: the same law, without the funnel."""
    mu = vx.sample("mu", d.Normal(0.0, 5.0))
    tau = vx.sample("tau", d.HalfCauchy(5.0))
    theta_trans = vx.sample("theta_trans", d.Normal(jnp.zeros(jnp.shape(sigma)), 1.0))  # [J]
    theta = vx.deterministic("theta", mu + tau * theta_trans)  # [J]
    vx.sample("y", d.Normal(theta, sigma), obs=y)  # [J]
