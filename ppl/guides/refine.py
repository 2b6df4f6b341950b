"""A Gaussian closer to the posterior: natural-gradient steps on its ELBO with fixed draws.

    P <- (1 - r) P + r E[H],  u <- u - r P^{-1} E[g],      q = N(u, P^{-1})

g and H are the gradient and Hessian of the potential. The draws u + L eps are balanced,
so the expectations are exact for a Gaussian posterior, and E[H] = E[g eps^T] L^{-1} (Stein's lemma)
needs gradients alone. A step that does not raise the ELBO on these draws is halved.

Khan and Rue 2023 (the Bayesian learning rule); Lin, Khan and Schmidt 2019 (Stein's lemma).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
STEPS = 40
RATE = 0.5  # r, at first


class Gaussian(NamedTuple):
    """N(center, scale scale^T) and its ELBO on some draws."""

    center: Array
    scale: Array
    elbo: Array


def balanced(key: Array, d: int, draws: int) -> Array:
    """Standard normal draws [about `draws`, D]: mean zero and, for D <= draws, covariance I."""
    if d > draws:
        half = jax.random.normal(key, (draws // 2, d))
        return jnp.concatenate([half, -half])
    blocks = max(1, draws // (2 * d))
    turn, far = jax.random.split(key)
    axes = jnp.linalg.qr(jax.random.normal(turn, (blocks, d, d)))[0]
    radius = jax.random.chisquare(far, d, (blocks,)) if blocks > 1 else jnp.ones(1)
    radius = jnp.sqrt(radius / radius.mean() * d)  # [blocks]
    half = (radius[:, None, None] * axes).reshape(blocks * d, d)
    return jnp.concatenate([half, -half])


def bound(energy: Callable[[Array], Array], u: Array, scale: Array, eps: Array) -> Array:
    """The ELBO of a Gaussian with a factor [D, D] or standard deviations [D], on some draws."""
    draws = u + (eps @ scale.T if scale.ndim == 2 else eps * scale)
    diagonal = jnp.diag(scale) if scale.ndim == 2 else scale
    entropy = 0.5 * u.size * (1 + jnp.log(2 * jnp.pi)) + jnp.log(diagonal).sum()
    return -jax.lax.map(energy, draws).mean() + entropy


def refine(energy: Callable[[Array], Array], u: Array, scale: Array, eps: Array) -> Gaussian:
    """A Gaussian with a higher ELBO than N(u, scale scale^T), by at most 40 steps.

    Args:
        energy: of the posterior, [D] to [].
        u, scale: [D] and [D, D], lower triangular.
        eps: balanced draws, [S, D].
    """
    slope = jax.grad(energy)
    identity = jnp.eye(u.size)

    def step(carry: tuple[Gaussian, Array], _: None) -> tuple[tuple[Gaussian, Array], None]:
        now, rate = carry
        g = jax.lax.map(slope, now.center + eps @ now.scale.T)  # [S, D]
        # in coordinates of the present Gaussian: precision I, Hessian L^T H L = E[L^T g eps^T]
        white = g @ now.scale  # L^T g
        hessian = white.T @ eps / len(eps)
        precision = (1 - rate) * identity + rate * (hessian + hessian.T) / 2
        values, vectors = jnp.linalg.eigh(jnp.nan_to_num(precision))
        values = jnp.clip(jnp.abs(values), 0.1, 10.0)  # at most so much in one step
        root = vectors / jnp.sqrt(values)  # root root^T = precision^{-1}
        move = root @ (root.T @ white.mean(0))
        factor = jnp.linalg.qr((now.scale @ root).T, mode="r").T
        factor = factor * jnp.where(jnp.diag(factor) < 0, -1.0, 1.0)
        center = now.center - rate * now.scale @ move
        trial = Gaussian(center, factor, bound(energy, center, factor, eps))
        good = trial.elbo > now.elbo
        now = jax.tree.map(lambda a, b: jnp.where(good, a, b), trial, now)
        return (now, jnp.where(good, jnp.minimum(1.0, 1.5 * rate), rate / 2)), None

    first = Gaussian(u, scale, bound(energy, u, scale, eps))
    rate = jnp.full((), RATE, u.dtype)
    return jax.lax.scan(step, (first, rate), length=STEPS)[0][0]
