"""The filter of a discrete chain and its adjoint, parallel in time.

Hassan, Sarkka & Garcia-Fernandez (2021), "Temporal parallelization of inference in HMMs".

Products of the matrices diag(.) A diag(w) over ever longer stretches by `lax.associative_scan`: for
machines where a step of a loop costs more than K^3 operations. A product is kept as diag(2^r) N,
the rows of N having a maximum of order one and the whole numbers r the maximum zero: likelihoods
may exclude states, and what is reached later on neither vanishes nor loses digits.

The slope of the evidence is such products too, backwards. Cotangents of filtered probabilities and
tangents are affine recursions: pbar_{t-1} = B_t pbar_t + b_t.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ..frame import Call, over_batch
from .chain_steps import (
    MOST,
    bounded,
    evidence_of,
    shift_of,
    slopes_and_weights,
    smoother_bars,
    transitions_bar_of,
)

Stretch = tuple[jax.Array, jax.Array]  # r [..., K], N [..., K, K]

FAR = 1 << 28  # powers of two that nothing reaches


def _value_of(form: Any) -> Any:
    """A form of one chain, as an implementation has it."""

    def value(call: Call, *operands: Any) -> Any:
        def one(*operands: Any) -> Any:
            outputs, residuals = form(*operands)
            return outputs, residuals if call.save else ()

        return over_batch(call, one, call.batched)(*operands)

    return value


def _adjoint_of(form: Any) -> Any:
    """Its adjoint."""

    def adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
        has = (tuple(call.batched), True, True)
        return over_batch(call, form, has)(tuple(operands), residuals, cotangents)

    return adjoint


def _filter(initial: Any, transitions: Any, logs: Any) -> Any:
    steps, states = logs.shape
    if steps == 0:
        nothing = jnp.zeros(0, initial.dtype)
        return (jnp.zeros((), initial.dtype), logs), (logs, nothing, nothing)
    first = jnp.broadcast_to(initial, (1, states, states))
    rest = jnp.broadcast_to(transitions, (steps - 1, states, states))
    matrices = jnp.concatenate([first, rest])
    _, products = jax.lax.associative_scan(_after, _stretch(matrices, logs))
    filtered = products[:, 0] / _or_one(products[:, 0].sum(-1, keepdims=True))
    # One step of the recursion from each of these gives what the sequential form gives; scales are
    # what a step from the result sums to, since derivatives are those of steps.
    for _ in range(2):
        predicted = jnp.concatenate([initial[None], _times(filtered[:-1], rest)])
        shift = jax.vmap(shift_of)(predicted, logs)
        joint = predicted * jnp.exp(jnp.minimum(logs - shift[:, None], MOST))
        before, scale = filtered, joint.sum(1)
        filtered = joint / _or_one(scale)[:, None]
    filtered = before
    return (evidence_of(shift, scale), filtered), (filtered, shift, scale)


def _or_one(x: Any) -> Any:
    return jnp.where(x == 0, 1, x)


def _stretch(matrices: Any, logs: Any) -> Stretch:
    """One step each: A diag(exp(log likelihoods)), but for a factor of the step's."""
    shift = logs.max(-1, keepdims=True)
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    logs = jnp.broadcast_to(logs[:, None, :], matrices.shape)
    top = jnp.where(matrices > 0, logs, -jnp.inf).max(-1)
    top = jnp.where(jnp.isfinite(top), top, shift)
    joint = matrices * jnp.exp(jnp.minimum(logs - top[..., None], MOST))
    # exp(top - shift) = 2^r exp(rest), ln 2 in two parts, of which the first has few bits
    many = top - shift
    r = jnp.round(many / math.log(2))
    rest = (many - r * 0.693359375) - r * (math.log(2) - 0.693359375)
    r = jnp.clip(r, -FAR, FAR).astype(jnp.int32)
    return _normalised(r, joint * jnp.exp(jnp.clip(rest, -1, 1))[..., None])


def _normalised(r: Any, rows: Any) -> Stretch:
    most = rows.max(-1)
    powers = jnp.frexp(most)[1]
    r = jnp.where(most == 0, -FAR, r + powers)
    return jnp.maximum(r - r.max(-1, keepdims=True), -FAR), _by_power(rows, -powers[..., None])


def _after(a: Stretch, b: Stretch) -> Stretch:
    (ra, na), (rb, nb) = a, b
    between = jnp.broadcast_to(rb[..., None, :], na.shape)
    top = jnp.where(na > 0, between, -FAR).max(-1)
    weights = _by_power(na, jnp.where(na > 0, between - top[..., None], 0))
    precise = jax.lax.Precision.HIGHEST
    return _normalised(ra + top, jnp.matmul(weights, nb, precision=precise))


def _by_power(x: Any, power: Any) -> Any:
    """x 2^power: zero, or a number without bound, where 2^power is none."""
    info = jnp.finfo(x.dtype)
    normal = jnp.clip(power, info.minexp, info.maxexp - 1)
    bits = jnp.left_shift((normal + (info.maxexp - 1)).astype(f"int{info.bits}"), info.nmant)
    x = x * jax.lax.bitcast_convert_type(bits, x.dtype)
    return jnp.where(power > normal, x * info.max, jnp.where(power < normal, 0 * x, x))


def _adjoint(operands: Any, residuals: Any, cotangents: Any) -> Any:
    _, transitions, logs = operands
    filtered, shift, scale = residuals
    if len(logs) == 0:
        return None, None, None
    evidence_bar, filtered_bar = cotangents
    _, weights = slopes_and_weights(logs, shift, scale)
    a = jnp.zeros_like(logs)
    if evidence_bar is not None:
        a = evidence_bar * _gains(transitions, logs, filtered, scale)
    if filtered_bar is not None:
        steps = _steps(transitions, filtered, weights)
        bars = _backwards(*steps, filtered_bar)
        a = a + bars - (bars * filtered).sum(1, keepdims=True)
    q = bounded(a * weights)
    return q[0], transitions_bar_of(transitions, filtered, q[1:]), filtered * a


def _gains(transitions: Any, logs: Any, filtered: Any, scale: Any) -> Any:
    """p(x_{t+1..N} | z_t) / p(x_{t+1..N} | x_{1..t}); where a step is impossible, up to that."""
    steps, states = logs.shape
    matrices = jnp.broadcast_to(transitions, (steps - 1, states, states))
    p = filtered[:-1]
    r, rows = _stretch(matrices, logs[1:])
    impossible = scale[1:, None] == 0
    r = jnp.where(impossible, 0, r)
    rows = jnp.where(impossible[..., None], jnp.eye(states, dtype=rows.dtype), rows)
    if steps > 1:
        scan = jax.lax.associative_scan
        r, rows = scan(lambda later, earlier: _after(earlier, later), (r, rows), reverse=True)
    top = jnp.where(p > 0, r, -FAR).max(-1, keepdims=True)
    gains = bounded(_by_power(rows.sum(-1), r - top))
    gains = bounded(gains / _or_one((gains * p).sum(-1, keepdims=True)))
    ones = jnp.ones((1, states), logs.dtype)
    return jnp.where(scale[:, None] == 0, 0, jnp.concatenate([gains, ones]))


def _steps(transitions: Any, p: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
    """Of all steps but the first: pbar_{t-1} = S_t pbar_t + ..., S_t times sizes; and the sizes.

    Cotangents are as 1 / p, tangents as p: S is diag(1/size) matrix diag(size), where that is of
    order one whatever p is.
    """
    sizes = jnp.where(p > 0, p, 1)
    matrices = jnp.broadcast_to(transitions, (len(p) - 1, *transitions.shape[-2:]))
    through = (matrices * weights[1:, None, :]).sum(-1) * sizes[:-1]
    matrices = matrices * sizes[:-1, :, None] * bounded(weights / sizes)[1:, None, :]
    return matrices - through[:, :, None] * (p > 0)[1:, None, :], sizes


def _backwards(slopes: Any, sizes: Any, added: Any) -> Any:
    """x_{t-1} = S_t x_t + added_{t-1}, the last x being the last of `added`."""
    return bounded(_affine(slopes, sizes * added) / sizes)


def _forwards(slopes: Any, sizes: Any, added: Any) -> Any:
    """x_t = S_t' x_{t-1} + added_t, the first x being the first of `added`."""
    turned = jnp.flip(jnp.swapaxes(slopes, 1, 2), 0)
    return sizes * jnp.flip(_affine(turned, jnp.flip(added / sizes, 0)), 0)


def _affine(slopes: Any, added: Any) -> Any:
    last = added[-1]
    if len(slopes) == 0:
        return added
    slopes, added = jax.lax.associative_scan(_before, (slopes, added[:-1]), reverse=True)
    before = _finite(jnp.einsum("tij,j->ti", slopes, last) + added)
    return jnp.concatenate([before, last[None]])


def _smoother(*operands: Any) -> Any:
    (evidence, filtered), kept = _filter(*operands)
    if len(filtered) == 0:
        return (evidence, filtered, jnp.zeros_like(operands[1])), kept
    one = jnp.ones((), filtered.dtype)
    _, slope, smoothed = _adjoint(operands, kept, (one, None))
    return (evidence, smoothed, operands[1] * slope), kept


def _smoother_adjoint(operands: Any, residuals: Any, cotangents: Any) -> Any:
    """As in chain_smoother.py; tangents of p and b are affine recursions too.

    Filtered probabilities of neighbouring steps are rounded apart here: where all that is left of
    the predicted is a path of probability e^-30, that costs these tangents a digit.
    """
    _, transitions, logs = operands
    p, shift, scale = residuals
    if len(logs) == 0:
        return None, None, None
    _, weights = slopes_and_weights(logs, shift, scale)
    evidence_bar, s, S = (
        jnp.zeros(shape, logs.dtype) if bar is None else bar
        for bar, shape in zip(cotangents, ((), logs.shape, transitions.shape), strict=True)
    )
    A = jnp.broadcast_to(transitions, (len(p) - 1, *transitions.shape[-2:]))
    B = A * S
    b, steps = _gains(transitions, logs, p, scale), _steps(transitions, p, weights)
    q = bounded(b * weights)
    added = p * s
    added = added.at[1:].add(weights[1:] * _times(p[:-1], B))
    dp = _forwards(*steps, added - p * added.sum(1, keepdims=True))
    r = added.at[1:].add(weights[1:] * _times(dp[:-1], A)).sum(1, keepdims=True)
    moved = bounded(q * (s - r))
    turned, of_B = jnp.swapaxes(A, 1, 2), _times(q[1:], jnp.swapaxes(B, 1, 2))

    def normal(db: Any) -> Any:
        db = db - (db * p).sum(1, keepdims=True) - (b * dp).sum(1, keepdims=True)
        return db, bounded(bounded(db * weights) + moved)

    end = jnp.zeros_like(p[:1])
    _, dq = normal(jnp.zeros_like(p))
    db = _backwards(*steps, jnp.concatenate([_times(dq[1:], turned) + of_B, end]))
    db, dq = normal(db)
    return smoother_bars(transitions, S, evidence_bar, p, dp, b, db, q, dq)


def _times(x: Any, matrices: Any) -> Any:
    return jnp.einsum("ti,tij->tj", x, matrices, precision=jax.lax.Precision.HIGHEST)


def _before(later: Any, earlier: Any) -> Any:
    """First the map of the later stretch, then that of the earlier one."""
    (s, b), (t, c) = later, earlier
    precise = jax.lax.Precision.HIGHEST
    return (
        _finite(jnp.matmul(t, s, precision=precise)),
        _finite(jnp.einsum("...ij,...j->...i", t, b, precision=precise) + c),
    )


def _finite(x: Any) -> Any:
    """Of states that cannot be there rows may be anything; those of others have zeros for them."""
    return bounded(jnp.where(jnp.isnan(x), 0, x))


parallel_value, parallel_adjoint = _value_of(_filter), _adjoint_of(_adjoint)
parallel_smoother, parallel_smoother_adjoint = _value_of(_smoother), _adjoint_of(_smoother_adjoint)
