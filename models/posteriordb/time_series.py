"""Autoregression, ARMA and GARCH: each value given those before."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import varax as vx
from varax import dist as d

Array = jax.Array


@vx.model
def arK(K: int, y: Any) -> None:
    """y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma) for t > K, given the first K values."""
    alpha = vx.sample("alpha", d.Normal(0.0, 10.0))
    beta = vx.sample("beta", d.Normal(jnp.zeros(K), 10.0))  # [K]
    sigma = vx.sample("sigma", d.HalfCauchy(2.5))
    lags = jnp.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], axis=1)  # [T - K, K]
    vx.sample("y", d.Normal(alpha + lags @ beta, sigma), obs=y[K:])


@vx.model
def arma11(T: int, y: Any = None) -> None:
    """y_t ~ N(mu + phi y_{t-1} + theta e_{t-1}, sigma), e_t = y_t - its mean, y_0 = mu, e_0 = 0."""
    mu = vx.sample("mu", d.Normal(0.0, 10.0))
    phi = vx.sample("phi", d.Normal(0.0, 2.0))
    theta = vx.sample("theta", d.Normal(0.0, 2.0))
    sigma = vx.sample("sigma", d.HalfCauchy(2.5))

    def step(before: tuple[Array, Array], y_t: Any) -> tuple[tuple[Array, Array], None]:
        last, error = before
        nu = mu + phi * last + theta * error
        y_t = vx.sample("y", d.Normal(nu, sigma), obs=y_t)
        return (y_t, y_t - nu), None

    jax.lax.scan(step, (mu, jnp.zeros_like(mu)), y, length=T)


@vx.model
def garch11(T: int, sigma1: float, y: Any = None) -> None:
    """y_t ~ N(mu, sigma_t), sigma_t^2 = alpha0 + alpha1 (y_{t-1} - mu)^2 + beta1 sigma_{t-1}^2.

    The prior is flat where alpha1 + beta1 < 1, and the series stationary.
    """
    mu = vx.sample("mu", d.Flat())
    alpha0 = vx.sample("alpha0", d.Flat(support=d.constraints.positive))
    alpha1 = vx.sample("alpha1", d.Flat(support=d.constraints.unit_interval))
    beta1 = vx.sample("beta1", d.Flat(support=d.constraints.interval(0.0, 1.0 - alpha1)))

    def step(variance: Array, y_t: Any) -> tuple[Array, None]:
        y_t = vx.sample("y", d.Normal(mu, jnp.sqrt(variance)), obs=y_t)
        return alpha0 + alpha1 * (y_t - mu) ** 2 + beta1 * variance, None

    jax.lax.scan(step, jnp.full_like(mu, sigma1**2), y, length=T)
