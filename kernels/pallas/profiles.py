"""Stationary covariances as functions of one squared distance, and their derivatives.

    k(x, y) = variance * g(|a - b|^2),     a, b = x / length_scale, y / length_scale

The periodic covariance is the squared exponential of points on circles: with

    a = (cos 2 pi x / p, sin 2 pi x / p) / length_scale

|a - b|^2 = 2 (1 - cos(2 pi (x - y) / p)) / length_scale^2 = (2 sin(pi (x - y) / p) /
length_scale)^2. So a kernel needs g, dg/ds and, for the rational quadratic, dg/dalpha; length
scales and periods are differentiated outside of it, in the embedding, which costs O(n d).

The kinds are those of `gp.profiles`, written without custom derivatives and without broadcasting
over points, as kernels need them. Only functions that every Pallas backend has are used: exp, log,
division, and `sqrt` as it is given.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

ROOTS = {"matern12": 1.0, "matern32": 3.0, "matern52": 5.0}  # r^2 / s


def embedded(kind: str, x: Any, y: Any, length_scale: Any, extra: Any) -> tuple[Any, Any]:
    """The points between which g takes squared distances: a [n, p], b [m, p].

    They are taken about one of them, to which differences are as exact as the points themselves;
    covariances do not change, and derivatives in a length scale are not small differences of large
    sums.
    """
    first = x[0]
    center = jax.lax.stop_gradient(jnp.where(jnp.isfinite(first), first, 0))

    def one(z: Any) -> Any:
        z = z - center
        if kind != "periodic":
            return z / length_scale
        turns = z / extra
        angle = 2 * jnp.pi * (turns - jax.lax.stop_gradient(jnp.round(turns)))
        return jnp.concatenate([jnp.cos(angle) / length_scale, jnp.sin(angle) / length_scale], -1)

    return one(x), one(y)


def parameter(kind: str, extra: Any) -> Any:
    """The parameter of g: alpha of the rational quadratic, else unused."""
    return extra if kind == "rational_quadratic" else jnp.ones_like(extra)


def log1p(u: Any) -> Any:
    """log(1 + u) for u >= 0 by a logarithm alone: the rounding of 1 + u is divided out (Kahan)."""
    w = 1 + u
    exact = w == 1
    return jnp.where(exact, u, jnp.log(w) * (u / jnp.where(exact, jnp.ones_like(w), w - 1)))


def sqrt_by_rsqrt(x: Any) -> Any:
    """sqrt(x) for backends that have its reciprocal alone, with a step of Newton's method."""
    y = jax.lax.rsqrt(x)
    root = x * y
    root = root + 0.5 * y * (x - root * root)
    return jnp.where((x > 0) & (y > 0), root, x)  # 0, infinity and NaN are their own roots


def profile(kind: str, s: Any, alpha: Any, sqrt: Any = jnp.sqrt) -> Any:
    """g(s)."""
    if kind in ("rbf", "periodic"):
        return jnp.exp(-0.5 * s)
    if kind == "rational_quadratic":
        return jnp.exp(-alpha * log1p(s / (2 * alpha)))
    r = sqrt(ROOTS[kind] * s)
    if kind == "matern12":
        return jnp.exp(-r)
    if kind == "matern32":
        return (1 + r) * jnp.exp(-r)
    return (1 + r + r * r * (1 / 3)) * jnp.exp(-r)


def slope(kind: str, s: Any, alpha: Any, sqrt: Any = jnp.sqrt) -> Any:
    """dg/ds; for Matern-1/2 zero at s = 0, where g has a kink."""
    if kind in ("rbf", "periodic"):
        return -0.5 * jnp.exp(-0.5 * s)
    if kind == "rational_quadratic":
        u = s / (2 * alpha)
        return -0.5 * jnp.exp(-alpha * log1p(u)) / (1 + u)
    r = sqrt(ROOTS[kind] * s)
    if kind == "matern12":
        at_zero = r == 0
        inverse = 1 / jnp.where(at_zero, jnp.ones_like(r), r)
        return jnp.where(at_zero, jnp.zeros_like(r), -0.5 * jnp.exp(-r) * inverse)
    if kind == "matern32":
        return -1.5 * jnp.exp(-r)
    return -(5 / 6) * (1 + r) * jnp.exp(-r)


def alpha_slope(s: Any, alpha: Any) -> Any:
    """dg/dalpha of the rational quadratic: g (u / (1 + u) - log(1 + u)), u = s / (2 alpha)."""
    u = s / (2 * alpha)
    logarithm = log1p(u)
    return jnp.exp(-alpha * logarithm) * (u / (1 + u) - logarithm)
