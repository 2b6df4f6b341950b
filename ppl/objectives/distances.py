"""Distances between two samples, such as the draws of a guide over a minibatch and of the prior.

x is [n, D] and y is [m, D]; the rows of each are drawn independently of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.errors import ShapeError
from .. import dist
from ..language import sample
from .tags import tagged
from .weights import require_draws

Kernel = Callable[[jax.Array], jax.Array]  # of the squared distance


def rbf(scale: Any = 1.0) -> Kernel:
    """exp(-|x - y|^2 / (2 scale^2))."""
    return lambda squared: jnp.exp(-squared / (2 * jnp.square(scale)))


def imq(scale: Any = 1.0) -> Kernel:
    """Inverse multiquadric, scale^2 / (scale^2 + |x - y|^2): heavier tails than `rbf`."""
    return lambda squared: jnp.square(scale) / (jnp.square(scale) + squared)


@tagged("unbiased", "Gretton, Borgwardt, Rasch, Scholkopf and Smola 2012", minimise=True)
def mmd(x: jax.Array, y: jax.Array, kernel: Kernel | None = None) -> jax.Array:
    """[unbiased] Squared maximum mean discrepancy, E k(x, x') - 2 E k(x, y) + E k(y, y').

    Zero in the mean if both samples have the same distribution, so a single value may be negative.

    Args:
        x, y: samples, [n, D] and [m, D], n and m at least 2.
        kernel: `rbf(scale)`, `imq(scale)`, or a function of the squared distance; by default
            `imq(sqrt(2 D))`, whose scale is the expected distance of two standard normal draws.

    Gretton, Borgwardt, Rasch, Scholkopf and Smola 2012.
    """
    k = kernel or imq((2 * x.shape[-1]) ** 0.5)
    return (
        _apart(k(squared_distances(x, x)))
        + _apart(k(squared_distances(y, y)))
        - 2 * k(squared_distances(x, y)).mean()
    )


@tagged("heuristic", "Zhao, Song and Ermon 2019")
def infovae(
    log_likelihood: jax.Array, kl: jax.Array, divergence: jax.Array, alpha: Any, scale: Any
) -> jax.Array:
    """[heuristic] InfoVAE: mean log p(x | z) - (1 - alpha) mean KL - (alpha + lambda - 1) D.

    Args:
        log_likelihood, kl: of each point of a minibatch, [B], as from `elbo_terms`.
        divergence: D of the aggregated posterior from the prior, such as `mmd`.
        alpha: weight of the mutual information of data and code; 0 is that of the ELBO.
        scale: lambda. The ELBO has alpha = 0 and lambda = 1.

    Zhao, Song and Ermon 2019.
    """
    return (
        log_likelihood.mean() - (1 - alpha) * kl.mean() - (alpha + scale - 1) * jnp.mean(divergence)
    )


@tagged("consistent", "Kolouri, Pope, Martin and Rohde 2019", minimise=True)
def sliced_wasserstein(
    x: jax.Array, y: jax.Array, projections: int = 50, address: str = "directions"
) -> jax.Array:
    """[consistent] Squared: the mean over directions of W2^2 of the two projected samples.

        W2^2 = 1/n sum_i (x_(i) - y_(i))^2,   x_(i) the i-th smallest of theta' x

    Unbiased over directions; positive also for two samples of one distribution.

    Args:
        x, y: samples of one shape, [n, D].
        projections: number of directions, drawn uniformly from the sphere.
        address: of the random choice that they are.

    Kolouri, Pope, Martin and Rohde 2019.
    """
    _require_samples(x, y, paired=True)
    theta = sample(address, dist.Normal(jnp.zeros((projections, x.shape[1])), 1.0))  # [P, D]
    theta = theta / jnp.linalg.norm(theta, axis=1, keepdims=True)
    return jnp.mean((jnp.sort(x @ theta.T, 0) - jnp.sort(y @ theta.T, 0)) ** 2)


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """|x_i - y_j|^2, [n, m]; x: [n, D], y: [m, D]."""
    _require_samples(x, y)
    return ((x[:, None] - y) ** 2).sum(-1)


def _apart(k: jax.Array) -> jax.Array:
    """The mean of the entries off the diagonal."""
    n = len(k)
    require_draws(n, least=2)
    return (k.sum() - jnp.trace(k)) / (n * (n - 1))


def _require_samples(x: jax.Array, y: jax.Array, *, paired: bool = False) -> None:
    one, other = jnp.shape(x), jnp.shape(y)
    alike = one == other if paired else one[1:] == other[1:]
    if len(one) != 2 or len(other) != 2 or not alike:
        raise ShapeError(
            "Two samples are compared row by row of the same length.",
            expected="shapes [n, D] and " + ("[n, D]" if paired else "[m, D]"),
            got=f"shapes {list(one)} and {list(other)}",
            where=user_line(),
            fix="x[:, None] for samples of scalars",
        )
