"""Gaussian processes at eleven inputs: Gaussian noise, f integrated out, and Poisson counts.

rho ~ Gamma(25, 4),  alpha ~ N+(0, 2),  f ~ GP(0, k),
k(x, x') = alpha^2 exp(-(x - x')^2 / (2 rho^2))
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def gp_regr(x: Any, y: Any = None) -> None:
    """y ~ N(0, K + sigma I): sigma is the noise's variance, as in the Stan program."""
    rho, alpha = scales()
    sigma = vx.sample("sigma", d.HalfNormal(1.0))
    cov = kernel(x, alpha, rho) + sigma * jnp.eye(len(x))  # [N, N]
    vx.sample("y", d.MultivariateNormal(jnp.zeros(len(x)), cov), obs=y)


@vx.model
def gp_pois_regr(x: Any, k: Any = None) -> None:
    """k_n ~ Poisson(exp f_n), f = L f_tilde with L the Cholesky factor of the covariance."""
    rho, alpha = scales()
    f_tilde = vx.sample("f_tilde", d.Normal(jnp.zeros(len(x)), 1.0))  # [N]
    jitter = max(1e-10, 10 * float(jnp.finfo(jnp.zeros(()).dtype).eps))  # 1e-10 in float64
    factor = jnp.linalg.cholesky(kernel(x, alpha, rho) + jitter * jnp.eye(len(x)))
    f = vx.deterministic("f", factor @ f_tilde)  # [N]
    vx.sample("k", d.Poisson(jnp.exp(f)), obs=k)


def scales() -> tuple[jax.Array, jax.Array]:
    """Length scale and amplitude."""
    rho = vx.sample("rho", d.Gamma(25.0, 4.0))
    return rho, vx.sample("alpha", d.HalfNormal(2.0))


def kernel(x: Any, alpha: jax.Array, rho: jax.Array) -> jax.Array:
    """The covariance of f, [N, N]."""
    x = jnp.asarray(x, float)
    return alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
