"""The Kalman smoother: moments of every state given all observations.

The definition is Rauch, Tung and Striebel's recursion. The native and the parallel form need no
inverse of a predicted covariance (singular ones are fine): with the cotangents m~, P~ of the
log-likelihood in a filtered mean and covariance through the *next* steps, which the filter's own
adjoint gives,

    E[x | all y] = m + P m~        Cov[x | all y] = P + P (2 P~ - m~ m~') P

(Bryson and Frazier's smoother, Bierman 1973, read as a derivative).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..frame import Call, Implementation, Operation
from ..frame.implementation import Adjoint, Value
from ..native import native
from . import kalman_definition, kalman_native, kalman_parallel, kalman_square_root
from .kalman_checks import prepared
from .kalman_definition import OPERANDS, by_time, symmetric
from .kalman_in_jax import empty, in_jax, too_short
from .small import factor, solved, times, transposed


def _definition(*operands: Any) -> Any:
    of = dict(zip(OPERANDS, operands, strict=True))
    log_likelihood, means, covariances, *_ = kalman_definition.filtered(*operands)
    always, each = by_time(len(means), A=of["A"], Q=symmetric(of["Q"]), b=of["b"])

    def back(carry: Any, now: Any) -> Any:
        ms, Ps, last = carry
        (m, P, now), at = (now["m"], now["P"], always | now), always | now
        A = at["A"]
        predicted = symmetric(A @ P @ A.T + at["Q"])
        G = solved(factor(predicted), A @ P).T
        mean = m + G @ (ms - A @ m - at["b"])
        covariance = symmetric(P + G @ (Ps - predicted) @ G.T)
        out = jnp.where(last, m, mean), jnp.where(last, P, covariance)
        return (*out, jnp.array(False)), out

    # the last step has no transition after it: any that is regular will do
    if "A" in each:
        each["A"] = each["A"].at[-1:].set(jnp.eye(means.shape[1], dtype=means.dtype))
    if "Q" in each:
        each["Q"] = each["Q"].at[-1:].set(jnp.eye(means.shape[1], dtype=means.dtype))
    end = (jnp.zeros_like(of["m0"]), jnp.zeros_like(of["P0"]), jnp.array(True))
    xs = each | {"m": means, "P": covariances}
    _, (means, covariances) = jax.lax.scan(back, end, xs, reverse=True)
    return log_likelihood, means, covariances


def _by_gradient(value: Value, adjoint: Adjoint) -> Value:
    """The smoother from a form of the filter and its adjoint."""

    def smoothed(call: Call, *operands: Any) -> Any:
        steps = call.operands[0].shape[0]
        filter_call = dataclasses.replace(call, statics={"moments": True}, save=True)
        outputs, residuals = value(filter_call, *operands)
        log_likelihood, means, covariances = outputs
        # b and Q of every transition, so that their cotangents are those of every predicted moment
        of = dict(zip(OPERANDS, operands, strict=True))
        shapes = list(call.operands)
        for name, core in (("b", 1), ("Q", 2)):
            i = OPERANDS.index(name)
            if shapes[i].ndim == core:
                front = of[name].shape[: of[name].ndim - core]
                each = of[name].reshape((*front, 1, *shapes[i].shape))
                full = (max(steps - 1, 0), *shapes[i].shape)
                of[name] = jnp.broadcast_to(each, (*front, *full))
                shapes[i] = jax.ShapeDtypeStruct(full, shapes[i].dtype)
        back_call = dataclasses.replace(filter_call, operands=tuple(shapes))
        cotangents = (jnp.ones_like(log_likelihood), None, None)
        found = adjoint(back_call, tuple(of.values()), residuals, cotangents)
        dQ, db = found[OPERANDS.index("Q")], found[OPERANDS.index("b")]
        A, i = of["A"], OPERANDS.index("A")
        if call.operands[i].ndim == 2:  # no time axis
            A = A[..., None, :, :]
        if call.batch is not None and not call.batched[i]:
            A = A[None]
        At = transposed(A)
        dm = times(At, db[..., None])
        dP = 2 * times(times(At, dQ), A) - dm * transposed(dm)
        pad = [(0, 0)] * (dm.ndim - 3) + [(0, 1)] + [(0, 0)] * 2
        dm, dP = jnp.pad(dm, pad)[..., :steps, :, :], jnp.pad(dP, pad)[..., :steps, :, :]
        covariance = covariances + symmetric(times(times(covariances, dP), covariances))
        return (log_likelihood, means + times(covariances, dm)[..., 0], covariance), ()

    return smoothed


def _square_root(call: Call, *operands: Any) -> Any:
    f = kalman_square_root.smoothed
    if call.batch is not None:
        f = jax.vmap(f, tuple(0 if has else None for has in call.batched))
    return f(*operands), ()


_parallel = in_jax("parallel", ("cuda", "tpu"), kalman_parallel, refuse=too_short)
assert _parallel.adjoint is not None
_in_parallel = _by_gradient(_parallel.value, _parallel.adjoint)
operation = Operation(
    "kalman_smoother",
    _definition,
    implementations=(
        native(
            _by_gradient(kalman_native.value, kalman_native.adjoint), refuse=kalman_native.refuse
        ),
        Implementation("parallel", ("cuda", "tpu"), _in_parallel, refuse=too_short),
    ),
    differentiable=(True,) * 9 + (False,),
)
# behind "xla": where they are asked for
operation.implementations += [
    Implementation("parallel", ("cpu",), _in_parallel, refuse=empty),
    Implementation("square_root", (), _square_root, refuse=empty),
]


class Smoothed(NamedTuple):
    """What `kalman_smoother` gives.

    Attributes:
        log_likelihood: log p(y).
        means: `[t, n]`, E[x_t | all y].
        covariances: `[t, n, n]`.
    """

    log_likelihood: jax.Array
    means: jax.Array
    covariances: jax.Array


def kalman_smoother(
    y: Any,
    A: Any,
    Q: Any,
    H: Any,
    R: Any,
    m0: Any,
    P0: Any,
    *,
    b: Any = None,
    d: Any = None,
    mask: Any = None,
) -> Smoothed:
    """Smooth a linear-Gaussian chain; arguments and errors as `kalman_filter`.

    Returns:
        A `Smoothed`: log-likelihood, means and covariances given all observations. Derivatives
        are those of the definition.

    Source: Rauch, Tung and Striebel (1965); Bierman, Fixed interval smoothing with discrete
    measurements (1973).
    """
    operands, back = prepared(y, A, Q, H, R, m0, P0, b, d, mask)
    return Smoothed(*(back(x) for x in operation(*operands)))
