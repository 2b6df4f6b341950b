"""Bounds on log p(x) from the weights w = p(x, z) / q(z) of a guide's draws.

ELBO <= MIWAE, CIWAE <= IWELBO <= log p(x) <= CUBO
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...transforms.choices import Choices
from ..measure import Measure
from .tags import tagged
from .terms import elbo_terms
from .weights import log_mean_exp, log_weight, log_weights, require_draws


@tagged("lower bound", "Jordan, Ghahramani, Jaakkola and Saul 1999")
def elbo(p: Measure, q: Measure, data: Choices, *, analytic_kl: bool = False) -> jax.Array:
    """[lower bound] Evidence lower bound, E_q[log p(x, z) - log q(z)] <= log p(x).

    Args:
        p: model of all addresses; q: guide of those not in `data`; data: observed choices of p.
        analytic_kl: whether KL(q || p) at an address is taken in closed form where there is one
            (see `elbo_terms`), mostly for less variance.

    Raises:
        GuideMismatchError: q's addresses and data are not together p's, each once.

    Jordan, Ghahramani, Jaakkola and Saul 1999.
    """
    if analytic_kl:
        log_likelihood, kl = elbo_terms(p, q, data, analytic_kl=True)
        return log_likelihood - kl
    return log_weight(p, q.simulate(), data)


@tagged("lower bound", "Burda, Grosse and Salakhutdinov 2016")
def iwelbo(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """[lower bound] Importance-weighted, E[log 1/k sum_i w_i] <= log p(x), tight as k grows.

    Arguments as for `elbo`; k: number of draws of q. Burda, Grosse and Salakhutdinov 2016.
    """
    return log_mean_exp(log_weights(p, q, data, k))


@tagged("lower bound", "Rainforth et al. 2018")
def miwae(p: Measure, q: Measure, data: Choices, k: int, m: int) -> jax.Array:
    """[lower bound] The mean of m importance-weighted bounds of k draws each.

    The signal of its guide's gradient grows with m and fades with k; `elbo` has k = 1.

    Rainforth et al. 2018.
    """
    require_draws(m)
    return jax.vmap(lambda _: iwelbo(p, q, data, k))(jnp.arange(m)).mean()


@tagged("lower bound", "Rainforth et al. 2018")
def ciwae(p: Measure, q: Measure, data: Choices, k: int, beta: Any) -> jax.Array:
    """[lower bound] beta ELBO + (1 - beta) IWELBO from the same k draws, 0 <= beta <= 1.

    Rainforth et al. 2018.
    """
    log_w = log_weights(p, q, data, k)  # [k]
    return beta * log_w.mean() + (1 - beta) * log_mean_exp(log_w)


@tagged("consistent", "Li and Turner 2016")
def renyi(p: Measure, q: Measure, data: Choices, k: int, alpha: Any) -> jax.Array:
    """[consistent] Variational Renyi bound, 1 / (1 - alpha) log E_q[w^(1 - alpha)], k draws.

    The bound falls with alpha: log p(x) at 0 (where this is `iwelbo`), the ELBO at 1, its limit.
    The expectation from k draws lies between the ELBO and the bound, so that it is a lower bound
    on log p(x) for alpha >= 0, and on neither side for alpha < 0.

    Li and Turner 2016.
    """
    log_w = log_weights(p, q, data, k)  # [k]
    power = 1.0 - jnp.asarray(alpha)
    mean = log_mean_exp(power * log_w) / jnp.where(power == 0, 1.0, power)
    return jnp.where(power == 0, log_w.mean(), mean)


@tagged("consistent", "Dieng, Tran, Ranganath, Paisley and Blei 2017", minimise=True)
def cubo(p: Measure, q: Measure, data: Choices, k: int, n: Any = 2.0) -> jax.Array:
    """[consistent] Chi upper bound, 1/n log E_q[w^n] >= log p(x) for n >= 1; minimise.

    The logarithm of a mean of k draws lies below that of the expectation: with few draws, or
    heavy-tailed weights, the value can be less than log p(x). `exp_cubo` has no such bias.

    Dieng, Tran, Ranganath, Paisley and Blei 2017.
    """
    return log_mean_exp(n * log_weights(p, q, data, k)) / n


@tagged("upper bound", "Dieng, Tran, Ranganath, Paisley and Blei 2017", minimise=True)
def exp_cubo(
    p: Measure, q: Measure, data: Choices, k: int, n: Any = 2.0, log_scale: Any = 0.0
) -> jax.Array:
    """[upper bound] E_q[(w / c)^n] = exp(n CUBO_n) / c^n >= (p(x) / c)^n, unbiased; minimise.

    log_scale: log c, a guess of log p(x) that keeps the numbers in range.

    Dieng, Tran, Ranganath, Paisley and Blei 2017.
    """
    return jnp.exp(n * (log_weights(p, q, data, k) - log_scale)).mean()
