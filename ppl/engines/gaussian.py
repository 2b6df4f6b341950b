"""Gaussians on R^D whose parameters move by E_q of a log density's gradient and Hessian.

For q = N(m, P^-1) and the loss -log p, with g = E_q[-grad log p], H = E_q[-hess log p]:

    natural gradient     P <- P + rho (H - P),  m <- m - rho P_new^-1 g    (Khan and Rue 2023)
    Bures-Wasserstein    Sigma <- proximal step of the entropy from (I - eta H) Sigma (I - eta H),
                         m <- m - eta g    (Diao, Balasubramanian, Chewi and Salim 2023)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
KEPT = 0.9  # a retraction is linear until a direction has lost this share of its precision


class Moments(NamedTuple):
    """E_q[log p - log q], g [D], and H: [D, D], or its diagonal [D]."""

    elbo: Array
    gradient: Array
    hessian: Array


def moments(
    log_density: Callable[[Array], Array],
    mean: Array,
    scale: Array,
    key: Array,
    draws: int,
    hessian: str,
) -> Moments:
    """Unbiased estimates from antithetic pairs of draws m +- scale noise.

    Args:
        log_density: log p, of a vector [D].
        mean: [D].
        scale: q's lower-triangular square root of the covariance, [D, D], or standard deviations,
            [D]; H has its shape.
        key: randomness.
        draws: how many, rounded up to pairs.
        hessian: "exact" differentiates twice; "stein" takes E_q[hess f] = E_q[grad f (x - m)^T P]
            from the gradients (Bonnet's and Price's theorems), which costs no second derivative
            and is noisier.
    """
    half = jax.random.normal(key, ((draws + 1) // 2, mean.size), mean.dtype)
    noise = jnp.concatenate([half, -half])  # [n, D]
    full = scale.ndim == 2
    x = mean + (noise @ scale.T if full else noise * scale)
    log_p, slopes = jax.vmap(jax.value_and_grad(log_density))(x)
    if hessian == "exact":
        second = jax.vmap(jax.hessian(log_density) if full else diagonal(log_density))(x).mean(0)
    elif full:  # P (x - m) = scale^-T noise
        towards = jax.scipy.linalg.solve_triangular(scale, noise.T, trans=1, lower=True).T
        second = slopes.T @ towards / len(x)
        second = (second + second.T) / 2
    else:
        second = (slopes * noise / scale).mean(0)
    log_det = jnp.log(jnp.diagonal(scale) if full else scale).sum()
    log_q = -0.5 * (noise**2).sum(-1) - log_det - 0.5 * mean.size * jnp.log(2 * jnp.pi)
    return Moments((log_p - log_q).mean(), -slopes.mean(0), -second)


def diagonal(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The diagonal of the Hessian, a column at a time: no matrix [D, D] is held."""

    def at(x: Array) -> Array:
        def entry(i: Array) -> Array:
            e = jnp.zeros_like(x).at[i].set(1.0)
            return jax.jvp(jax.grad(f), (x,), (e,))[1][i]

        return jax.lax.map(entry, jnp.arange(x.size))

    return at


def retract(x: Array) -> Array:
    """1 + x where x > -KEPT, continued with the same slope so that it stays positive."""
    far = (1 - KEPT) ** 2 / (1 - 2 * KEPT - jnp.minimum(x, -KEPT))
    return jnp.where(x > -KEPT, 1 + x, far)


def next_precision(precision: Array, hessian: Array, rate: Array) -> Array:
    """P + rho (H - P), kept positive definite.

    In the eigenvectors of P^-1/2 (H - P) P^-1/2, where the identity moves, direction i is scaled by
    retract(rho x_i): the plain step but for directions that would lose more than nine tenths of
    their precision. (Lin, Schmidt and Khan 2020 add rho^2 / 2 (H - P) P^-1 (H - P) instead, which
    also changes the steps that are sound.)
    """
    if precision.ndim == 1:
        return precision * retract(rate * (hessian / precision - 1))
    root = jnp.linalg.cholesky(precision)
    left = jax.scipy.linalg.solve_triangular(root, hessian - precision, lower=True)
    inner = jax.scipy.linalg.solve_triangular(root, left.T, lower=True)
    values, vectors = jnp.linalg.eigh((inner + inner.T) / 2)
    grown = root @ vectors
    return (grown * retract(rate * values)) @ grown.T


def square_root(precision: Array) -> Array:
    """The scale of a precision: lower triangular [D, D] with scale scale^T = P^-1, or [D]."""
    if precision.ndim == 1:
        return 1 / jnp.sqrt(precision)
    flipped = jnp.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1]  # U U^T = P, U upper
    return jax.scipy.linalg.solve_triangular(flipped, jnp.eye(len(precision)), lower=False).T


def solve(precision: Array, vector: Array) -> Array:
    """P^-1 v."""
    if precision.ndim == 1:
        return vector / precision
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(precision), True), vector)


def forward_backward(covariance: Array, hessian: Array, rate: Array) -> Array:
    """One step of the covariance along the Bures-Wasserstein gradient.

    Forward along the potential, then the exact proximal step of the entropy (Diao, Balasubramanian,
    Chewi and Salim 2023): eigenvalues s of (I - eta H) Sigma (I - eta H) become
    (s + 2 eta + sqrt(s (s + 4 eta))) / 2.
    """
    step = jnp.eye(len(covariance)) - rate * hessian
    s, vectors = jnp.linalg.eigh(step @ covariance @ step.T)
    s = jnp.maximum(s, 0)
    return (vectors * (s + 2 * rate + jnp.sqrt(s * (s + 4 * rate))) / 2) @ vectors.T
