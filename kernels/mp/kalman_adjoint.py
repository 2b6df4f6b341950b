"""The derivative of the Kalman filter, by hand.

With K the optimal gain, F = I - K H, and u = S^-1 v, Joseph's form P_f = F P F' + K R K' does not
change with K to first order: its derivative is that of a form quadratic in F and K alone. So, for
cotangents l of the log-likelihood and (m_f, P_f)~ of the filtered moments of a step,

    k  = K' m_f~         g = P_f~ K        a = m_f~ - H' k       C = l/2 (u u' - S^-1)
    y~ = -d~ = k - l u                     m~ = m_f~ - H' y~
    P~ = P_f~ + H' z' + z H                z = u a'/2 - g' + (K' g + C) H / 2    (a row for each y)
    R~ = K' g - (k u' + u k')/2 + C
    H~ = (u m_f~' - 2 g') P_f + (l u - k) m_f' - l K'

and through the transition m = A m_f + b, P = A P_f A' + Q,

    b~ = m~    Q~ = P~    A~ = m~ m_f' + 2 P~ A P_f    m_f~ = A' m~    P_f~ = A' P~ A.

No factorisation and no division is left, so that going back costs less than going forth.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .kalman_definition import by_time, symmetric


def adjoint(operands: Any, residuals: Any, cotangents: Any, *, moments: bool) -> tuple[Any, ...]:
    """Cotangents of y, A, Q, H, R, m0, P0, b, d, and None for the mask."""
    y, A, Q, H, R, m0, P0, b, d, _ = operands
    means, covariances, gains, white, precisions = residuals
    l, dm, dP = cotangents if moments else (*cotangents, None, None)
    l = jnp.zeros((), y.dtype) if l is None else l
    dm = jnp.zeros_like(means) if dm is None else dm
    dP = jnp.zeros_like(covariances) if dP is None else symmetric(dP)
    always, each = by_time(len(y), A=A, H=H)

    def back(carry: Any, now: Any) -> Any:
        dm, dP = carry  # of the moments predicted for the step after this one
        A, H = ((always | now)[k] for k in "AH")
        mf, Pf = now["kept"][:2]
        B = dP @ A
        dA = dm[:, None] * mf + 2 * B @ Pf
        at_step = A.T @ dm + now["dm"], symmetric(A.T @ B) + now["dP"], H, now["kept"], l
        m, P, dy, dR, dH = through_update(*at_step)
        return (m, P), (dA, dP, dm, dy, dR, dH)

    kept = (means, covariances, gains, white, precisions)
    end = (jnp.zeros_like(m0), jnp.zeros_like(P0))
    xs = each | {"kept": kept, "dm": dm, "dP": dP}
    (dm0, dP0), (dA, dQ, db, dy, dR, dH) = jax.lax.scan(back, end, xs, reverse=True)
    parts = {"A": dA[:-1], "Q": dQ[:-1], "b": db[:-1], "H": dH, "R": dR, "d": -dy}
    found = gathered(parts, {"A": A, "Q": Q, "b": b, "H": H, "R": R, "d": d})
    return (dy, *(found[k] for k in "AQHR"), dm0, dP0, found["b"], found["d"], None)


def through_update(dmf: Any, dPf: Any, H: Any, kept: Any, l: Any) -> tuple[Any, ...]:
    """Cotangents of predicted mean and covariance, and of y, R, H of one step."""
    mf, Pf, K, u, S_inverse = kept
    k, g = K.T @ dmf, dPf @ K
    C = 0.5 * l * (u[:, None] * u - S_inverse)
    dy, q = k - l * u, K.T @ g
    z = 0.5 * u[:, None] * (dmf - H.T @ k) - g.T + 0.5 * (q + C) @ H
    dR = q - 0.5 * (k[:, None] * u + u[:, None] * k) + C
    dH = (u[:, None] * dmf - 2 * g.T) @ Pf + (l * u - k)[:, None] * mf - l * K.T
    return dmf - H.T @ dy, dPf + H.T @ z + z.T @ H, dy, dR, dH


def gathered(parts: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Cotangents of every step, summed for what is the same at all times."""
    return {k: x if x.ndim == like[k].ndim else block_sum(x) for k, x in parts.items()}


def block_sum(x: Any) -> Any:
    """The sum over the first axis, in blocks of blocks, as `kalman_definition.total`."""
    while len(x) > 32:
        pads = [(0, -len(x) % 32)] + [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, pads).reshape(-1, 32, *x.shape[1:]).sum(1)
    return x.sum(0)
