"""Linear regressions on given design matrices."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def blr(X: Any, y: Any = None) -> None:
    """Wide priors, predictors correlated so that the posterior's correlations are 0.8."""
    beta = vx.sample("beta", d.Normal(jnp.zeros(X.shape[1]), 10.0))  # [D]
    sigma = vx.sample("sigma", d.HalfNormal(10.0))
    vx.sample("y", d.Normal(X @ beta, sigma), obs=y)


@vx.model
def diamonds(X: Any, Y: Any = None) -> None:
    """Log prices of diamonds, on contrasts and logarithms nearly collinear (brms; Bürkner 2017).

    X: [N, K], its first column ones, which the intercept of the centred predictors replaces.
    """
    b = vx.sample("b", d.Normal(jnp.zeros(X.shape[1] - 1), 1.0))  # [K - 1]
    intercept = vx.sample("Intercept", d.StudentT(3.0, 8.0, 10.0))
    t = d.StudentT(3.0, 0.0, 10.0)
    sigma = vx.sample("sigma", d.Restricted(t, d.constraints.positive))
    x = jnp.asarray(X)[:, 1:]
    x = x - x.mean(0)  # [N, K - 1]
    vx.sample("Y", d.Normal(intercept + x @ b, sigma), obs=Y)
