"""The filter and its adjoint in parallel over time: logarithmic depth, for GPUs and TPUs.

A step is a conditional density of its state given the one before, p(x_t | y_t, x_{t-1}) =
N(A x + b, C), and a likelihood N(eta, J) in information form of that one; two adjacent steps
combine into one of the same kind (Sarkka and Garcia-Fernandez, IEEE TAC 66, 2021, lemmas 7-8), so
that `associative_scan` gives all filtered moments. What else there is of a step is then computed
for all steps at once. Going back, cotangents of means and covariances are carried by
affine maps, which combine as well.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from . import kalman_adjoint
from .kalman_definition import by_time, inverse, symmetric, total, update


def filtered(
    y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any, b: Any, d: Any, mask: Any
) -> tuple[jax.Array, ...]:
    """As `kalman_definition.filtered`."""
    steps, n = len(y), len(m0)
    if steps == 0:
        raise ValueError("no steps")  # refused before
    A, Q, b = (_each(x, steps - 1, k) for x, k in ((A, 2), (symmetric(Q), 2), (b, 1)))
    into = {
        "A": jnp.concatenate([jnp.zeros((1, n, n), A.dtype), A]),
        "Q": jnp.concatenate([symmetric(P0)[None], Q]),
        "b": jnp.concatenate([m0[None], b]),
    }
    always, each = by_time(steps, H=H, R=symmetric(R), d=d, mask=mask)
    elements = jax.vmap(lambda now: _element(always | now))(each | into | {"y": y})
    _, means, covariances, _, _ = jax.lax.associative_scan(jax.vmap(_combine), elements)
    m = jnp.concatenate([m0[None], jnp.einsum("tij,tj->ti", A, means[:-1]) + b])
    moved = jnp.einsum("tij,tjk,tlk->til", A, covariances[:-1], A) + Q
    P = jnp.concatenate([symmetric(P0)[None], symmetric(moved)])
    terms, kept = jax.vmap(lambda m, P, now: update(m, P, always | now))(m, P, each | {"y": y})
    return total(terms), *kept


def _element(of: dict[str, Any]) -> tuple[Any, ...]:
    """(A, b, C, eta, J) of one step, from the transition into it and its observation."""
    A, Q, b, seen = of["A"], of["Q"], of["b"], of["mask"]
    H = jnp.where(seen[:, None], of["H"], 0)
    R = jnp.where(seen[:, None] & seen, of["R"], jnp.eye(len(seen), dtype=Q.dtype))
    v = jnp.where(seen, of["y"] - H @ b - of["d"], 0)
    S_inverse, _ = inverse(H @ Q @ H.T + R)
    K = Q @ H.T @ S_inverse
    F = jnp.eye(len(b), dtype=Q.dtype) - K @ H
    back = A.T @ H.T @ S_inverse
    return F @ A, b + K @ v, symmetric(F @ Q @ F.T + K @ R @ K.T), back @ v, back @ H @ A


def _combine(first: Any, second: Any) -> Any:
    A1, b1, C1, eta1, J1 = first
    A2, b2, C2, eta2, J2 = second
    n = len(b1)
    between = jnp.eye(n, dtype=C1.dtype) + C1 @ J2
    together = jnp.concatenate([A1, (b1 + C1 @ eta2)[:, None], C1 @ A2.T], 1)
    X = jnp.linalg.solve(between, together)  # (I + C1 J2)^-1 of A1, b1 + C1 eta2, C1 A2'
    back = jnp.concatenate([(eta2 - J2 @ b1)[:, None], J2 @ A1], 1)
    Y = jnp.linalg.solve(between.T, back)
    return (
        A2 @ X[:, :n],
        A2 @ X[:, n] + b2,
        symmetric(A2 @ X[:, n + 1 :]) + C2,
        A1.T @ Y[:, 0] + eta1,
        symmetric(A1.T @ Y[:, 1:]) + J1,
    )


def adjoint(operands: Any, residuals: Any, cotangents: Any, *, moments: bool) -> tuple[Any, ...]:
    """As `kalman_adjoint.adjoint`."""
    y, A, Q, H, R, _, _, b, d, _ = operands
    means, covariances, gains, white, precisions = residuals
    steps, n = means.shape
    l, dm, dP = cotangents if moments else (*cotangents, None, None)
    l = jnp.zeros((), y.dtype) if l is None else l
    dm = jnp.zeros_like(means) if dm is None else dm
    dP = jnp.zeros_like(covariances) if dP is None else symmetric(dP)
    A_each, H_each = _each(A, steps - 1, 2), _each(H, steps, 2)
    F = jnp.eye(n, dtype=A.dtype) - gains @ H_each
    w = jnp.einsum("toi,to->ti", H_each, white)

    # Cotangents of filtered moments: X_{t-1} = G_t' X_t G_t + what step t adds, G_t = F_t A_{t-1}.
    G = F[1:] @ A_each
    add = l * jnp.einsum("tji,tj->ti", A_each, w[1:]) + dm[:-1]
    dmf = _carried(G, jnp.concatenate([add, dm[-1:]]), lambda G, x: G.T @ x)
    a = jnp.einsum("tji,tj->ti", F, dmf)
    C = 0.5 * l * (white[:, :, None] * white[:, None, :] - precisions)
    new = symmetric(a[:, :, None] * w[:, None, :]) + jnp.einsum(
        "toi,top,tpj->tij", H_each, C, H_each
    )
    add = jnp.einsum("tji,tjk,tkl->til", A_each, new[1:], A_each) + dP[:-1]
    dPf = _carried(G, jnp.concatenate([add, dP[-1:]]), lambda G, X: G.T @ X @ G)

    kept = (means, covariances, gains, white, precisions)
    of_step = kalman_adjoint.through_update
    m, P, dy, dR, dH = jax.vmap(of_step, (0, 0, 0, 0, None))(dmf, dPf, H_each, kept, l)
    dA = m[1:, :, None] * means[:-1, None, :] + 2 * P[1:] @ A_each @ covariances[:-1]
    parts = {"A": dA, "Q": P[1:], "b": m[1:], "H": dH, "R": dR, "d": -dy}
    found = kalman_adjoint.gathered(parts, {"A": A, "Q": Q, "b": b, "H": H, "R": R, "d": d})
    return (dy, *(found[k] for k in "AQHR"), m[0], P[0], found["b"], found["d"], None)


def _carried(G: Any, add: Any, through: Any) -> Any:
    """X_{t} = through(G_t, X_{t+1}) + add_t for all t, from the last, X_T = add_T."""
    n = G.shape[-1]
    maps = jnp.concatenate([G, jnp.zeros((1, n, n), G.dtype)])

    def combine(later: Any, earlier: Any) -> Any:
        (G2, x2), (G1, x1) = later, earlier
        return G2 @ G1, through(G1, x2) + x1

    return jax.lax.associative_scan(jax.vmap(combine), (maps, add), reverse=True)[1]


def carried_forward(G: Any, add: Any, through: Any) -> Any:
    """X_0 = add_0, X_{t+1} = through(G_t, X_t) + add_{t+1}, `through` being G' X or G' X G."""
    return _carried(G[::-1], add[::-1], through)[::-1]


def _each(x: Any, steps: int, core: int) -> Any:
    return x if x.ndim > core else jnp.broadcast_to(x, (steps, *x.shape))
