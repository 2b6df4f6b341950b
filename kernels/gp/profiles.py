"""Stationary covariances k(x, y) at unit variance, as functions of a scaled squared distance u.

    kind                  k(u)
    rbf                   exp(-u / 2)
    matern12              exp(-s),                  s = sqrt(u)
    matern32              (1 + s) exp(-s),          s = sqrt(3 u)
    matern52              (1 + s + s^2/3) exp(-s),  s = sqrt(5 u)
    rational_quadratic    (1 + u / (2 alpha))^(-alpha)
    periodic              exp(-u / 2)

where u = sum_d ((x_d - y_d) / l_d)^2, of the periodic sum_d (2 sin(pi (x_d - y_d) / p) / l_d)^2.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 4.2 (MacKay's
periodic covariance with one period for all dimensions). `extra` is alpha, the period p, or unused.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

KINDS = ("rbf", "matern12", "matern32", "matern52", "rational_quadratic", "periodic")
EXTRA = {"rational_quadratic": "alpha", "periodic": "period"}  # what a kind has besides


def covariance(kind: str, x: Any, y: Any, length_scale: Any, extra: Any) -> jax.Array:
    """k(x, y) at unit variance over the last axis of `x` and `y`, which broadcast."""
    return profile(kind, squared_distance(kind, x, y, length_scale, extra), extra)


def squared_distance(kind: str, x: Any, y: Any, length_scale: Any, extra: Any) -> jax.Array:
    """u, by differences: an expanded square loses all digits of close points far from 0."""
    difference = x - y
    if kind == "periodic":
        difference = 2 * jnp.sin(jnp.pi * difference / extra)
    return jnp.sum((difference / length_scale) ** 2, -1)


def profile(kind: str, u: Any, extra: Any) -> jax.Array:
    """k(u)."""
    if kind == "rational_quadratic":
        return jnp.exp(-extra * jnp.log1p(u / (2 * extra)))
    if kind.startswith("matern"):
        p = ("matern12", "matern32", "matern52").index(kind)
        return _matern(p, (2 * p + 1) * u)
    return jnp.exp(-u / 2)


def _matern(p: int, t: Any) -> jax.Array:
    """A polynomial of degree p <= 2 in s, times exp(-s), s = sqrt(t)."""
    return (_matern0, _matern1, _matern2)[p](t)


# JAX's derivative of a square root at 0 is infinite, and times zero NaN. In t the family is closed
# under differentiation, so derivatives of every order come out right where two points coincide.
@jax.custom_jvp
def _matern0(t: Any) -> jax.Array:
    return jnp.exp(-jnp.sqrt(t))


@jax.custom_jvp
def _matern1(t: Any) -> jax.Array:
    s = jnp.sqrt(t)
    return (1 + s) * jnp.exp(-s)


@jax.custom_jvp
def _matern2(t: Any) -> jax.Array:
    s = jnp.sqrt(t)
    return (1 + s + t / 3) * jnp.exp(-s)


@_matern0.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (t,), (dt,) = primals, tangents
    k = _matern0(t)
    s = jnp.sqrt(jnp.where(t == 0, 1, t))
    return k, jnp.where(t == 0, 0, -k / (2 * s)) * dt  # a kink at 0: its derivative there is 0


@_matern1.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (t,), (dt,) = primals, tangents
    return _matern1(t), -_matern0(t) / 2 * dt


@_matern2.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (t,), (dt,) = primals, tangents
    return _matern2(t), -_matern1(t) / 6 * dt
