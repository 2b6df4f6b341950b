"""The filter of a discrete chain and its adjoint, parallel in time.

Hassan, Sarkka & Garcia-Fernandez (2021), "Temporal parallelization of inference in HMMs".

Products of the matrices diag(.) A diag(w) over ever longer stretches by `lax.associative_scan`: for
machines where a step of a loop costs more than K^3 operations. A product is kept as
diag(exp(r)) N, the rows of N having the maximum one and r the maximum zero, so that likelihoods may
exclude states without anything vanishing that is reached later on.

The adjoint is an affine recursion, backwards: pbar_{t-1} = B_t pbar_t + b_t.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..frame import Call
from ..frame.operation import mapped
from .chain_steps import MOST, evidence_of, gains_and_weights, shift_of, transitions_bar_of

Stretch = tuple[jax.Array, jax.Array]  # r [..., K], N [..., K, K]


def parallel_value(call: Call, *operands: Any) -> Any:
    """The filter, as an implementation gives it."""

    def one(*operands: Any) -> Any:
        outputs, residuals = _filter(*operands)
        return outputs, residuals if call.save else ()

    return one(*operands) if call.batch is None else mapped(one, call.batched)(*operands)


def parallel_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    """Its adjoint."""
    if call.batch is None:
        return _adjoint(operands, residuals, cotangents)
    axes = tuple(0 if b else None for b in call.batched)
    return jax.vmap(_adjoint, in_axes=(axes, 0, 0))(operands, residuals, cotangents)


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
    # One step of the recursion from each of these gives what the sequential form gives.
    later = jnp.einsum("ti,tij->tj", filtered[:-1], rest)
    predicted = jnp.concatenate([initial[None], later])
    shift = jax.vmap(shift_of)(predicted, logs)
    joint = predicted * jnp.exp(jnp.minimum(logs - shift[:, None], MOST))
    scale = joint.sum(1)
    filtered = joint / _or_one(scale)[:, None]
    return (evidence_of(shift, scale), filtered), (filtered, shift, scale)


def _or_one(x: Any) -> Any:
    return jnp.where(x == 0, 1, x)


def _stretch(matrices: Any, logs: Any) -> Stretch:
    """One step each: A diag(exp(log likelihoods))."""
    logs = jnp.broadcast_to(logs[:, None, :], matrices.shape)
    top = jnp.where(matrices > 0, logs, -jnp.inf).max(-1)
    top = jnp.where(jnp.isfinite(top), top, 0)
    joint = matrices * jnp.exp(jnp.minimum(logs - top[..., None], MOST))
    return _normalised(top, joint)


def _normalised(r: Any, rows: Any) -> Stretch:
    most = rows.max(-1)
    r = jnp.where(most == 0, -jnp.inf, r + jnp.log(_or_one(most)))
    top = r.max(-1, keepdims=True)
    return r - jnp.where(jnp.isfinite(top), top, 0), rows / _or_one(most)[..., None]


def _after(a: Stretch, b: Stretch) -> Stretch:
    (ra, na), (rb, nb) = a, b
    between = jnp.broadcast_to(rb[..., None, :], na.shape)
    top = jnp.where(na > 0, between, -jnp.inf).max(-1)
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = na * jnp.exp(jnp.minimum(between - top[..., None], MOST))
    precise = jax.lax.Precision.HIGHEST
    return _normalised(ra + top, jnp.matmul(weights, nb, precision=precise))


def _adjoint(operands: Any, residuals: Any, cotangents: Any) -> Any:
    _, transitions, logs = operands
    filtered, shift, scale = residuals
    steps, states = logs.shape
    if steps == 0:
        return None, None, None
    evidence_bar, filtered_bar = cotangents
    filtered_bar = jnp.zeros_like(filtered) if filtered_bar is None else filtered_bar
    evidence_bar = jnp.zeros((), logs.dtype) if evidence_bar is None else evidence_bar
    gains, weights = gains_and_weights(logs, shift, scale, evidence_bar)
    # pbar_{t-1} = A_t (w/c * (pbar_t - <pbar_t, p_t> + gain_t)) + filtered_bar_{t-1}
    matrices = jnp.broadcast_to(transitions, (steps - 1, states, states)) * weights[1:, None, :]
    sums = matrices.sum(-1)
    slopes = matrices - sums[:, :, None] * filtered[1:, None, :]
    added = filtered_bar[:-1] + sums * gains[1:, None]
    bars = filtered_bar[-1:]
    if steps > 1:
        slopes, added = jax.lax.associative_scan(_before, (slopes, added), reverse=True)
        bars = jnp.concatenate([jnp.einsum("tij,j->ti", slopes, filtered_bar[-1]) + added, bars])
    a = bars - (bars * filtered).sum(1, keepdims=True) + gains[:, None]
    q = a * weights
    return q[0], transitions_bar_of(transitions, filtered, q[1:]), filtered * a


def _before(later: Any, earlier: Any) -> Any:
    """First the map of the later stretch, then that of the earlier one."""
    (s, b), (t, c) = later, earlier
    precise = jax.lax.Precision.HIGHEST
    return (
        jnp.matmul(t, s, precision=precise),
        jnp.einsum("...ij,...j->...i", t, b, precision=precise) + c,
    )
