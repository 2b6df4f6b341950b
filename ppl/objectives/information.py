"""Mutual information I(x; y) from a critic's scores of a minibatch of pairs.

scores[i, j] = f(x_i, y_j), [K, K]: pairs from the joint distribution on the diagonal, from the
product of the marginals off it. The best critic is log p(y | x) / p(y), up to a constant that
depends on the bound. All but `smile` are maximised over the critic.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.errors import ShapeError
from .tags import tagged


@tagged("consistent", "Donsker and Varadhan 1983")
def donsker_varadhan(scores: jax.Array) -> jax.Array:
    """[consistent] E_joint[f] - log E_product[e^f] <= I(x; y), with a sample's mean in the log.

    The estimate's expectation can exceed I(x; y), and its variance grows with exp(I). Also known
    as MINE (Belghazi et al. 2018). Donsker and Varadhan 1983.
    """
    return _joint(scores) - _log_mean_product(scores)


@tagged("lower bound", "Nguyen, Wainwright and Jordan 2010")
def nwj(scores: jax.Array) -> jax.Array:
    """[lower bound] E_joint[f] - E_product[e^(f - 1)] <= I(x; y), tight at 1 + log p(y | x) / p(y).

    Its variance grows with exp(I). Nguyen, Wainwright and Jordan 2010.
    """
    return _joint(scores) - jnp.exp(_log_mean_product(scores) - 1)


@tagged("lower bound", "van den Oord, Li and Vinyals 2018")
def infonce(scores: jax.Array) -> jax.Array:
    """[lower bound] E[log e^f(x_i, y_i) / (1/K sum_j e^f(x_i, y_j))] <= min(I(x; y), log K).

    van den Oord, Li and Vinyals 2018.
    """
    _require_square(scores)
    return _joint(scores) - jax.nn.logsumexp(scores, 1).mean() + jnp.log(len(scores))


@tagged("consistent", "Song and Ermon 2020")
def smile(scores: jax.Array, clip: Any = 5.0) -> jax.Array:
    """[consistent] E_joint[f] - log E_product[clip(e^f, e^-clip, e^clip)]: bounded variance.

    For the value alone: consistent as `clip` and K grow, no bound for a finite `clip`. The critic
    is trained by `jensen_shannon`. Song and Ermon 2020.
    """
    return _joint(scores) - _log_mean_product(jnp.clip(scores, -clip, clip))


@tagged("heuristic", "Nowozin, Cseke and Tomioka 2016")
def jensen_shannon(scores: jax.Array) -> jax.Array:
    """[heuristic] -E_joint[softplus(-f)] - E_product[softplus(f)]: trains a critic for `smile`.

    Its optimum is log p(y | x) / p(y); the value is 2 JS(joint || product) - 2 log 2.

    Nowozin, Cseke and Tomioka 2016.
    """
    _require_square(scores)
    product = jnp.where(jnp.eye(len(scores), dtype=bool), 0.0, jax.nn.softplus(scores))
    return -_joint(jax.nn.softplus(-scores)) - product.sum() / _pairs(scores)


def _joint(scores: jax.Array) -> jax.Array:
    return jnp.diagonal(scores).mean()


def _log_mean_product(scores: jax.Array) -> jax.Array:
    _require_square(scores)
    off = jnp.where(jnp.eye(len(scores), dtype=bool), -jnp.inf, scores)
    return jax.nn.logsumexp(off) - jnp.log(_pairs(scores))


def _pairs(scores: jax.Array) -> int:
    return len(scores) * (len(scores) - 1)


def _require_square(scores: jax.Array) -> None:
    shape = jnp.shape(scores)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise ShapeError(
            "A critic scores every x of a minibatch with every y.",
            expected="scores [K, K], K at least 2",
            got=f"shape {shape}",
            where=user_line(),
        )
