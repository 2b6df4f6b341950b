"""The derivative of smoothed moments: forward through the smoother, then back through the filter.

A step of the smoother, with G = P A' S^-1, S = A P A' + Q, F = I - G A, and m', P_s' of the next
step, is

    m_s = m + G (m' - A m - b)        P_s = F P F' + G (Q + P_s') G'

Cotangents x, X of m_s, P_s at a time are those of the outputs, and G' x and G' X G of the time
before; this is the part in which one step waits for another. They give those of the filtered m, P
and of A, Q, b, and the filter's own adjoint goes on from these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import kalman_adjoint
from .kalman_definition import OPERANDS, symmetric
from .small import factor, solved, times, transposed

Back = Callable[..., Any]


def in_order(G: Any, add: Any, through: Back) -> Any:
    """X_0 = add_0, X_{t+1} = through(G_t, X_t) + add_{t+1}, one after the other."""

    def step(X: Any, now: Any) -> Any:
        G, add = now
        X = through(G, X) + add
        return X, X

    _, after = jax.lax.scan(step, add[0], (G, add[1:]))
    return jnp.concatenate([add[:1], after])


def adjoint(
    operands: Any,
    residuals: Any,
    cotangents: Any,
    *,
    carried: Back = in_order,
    of_filter: Back = kalman_adjoint.adjoint,
) -> tuple[Any, ...]:
    """Cotangents of the operands; residuals are smoothed moments and what the filter keeps."""
    of = dict(zip(OPERANDS, operands, strict=True))
    smoothed_means, smoothed_covariances, means, covariances, *rest = residuals
    l, x, X = cotangents
    x = jnp.zeros_like(means) if x is None else x
    X = jnp.zeros_like(covariances) if X is None else symmetric(X)
    if len(means) == 0:
        return (None,) * len(operands)

    A, Q, m, P = of["A"], symmetric(of["Q"]), means[:-1], covariances[:-1]
    At, AP = transposed(A), times(A, P)
    L = factor(symmetric(times(AP, At) + Q))
    Gt = solved(L, AP)
    G = transposed(Gt)
    F = jnp.eye(A.shape[-1], dtype=A.dtype) - times(G, jnp.broadcast_to(A, G.shape))
    x = carried(G, x, lambda G, x: x @ G)
    X = carried(G, X, lambda G, X: transposed(G) @ X @ G)

    before, D = x[:-1, :, None], X[:-1]
    dr, dM = times(Gt, before), symmetric(times(times(Gt, D), G))
    dF = 2 * times(times(D, F), P)
    off = smoothed_means[1:] - times(A, m[..., None])[..., 0] - of["b"]
    dG = before * off[:, None] + 2 * times(times(D, G), Q + smoothed_covariances[1:])
    Y = solved(L, transposed(dG - times(dF, jnp.broadcast_to(At, G.shape))))
    dS = -symmetric(times(Y, G))
    through_S = times(times(jnp.broadcast_to(At, G.shape), dS), A)
    through_F = times(times(transposed(F), D), F)
    dP = symmetric(through_F + times(transposed(Y), A) + through_S)
    dA = times(Y, P) + 2 * times(dS, AP) - times(Gt, dF) - dr * m[:, None]
    dm = (before - times(jnp.broadcast_to(At, G.shape), dr))[..., 0]

    filtered = jnp.concatenate([dm, x[-1:]]), jnp.concatenate([dP, X[-1:]])
    found = of_filter(operands, (means, covariances, *rest), (l, *filtered), moments=True)
    more = {"A": dA, "Q": dM + dS, "b": -dr[..., 0]}
    return added(found, kalman_adjoint.gathered(more, {k: of[k] for k in more}))


def added(found: Any, more: dict[str, Any]) -> tuple[Any, ...]:
    """The filter's cotangents and the smoother's; both are sums over a batch if the first are."""

    def both(x: Any, y: Any) -> Any:
        return x + (kalman_adjoint.block_sum(y) if y.ndim > x.ndim else y)

    return tuple(
        both(x, more[name]) if name in more else x for name, x in zip(OPERANDS, found, strict=True)
    )
