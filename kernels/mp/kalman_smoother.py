"""The Kalman smoother: moments of every state given all observations.

The definition is Rauch, Tung and Striebel's recursion. The native form is the same with covariances
as a sum of three that are none less,

    P_s = (I - G A) P_f (I - G A)' + G (Q + P_s') G'

P_s' of the next step; the parallel form scans its maps. All take a singular predicted covariance.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..frame import Call, Implementation, Operation
from ..frame.implementation import Value
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


def _native(call: Call, *operands: Any) -> Any:
    filter_call = dataclasses.replace(call, statics={"moments": True})
    (log_likelihood, *filtered), _ = kalman_shared.value(filter_call, *operands)
    name, attributes = kalman_native.handler(call, "smoother"), kalman_native.attributes(call)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in filtered]
    return (log_likelihood, *call_native(name, results, *operands, *filtered, **attributes)), ()


def _in_parallel(*operands: Any) -> Any:
    of = dict(zip(OPERANDS, operands, strict=True))
    log_likelihood, means, covariances, *_ = kalman_parallel.filtered(*operands)
    smoothed = kalman_backward.smoothed(of["A"], of["Q"], of["b"], means, covariances)
    return log_likelihood, *smoothed


def _of_batches(function: Any) -> Value:
    """What an implementation is told, to a function of one series."""

    def value(call: Call, *operands: Any) -> Any:
        if call.batch is None:
            return function(*operands), ()
        return jax.vmap(function, tuple(0 if has else None for has in call.batched))(*operands), ()

    return value


_parallel = _of_batches(_in_parallel)
operation = Operation(
    "kalman_smoother",
    _definition,
    implementations=(
        native(_native, refuse=kalman_native.refuse),
        Implementation("parallel", ("cuda", "tpu"), _parallel, refuse=too_short),
    ),
    differentiable=(True,) * 9 + (False,),
)
# behind "xla": where they are asked for
operation.implementations += [
    Implementation("parallel", ("cpu",), _parallel, refuse=empty),
    Implementation("square_root", (), _of_batches(kalman_square_root.smoothed), refuse=empty),
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

    Source: Rauch, Tung and Striebel, Maximum likelihood estimates of linear dynamic systems (1965).
    """
    operands, back = prepared(y, A, Q, H, R, m0, P0, b, d, mask)
    return Smoothed(*(back(x) for x in operation(*operands)))
