"""Information bottlenecks: predict y from a code of x that says little else about x."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...transforms.choices import Choices
from ..measure import Measure
from .distances import Kernel, rbf, squared_distances
from .tags import tagged
from .terms import elbo_terms


@tagged("lower bound", "Alemi, Fischer, Dillon and Murphy 2017")
def vib(
    p: Measure, q: Measure, data: Choices, beta: Any, *, analytic_kl: bool = False
) -> jax.Array:
    """[lower bound] E_q[log p(y | z)] - beta KL(q(z | x) || r(z)).

    In the mean over pairs x, y at most I(z; y) - beta I(z; x) - H(y). `beta_elbo` in form; here the
    guide is the model's first half, and what is learned is the joint distribution of x and z.

    Args:
        p: the code's marginal r(z) and the predictor p(y | z); q: the encoder q(z | x) of one x;
        data: y.

    Alemi, Fischer, Dillon and Murphy 2017.
    """
    log_likelihood, kl = elbo_terms(p, q, data, analytic_kl=analytic_kl)
    return log_likelihood - beta * kl


# ---- Cauchy-Schwarz divergence, -log (int p q)^2 / (int p^2 int q^2), by kernel density estimates


@tagged("consistent", "Jenssen, Principe, Erdogmus and Eltoft 2006", minimise=True)
def cauchy_schwarz(x: jax.Array, y: jax.Array, kernel: Kernel | None = None) -> jax.Array:
    """[consistent] The divergence of the distributions of two samples, [n, D] and [m, D].

        log mean_ij k(x_i, x_j) + log mean_ij k(y_i, y_j) - 2 log mean_ij k(x_i, y_j)  >= 0

    With `rbf(scale)`, that of the distributions after adding normal noise of variance scale^2 / 2.

    Jenssen, Principe, Erdogmus and Eltoft 2006.
    """
    k = kernel or rbf()
    return _log_mean(_gram(x, x, k)) + _log_mean(_gram(y, y, k)) - 2 * _log_mean(_gram(x, y, k))


@tagged("consistent", "Yu, Yu, Lokse, Jenssen and Principe 2024", minimise=True)
def cs_information(
    x: jax.Array, t: jax.Array, kernel_x: Kernel | None = None, kernel_t: Kernel | None = None
) -> jax.Array:
    """[consistent] Cauchy-Schwarz mutual information of paired samples, [n, D] and [n, E].

        log mean_ij K_ij Q_ij + log mean_ij K_ij mean_ij Q_ij
            - 2 log mean_i (mean_j K_ij mean_j Q_ij)  >= 0

    with the Gram matrices K of x and Q of t. Yu, Yu, Lokse, Jenssen and Principe 2024.
    """
    k, q = _gram(x, x, kernel_x or rbf()), _gram(t, t, kernel_t or rbf())
    return _log_mean(k * q) + _log_mean(k) + _log_mean(q) - 2 * _log_mean(k.mean(1) * q.mean(1))


@tagged("consistent", "Yu, Yu, Lokse, Jenssen and Principe 2024", minimise=True)
def cs_prediction(
    x: jax.Array,
    y: jax.Array,
    y_hat: jax.Array,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
) -> jax.Array:
    """[consistent] Conditional Cauchy-Schwarz divergence of p(y | x) from p(y_hat | x).

        log S(L_yy) + log S(L_hh) - 2 log S(L_hy),   S(L) = sum_j sum_i K_ji L_ji / (sum_i K_ji)^2

    with Gram matrices K of x, and L between y and y_hat; all samples paired, [n, .].

    Yu, Yu, Lokse, Jenssen and Principe 2024.
    """
    k, of = _gram(x, x, kernel_x or rbf()), kernel_y or rbf()

    def log_s(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.log(((k * _gram(a, b, of)).sum(1) / k.sum(1) ** 2).sum())

    return log_s(y, y) + log_s(y_hat, y_hat) - 2 * log_s(y_hat, y)


@tagged("heuristic", "Yu, Yu, Lokse, Jenssen and Principe 2024", minimise=True)
def cs_bottleneck(
    x: jax.Array,
    t: jax.Array,
    y: jax.Array,
    y_hat: jax.Array,
    beta: Any,
    kernel_x: Kernel | None = None,
    kernel_t: Kernel | None = None,
    kernel_y: Kernel | None = None,
) -> jax.Array:
    """[heuristic] `cs_prediction` + beta `cs_information`: codes t of x, predictions y_hat of y.

    Yu, Yu, Lokse, Jenssen and Principe 2024.
    """
    prediction = cs_prediction(x, y, y_hat, kernel_x, kernel_y)
    return prediction + beta * cs_information(x, t, kernel_x, kernel_t)


def _gram(x: jax.Array, y: jax.Array, kernel: Kernel) -> jax.Array:
    return kernel(squared_distances(x, y))


def _log_mean(x: jax.Array) -> jax.Array:
    return jnp.log(x.mean())
