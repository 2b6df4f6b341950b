"""Matern processes as stochastic differential equations, moved over any interval of time.

The state is (f, f'/lambda, f''/lambda^2), lambda = sqrt(2 nu) / length_scale: without units, so
that a step of x = lambda dt has A = e^-x (I + N x + N^2 x^2/2), N = F + I nilpotent. Q is the
integral of a polynomial times e^-2s: with z = 2 x, t_k = e^-z z^k / k! and the tail p =
sum_{k >= 2 nu} t_k, every entry is a sum of p and a few t_k, without the cancellation of
P_inf - A P_inf A' where steps are small.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

KINDS = {"1/2": 1, "3/2": 2, "5/2": 3}  # the dimension of the state
TERMS = 16


def transitions(times: Any, kind: str, variance: Any, length_scale: Any) -> tuple[Any, Any, Any]:
    """A `[t - 1, n, n]`, Q `[t - 1, n, n]` and the stationary covariance `[n, n]`.

    Args:
        times: `[t]`; the steps are NaN where they decrease.
        kind: "1/2", "3/2" or "5/2".
        variance, length_scale: scalars.
    """
    n = KINDS[kind]
    dt = jnp.diff(times)
    x = jnp.where(
        dt < 0, jnp.nan, jnp.minimum(float(np.sqrt(2.0 * n - 1)) / length_scale * dt, 80.0)
    )
    x, z = x[:, None, None], 2 * x
    F = np.diag(np.ones(n - 1), 1)
    F[-1] = {1: [-1], 2: [-1, -2], 3: [-1, -3, -3]}[n]
    N, I = (F + np.eye(n)).astype(times.dtype), np.eye(n, dtype=times.dtype)
    A = jnp.exp(-x) * (I + N * x + N @ N * x**2 / 2)
    t = [jnp.exp(-z)]
    for k in range(1, 5):
        t.append(t[-1] * z / k)
    p = _tail(z, 2 * n - 1)
    if n == 1:
        rows = [[p]]
    elif n == 2:
        rows = [[p, t[2]], [t[2], p + 2 * t[1]]]
    else:
        q02 = -p / 3 + (2 * t[3] - 4 * t[4]) / 3
        q12 = 4 * t[2] / 3 - 2 * t[3] + t[4]
        q11 = p / 3 + (4 * t[3] - 2 * t[4]) / 3
        q22 = p + 8 * (t[1] - t[2]) / 3 + 4 * t[3]
        rows = [[p, t[4], q02], [t[4], q11, q12], [q02, q12, q22]]
    Q = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    third = 1 / 3
    stationary = [[1, 0, -third], [0, third, 0], [-third, 0, 1]] if n == 3 else np.eye(n)
    return A, variance * Q, variance * jnp.asarray(np.array(stationary), times.dtype)


def _tail(z: Any, first: int) -> Any:
    """sum_{k >= first} e^-z z^k / k!, by the series where z < 1 and by the complement elsewhere."""
    small = jnp.where(z < 1, z, 0.5)
    series = jnp.ones_like(z)
    for k in range(TERMS, 0, -1):
        series = 1 + series * small / (first + k)
    factorial = float(np.prod(np.arange(1, first + 1)))
    series = series * jnp.exp(-small) * small**first / factorial
    large = jnp.where(z < 1, 1.0, z)
    term = total = jnp.ones_like(z)
    for k in range(1, first):
        term = term * large / k
        total = total + term
    return jnp.where(z < 1, series, 1 - jnp.exp(-large) * total)
