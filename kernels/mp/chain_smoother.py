"""The smoother of a discrete chain, and its derivative.

What smoothing gives is the slope of the log evidence l: p(z_n = k | x) in the log likelihoods, and
expected transitions in the logarithms of the transitions. Second derivatives are symmetric, so

    a pullback of the slopes, along c   =   the tangent of the slopes, along c:    c' d2l = d2l c

and the adjoint is forward-backward once more, with a tangent beside each quantity: 3 times the work
of the smoother, where an adjoint of both passes would keep, and go back through, either of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .. import native
from ..frame import Call, Implementation, Operation
from ..frame.implementation import Value
from .chain_filter import NATIVE as NATIVE_FILTER
from .chain_filter import filter_adjoint, filter_saving
from .chain_parallel import parallel_smoother, parallel_smoother_adjoint
from .chain_steps import attributes, bounded, slopes_and_weights, smoother_bars, suffix


def smoother_definition(initial: Any, transitions: Any, log_likelihoods: Any) -> Any:
    """Log evidence, p(z_n | x) and expected transitions: [], [N, K], those of the transitions."""
    return _saving(initial, transitions, log_likelihoods)[0]


def _saving(*operands: Any) -> Any:
    (evidence, _), kept = filter_saving(*operands)
    one = jnp.ones((), evidence.dtype)
    _, slope, smoothed = filter_adjoint(operands, kept, (one, None))
    if smoothed is None:
        return (evidence, operands[2], jnp.zeros_like(operands[1])), kept
    return (evidence, smoothed, operands[1] * slope), kept


def _adjoint(operands: Any, residuals: Any, cotangents: Any) -> Any:
    """With d for tangents, s and S for the cotangents of the smoothed and of the transitions,

    y = w_t / c_t (dp_{t-1} A_t + p_{t-1} (A_t * S)) + p_t s_t,    r_t = sum(y),
    dp_t = y - p_t r_t,
    q_t = b_t * w_t / c_t,    dq_t = db_t * w_t / c_t + q_t (s_t - r_t),
    b_{t-1} = A_t q_t,    db_{t-1} = A_t dq_t + (A_t * S) q_t
    """
    _, transitions, logs = operands
    p, shift, scale = residuals
    if logs.shape[0] == 0:
        return None, None, None
    ones, weights = slopes_and_weights(logs, shift, scale)
    evidence_bar, s, S = (
        jnp.zeros(shape, logs.dtype) if bar is None else bar
        for bar, shape in zip(cotangents, ((), logs.shape, transitions.shape), strict=True)
    )
    constant = transitions, transitions * S
    varying = constant if transitions.ndim == 3 else None

    def forward(dp: Any, now: Any) -> Any:
        before, p, s, w, matrices = now
        A, B = constant if matrices is None else matrices
        y = w * (dp[:, None] * A + before[:, None] * B).sum(0) + p * s
        r = y.sum()
        return y - p * r, (y - p * r, r)

    def local(b: Any, db: Any, now: Any) -> Any:
        p, dp, s, r, w, one = now
        b = b + (one - (b * p).sum())
        db = db - (db * p).sum() - (b * dp).sum()
        q = bounded(b * w)
        return b, db, q, bounded(bounded(db * w) + bounded(q * (s - r)))

    def backward(after: tuple[Any, Any], now: Any) -> Any:
        *here, matrices = now
        A, B = constant if matrices is None else matrices
        b, db, q, dq = local(*after, here)
        return ((A * q).sum(1), bounded((A * dq + B * q).sum(1))), (b, db, q, dq)

    first = p[0] * (s[0] - (p[0] * s[0]).sum())
    at = (p[:-1], p[1:], s[1:], weights[1:], varying)
    _, (dp, r) = jax.lax.scan(forward, first, at)
    dp, r = jnp.concatenate([first[None], dp]), jnp.concatenate([(p[0] * s[0]).sum()[None], r])
    here = p, dp, s, r, weights, ones
    nothing = jnp.zeros_like(first)
    rest = (*(x[1:] for x in here), varying)
    end, later = jax.lax.scan(backward, (nothing, nothing), rest, reverse=True)
    start = local(*end, [x[0] for x in here])
    found = [jnp.concatenate([x[None], xs]) for x, xs in zip(start, later, strict=True)]
    return smoother_bars(transitions, S, evidence_bar, p, dp, *found)


def smoothed_by(form: Implementation) -> Value:
    """The smoother's value by a form of the filter and its adjoint."""
    back = form.adjoint
    assert back is not None

    def value(call: Call, *operands: Any) -> Any:
        (evidence, _), kept = form.value(dataclasses.replace(call, save=True), *operands)
        _, slope, smoothed = back(call, operands, kept, (jnp.ones_like(evidence), None))
        return (evidence, smoothed, operands[1] * slope), kept if call.save else ()

    return value


def _native_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    front, dtype = (() if call.batch is None else (call.batch,)), call.operands[2].dtype
    evidence_bar, *others = cotangents
    return tuple(
        native.call(
            f"varax_hmm_smoother_adjoint_{suffix(call)}",
            [jax.ShapeDtypeStruct((*front, *o.shape), dtype) for o in call.operands],
            *operands,
            *residuals,
            jnp.zeros(front, dtype) if evidence_bar is None else evidence_bar,
            *(jnp.zeros(0, dtype) if bar is None else bar for bar in others),
            **attributes(call),
        )
    )


_parallel = parallel_smoother, parallel_smoother_adjoint
smoother_operation = Operation(
    "hmm_smoother",
    smoother_definition,
    saving=_saving,
    adjoint=_adjoint,
    implementations=(
        native.native(smoothed_by(NATIVE_FILTER), _native_adjoint),
        Implementation("parallel", ("cuda", "tpu"), *_parallel),
    ),
)
smoother_operation.implementations.append(Implementation("parallel", ("cpu",), *_parallel))
