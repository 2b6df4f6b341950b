"""What a state of a linear-Gaussian chain is, given the one after it and the observations so far:

    x_t | x_{t+1} ~ N(G x_{t+1} + c, V)    G = P_f A' P^-1    V = (I - G A) P_f (I - G A)' + G Q G'

P_f filtered, P predicted. All steps are made at once. V is Joseph's form of P_f - G P G', which
stays positive where these nearly cancel; where P is singular, its inverse is that in its range.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .kalman_definition import symmetric
from .small import factor, solved, times, transposed


def conditionals(A: Any, Q: Any, b: Any, means: Any, covariances: Any) -> tuple[Any, Any, Any]:
    """G `[t - 1, n, n]`, c `[t - 1, n]`, V `[t - 1, n, n]`, of filtered moments."""
    Q, m, P = symmetric(Q), means[:-1], covariances[:-1]
    AP = times(A, P)
    G = transposed(solved(factor(symmetric(times(AP, transposed(A)) + Q)), AP))
    F = jnp.eye(A.shape[-1], dtype=A.dtype) - times(G, jnp.broadcast_to(A, G.shape))
    V = times(times(F, P), transposed(F))
    V = V + times(times(G, jnp.broadcast_to(Q, G.shape)), transposed(G))
    c = m - times(G, (times(A, m[..., None])[..., 0] + b)[..., None])[..., 0]
    return G, c, symmetric(V)


def smoothed(A: Any, Q: Any, b: Any, means: Any, covariances: Any) -> tuple[Any, Any]:
    """Smoothed means and covariances from filtered ones, by an `associative_scan`.

    Source: Sarkka and Garcia-Fernandez, Temporal parallelization of Bayesian smoothers (2021).
    """
    G, c, V = conditionals(A, Q, b, means, covariances)
    end = jnp.zeros_like(covariances[-1:]), means[-1:], covariances[-1:]
    steps = [jnp.concatenate(both) for both in zip((G, c, V), end, strict=True)]

    def combine(later: Any, earlier: Any) -> Any:
        (G2, c2, V2), (G1, c1, V1) = later, earlier
        mean = times(G1, c2[..., None])[..., 0] + c1
        return times(G1, G2), mean, symmetric(times(times(G1, V2), transposed(G1))) + V1

    _, means, covariances = jax.lax.associative_scan(combine, tuple(steps), reverse=True)
    return means, covariances
