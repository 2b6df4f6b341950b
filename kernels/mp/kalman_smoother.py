"""The Kalman smoother: moments of every state given all observations.

The definition is Rauch, Tung and Striebel's recursion. The native form is the same with covariances
as a sum of three that are none less,

    P_s = (I - G A) P_f (I - G A)' + G (Q + P_s') G'

P_s' of the next step; the parallel form scans its maps. All take a singular predicted covariance.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..frame import Call, Implementation, Operation, over_batch
from ..frame.implementation import Adjoint, Value
from ..native import call as call_native
from ..native import native
from . import (
    kalman_backward,
    kalman_definition,
    kalman_native,
    kalman_parallel,
    kalman_shared,
    kalman_square_root,
)
from .kalman_checks import prepared
from .kalman_definition import OPERANDS, by_time, symmetric
from .kalman_in_jax import empty, too_short
from .kalman_smoother_adjoint import added, adjoint
from .small import factor, solved


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


def _saving(*operands: Any) -> Any:
    log_likelihood, means, covariances = _definition(*operands)
    kept = kalman_definition.filtered(*operands)[1:]
    return (log_likelihood, means, covariances), (means, covariances, *kept)


def _native(call: Call, *operands: Any) -> Any:
    filter_call = dataclasses.replace(call, statics={"moments": True})
    (log_likelihood, *filtered), kept = kalman_shared.value(filter_call, *operands)
    name, attributes = kalman_native.handler(call, "smoother"), kalman_native.attributes(call)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in filtered]
    smoothed = call_native(name, results, *operands, *filtered, **attributes)
    return (log_likelihood, *smoothed), (*smoothed, *kept) if call.save else ()


def _native_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    l, *moments = cotangents
    means, covariances, *kept = residuals
    steps, n = means.shape[-2:]
    if steps == 0:
        return (None,) * len(operands)
    given = [jnp.zeros((0,), means.dtype) if ct is None else ct for ct in moments]
    names = "A", "Q", "b"
    shapes = [call.operands[OPERANDS.index(name)].shape for name in names]
    results = [kalman_native.struct(call, *s) for s in ((steps, n), (steps, n, n), *shapes)]
    dm, dP, *more = call_native(
        kalman_native.handler(call, "smoother_adjoint"),
        results,
        *operands,
        *kept[:2],
        means,
        covariances,
        *given,
        **kalman_native.attributes(call),
    )
    filter_call = dataclasses.replace(call, statics={"moments": True})
    found = kalman_shared.adjoint(filter_call, operands, kept, (l, dm, dP))
    return added(found, dict(zip(names, more, strict=True)))


def _in_jax(smoothed: Any, filtered: Any, back: Any) -> tuple[Value, Adjoint]:
    """What an implementation is told, to functions of one series."""

    def value(call: Call, *operands: Any) -> Any:
        def one(*operands: Any) -> Any:
            found = smoothed(*operands)
            return found, (*found[1:], *filtered(*operands)[1:]) if call.save else ()

        return over_batch(call, one, call.batched)(*operands)

    def adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
        axes = (tuple(call.batched), True, True)
        return over_batch(call, back, axes)(tuple(operands), residuals, cotangents)

    return value, adjoint


def _smoothed_in_parallel(*operands: Any) -> Any:
    of = dict(zip(OPERANDS, operands, strict=True))
    log_likelihood, means, covariances, *_ = kalman_parallel.filtered(*operands)
    smoothed = kalman_backward.smoothed(of["A"], of["Q"], of["b"], means, covariances)
    return log_likelihood, *smoothed


_back_in_parallel = functools.partial(
    adjoint, carried=kalman_parallel.carried_forward, of_filter=kalman_parallel.adjoint
)
_parallel = _in_jax(_smoothed_in_parallel, kalman_parallel.filtered, _back_in_parallel)
_square_root = _in_jax(kalman_square_root.smoothed, kalman_square_root.filtered, adjoint)
operation = Operation(
    "kalman_smoother",
    _definition,
    saving=_saving,
    adjoint=adjoint,
    implementations=(
        native(_native, _native_adjoint, refuse=kalman_native.refuse),
        Implementation("parallel", ("cuda", "tpu"), *_parallel, refuse=too_short),
    ),
    differentiable=(True,) * 9 + (False,),
)
# behind "xla": where they are asked for
operation.implementations += [
    Implementation("parallel", ("cpu",), *_parallel, refuse=empty),
    Implementation("square_root", (), *_square_root, refuse=empty),
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
        A `Smoothed`: log-likelihood, means and covariances given all observations, with an
        adjoint of its own.

    Source: Rauch, Tung and Striebel, Maximum likelihood estimates of linear dynamic systems (1965).
    """
    operands, back = prepared(y, A, Q, H, R, m0, P0, b, d, mask)
    return Smoothed(*(back(x) for x in operation(*operands)))
