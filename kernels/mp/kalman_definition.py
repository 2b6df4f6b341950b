"""The Kalman filter as a textbook has it: one step, scanned.

    x_0 ~ N(m0, P0)      x_{t+1} = A_t x_t + b_t + N(0, Q_t)      y_t = H_t x_t + d_t + N(0, R_t)

Every array of the model may have a leading time axis: `steps` long for H, R, d and the mask,
`steps - 1` for A, Q, b. A component that the mask leaves out has a row of zeros in H, a unit row in
R and no residual: it then changes nothing, and counts for nothing in the log-likelihood.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

CORE_DIMS = {"A": 2, "Q": 2, "H": 2, "R": 2, "b": 1, "d": 1, "mask": 1}
OPERANDS: tuple[str, ...] = ("y", "A", "Q", "H", "R", "m0", "P0", "b", "d", "mask")
LOG_2PI = 1.8378770664093453


def definition(*operands: Any, moments: bool) -> Any:
    """Log-likelihood and, if wanted, filtered means `[t, n]` and covariances `[t, n, n]`."""
    log_likelihood, *kept = filtered(*operands)
    return (log_likelihood, *kept[:2]) if moments else (log_likelihood,)


def saving(*operands: Any, moments: bool) -> Any:
    """The same, and what the adjoint keeps: moments, gains, S^-1 v and S^-1 of every step."""
    log_likelihood, *kept = filtered(*operands)
    return (log_likelihood, *kept[:2]) if moments else (log_likelihood,), tuple(kept)


def filtered(
    y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any, b: Any, d: Any, mask: Any
) -> tuple[jax.Array, ...]:
    """The log-likelihood, and of every step: mean, covariance, gain, S^-1 v, S^-1."""
    Q, R, P0 = symmetric(Q), symmetric(R), symmetric(P0)
    always, each = by_time(y.shape[0], A=A, Q=Q, H=H, R=R, b=b, d=d, mask=mask)

    def step(carry: Any, now: Any) -> Any:
        of = always | now
        at_m, at_P = carry
        log_likelihood, (m, P, *kept) = update(at_m, at_P, of)
        moved = of["A"] @ m + of["b"], symmetric(of["A"] @ P @ of["A"].T + of["Q"])
        return moved, (log_likelihood, m, P, *kept)

    _, (terms, *kept) = jax.lax.scan(step, (m0, P0), each | {"y": y})
    return total(terms), *kept


def update(m: Any, P: Any, of: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """Predicted to filtered: log-likelihood; mean, covariance, gain, S^-1 v, S^-1."""
    seen = of["mask"]
    H = jnp.where(seen[:, None], of["H"], 0)
    R = jnp.where(seen[:, None] & seen, of["R"], jnp.eye(len(seen), dtype=P.dtype))
    v = jnp.where(seen, of["y"] - H @ m - of["d"], 0)
    S_inverse, log_det = inverse(H @ P @ H.T + R)
    u = S_inverse @ v
    K = P @ H.T @ S_inverse
    F = jnp.eye(len(m), dtype=P.dtype) - K @ H
    P = symmetric(F @ P @ F.T + K @ R @ K.T)  # Joseph's form
    log_likelihood = -0.5 * (v @ u + log_det + seen.sum() * LOG_2PI)
    return log_likelihood, (m + K @ v, P, K, u, jnp.where(seen[:, None] & seen, S_inverse, 0))


def by_time(steps: int, **arrays: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays without a time axis, and those with one, made `steps` long."""
    varies = {k: x.ndim > CORE_DIMS[k] for k, x in arrays.items()}
    pads = {k: [(0, steps - len(x))] + [(0, 0)] * CORE_DIMS[k] for k, x in arrays.items()}
    always = {k: x for k, x in arrays.items() if not varies[k]}
    return always, {k: jnp.pad(x, pads[k]) for k, x in arrays.items() if varies[k]}


def symmetric(P: Any) -> Any:
    """The symmetric part: derivatives in a covariance are symmetric, too."""
    return 0.5 * (P + jnp.swapaxes(P, -1, -2))


def inverse(S: Any) -> tuple[Any, Any]:
    """S^-1 and log det S; of one observation without LAPACK, whose calls cost a microsecond."""
    if S.shape == (1, 1):
        return 1 / S, jnp.log(S[0, 0])
    L = jnp.linalg.cholesky(S)
    I = jnp.eye(len(S), dtype=S.dtype)
    half = jax.scipy.linalg.solve_triangular(L, I, lower=True)
    return half.T @ half, 2 * jnp.log(jnp.diagonal(L)).sum()


def total(terms: Any) -> Any:
    """A sum in blocks of blocks: a running float32 sum of a million terms is wrong by tens."""
    while len(terms) > 32:
        terms = jnp.pad(terms, (0, -len(terms) % 32)).reshape(-1, 32).sum(1)
    return terms.sum()
