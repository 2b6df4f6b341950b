"""The square-root form: factors of covariances are carried, and no covariance is ever subtracted.

With covariances as L L', an update and a prediction are one triangularisation each:

    [ R^1/2  H L ]        [ S^1/2   0   ]
    [   0     L  ]  ->    [ K S^1/2 L_f ]         [ A L_f  Q^1/2 ] -> L

Half the digits of a condition number are lost where the covariance form loses all: for models with
very precise sensors or very vague priors in float32. Slower; runs where it is asked for, by
`kernels.using(kalman_filter="square_root", kalman_smoother="square_root")`. Source: Kailath, Sayed
and Hassibi (2000), ch. 12.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .kalman_definition import LOG_2PI, by_time, symmetric, total
from .small import factor, solved


def filtered(*operands: Any) -> tuple[jax.Array, ...]:
    """As `kalman_definition.filtered`."""
    log_likelihood, means, factors, *kept = _forward(*operands)
    return log_likelihood, means, factors @ jnp.swapaxes(factors, -1, -2), *kept


def smoothed(*operands: Any) -> tuple[jax.Array, ...]:
    """The smoother's log-likelihood, means and covariances.

    Rauch, Tung and Striebel's covariance with gain G as the sum of three that are none less,

        P_s = (I - G A) P (I - G A)' + G Q G' + G P_s' G'

    with P_s' of the next step: one triangularisation more.
    """
    _, A, Q, _, _, m0, P0, b, _, _ = operands
    log_likelihood, means, factors, *_ = _forward(*operands)
    always, each = by_time(len(means), A=A, Q=factor(symmetric(Q)), b=b)
    I = jnp.eye(len(m0), dtype=P0.dtype)

    def back(carry: Any, now: Any) -> Any:
        (ms, Ls), of = carry, always | now
        A, m, L = of["A"], of["m"], of["L"]
        G = solved(_triangular(jnp.hstack([A @ L, of["Q"]])), A @ L @ L.T).T
        ms = m + G @ (ms - A @ m - of["b"])
        Ls = _triangular(jnp.hstack([(I - G @ A) @ L, G @ of["Q"], G @ Ls]))
        return (ms, Ls), (ms, Ls)

    moves = {k: x[:-1] for k, x in (each | {"m": means, "L": factors}).items()}
    end = means[-1], factors[-1]
    _, before = jax.lax.scan(back, end, moves, reverse=True)
    means, factors = (jnp.concatenate([x, e[None]]) for x, e in zip(before, end, strict=True))
    return log_likelihood, means, factors @ jnp.swapaxes(factors, -1, -2)


def _forward(
    y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any, b: Any, d: Any, mask: Any
) -> tuple[jax.Array, ...]:
    """As `filtered`, with factors in the place of the covariances."""
    n, m = len(m0), y.shape[1]
    seen = jnp.broadcast_to(mask, (len(y), m)) if mask.ndim > 1 else mask
    R = jnp.where(seen[..., :, None] & seen[..., None, :], symmetric(R), jnp.eye(m, dtype=R.dtype))
    core = {"A": A, "Q": factor(symmetric(Q)), "H": H, "R": factor(R), "b": b, "d": d, "mask": mask}
    always, each = by_time(len(y), **core)

    def step(carry: Any, now: Any) -> Any:
        (mean, L), of = carry, always | now
        seen = of["mask"]
        H = jnp.where(seen[:, None], of["H"], 0)
        v = jnp.where(seen, of["y"] - H @ mean - of["d"], 0)
        rows = [[of["R"], H @ L], [jnp.zeros((n, m), L.dtype), L]]
        both = _triangular(jnp.block(rows))
        S, KS, L = both[:m, :m], both[m:, :m], both[m:, m:]
        half = jax.scipy.linalg.solve_triangular(S, jnp.eye(m, dtype=S.dtype), lower=True)
        w = half @ v
        mean = mean + KS @ w
        log_det = jnp.log(jnp.abs(jnp.diagonal(S))).sum()
        term = -0.5 * (w @ w + seen.sum() * LOG_2PI) - log_det
        shown = jnp.where(seen[:, None] & seen, half.T @ half, 0)
        moved = of["A"] @ mean + of["b"], _triangular(jnp.hstack([of["A"] @ L, of["Q"]]))
        return moved, (term, mean, L, KS @ half, half.T @ w, shown)

    _, (terms, *kept) = jax.lax.scan(step, (m0, factor(symmetric(P0))), each | {"y": y})
    return total(terms), *kept


def _triangular(X: Any) -> Any:
    """Lower triangular L `[rows, rows]` with L L' = X X'."""
    return jnp.linalg.qr(X.T, mode="r").T
