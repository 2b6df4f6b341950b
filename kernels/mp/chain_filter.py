"""The filter of a discrete chain, and what all of smoothing is: its derivative.

Rows of probabilities, normalised in every step; logarithms only of the likelihoods, where densities
are at home. So zero transitions and likelihoods of -inf need no special case, and a step has no
logarithm in it. Of a state that has a probability below the smallest number of the dtype, given the
data so far, nothing remains.

Likelihoods enter as exp(log likelihood - shift). The shift cancels in every result, so any will do:
the largest of the step, unless the states of large likelihood are those that cannot be reached.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import native
from ..frame import Call, Implementation, Operation
from .chain_parallel import parallel_adjoint, parallel_value
from .chain_steps import (
    MOST,
    attributes,
    bounded,
    evidence_of,
    gains_and_weights,
    shift_of,
    suffix,
    transitions_bar_of,
)


def filter_definition(initial: Any, transitions: Any, log_likelihoods: Any) -> Any:
    """Log evidence and filtered probabilities: log p(x_1..N), p(z_n | x_1..n): [], [N, K]."""
    return filter_saving(initial, transitions, log_likelihoods)[0]


def filter_saving(initial: Any, transitions: Any, log_likelihoods: Any) -> Any:
    """The same, and (filtered, shift, scale) for the adjoint."""

    def step(predicted: Any, logs: Any) -> Any:
        shift = shift_of(predicted, logs)
        joint = predicted * jnp.exp(jnp.minimum(logs - shift, MOST))
        scale = joint.sum()
        return joint / jnp.where(scale == 0, 1, scale), shift, scale

    def after(filtered: Any, now: Any) -> Any:
        logs, matrix = now
        predicted = (filtered[:, None] * (transitions if matrix is None else matrix)).sum(0)
        found = step(predicted, logs)
        return found[0], found

    if log_likelihoods.shape[0] == 0:
        nothing = jnp.zeros(0, initial.dtype)
        return (jnp.zeros((), initial.dtype), log_likelihoods), (log_likelihoods, nothing, nothing)
    first = step(initial, log_likelihoods[0])
    varying = transitions if transitions.ndim == 3 else None
    _, rest = jax.lax.scan(after, first[0], (log_likelihoods[1:], varying))
    kept = tuple(jnp.concatenate([f[None], r]) for f, r in zip(first, rest, strict=True))
    filtered, shift, scale = kept
    return (evidence_of(shift, scale), filtered), kept


def filter_adjoint(operands: Any, residuals: Any, cotangents: Any) -> Any:
    """Forward-backward: with bars for cotangents, c the scale and w = exp(log likelihood - shift),

    a_t = pbar_t - <pbar_t, p_t> + evidence_bar,    log_likelihoods_bar_t = p_t * a_t,
    q_t = a_t * w_t / c_t,    pbar_{t-1} = A_t q_t + filtered_bar_{t-1},    A_bar_t = p_{t-1} q_t^T
    """
    _, transitions, logs = operands
    filtered, shift, scale = residuals
    if logs.shape[0] == 0:
        return None, None, None
    evidence_bar, filtered_bar = cotangents
    filtered_bar = jnp.zeros_like(filtered) if filtered_bar is None else filtered_bar
    evidence_bar = jnp.zeros((), logs.dtype) if evidence_bar is None else evidence_bar
    gains, weights = gains_and_weights(logs, shift, scale, evidence_bar)

    def local(bar: Any, now: Any) -> Any:
        p, gain, weight = now
        a = bar - (bar * p).sum() + gain
        return p * a, bounded(a * weight)

    def step(bar: Any, now: Any) -> Any:
        *here, before_bar, matrix = now
        log_bar, q = local(bar, here)
        matrix = transitions if matrix is None else matrix
        return (matrix * q).sum(1) + before_bar, (log_bar, q)

    here = (filtered, gains, weights)
    varying = transitions if transitions.ndim == 3 else None
    rest = (*(x[1:] for x in here), filtered_bar[:-1], varying)
    bar, (log_bars, q) = jax.lax.scan(step, filtered_bar[-1], rest, reverse=True)
    log_bar, initial_bar = local(bar, [x[0] for x in here])
    logs_bar = jnp.concatenate([log_bar[None], log_bars])
    return initial_bar, transitions_bar_of(transitions, filtered, q), logs_bar


def _native_value(call: Call, *operands: Any) -> Any:
    steps, states = call.operands[2].shape
    front, dtype = (() if call.batch is None else (call.batch,)), call.operands[2].dtype
    kept = (*front, steps) if call.save else (0,)
    shapes = (front, (*front, steps, states), kept, kept)
    evidence, filtered, shift, scale = native.call(
        f"varax_hmm_filter_{suffix(call)}",
        [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes],
        *operands,
        save=np.bool_(call.save),
        **attributes(call),
    )
    return (evidence, filtered), (filtered, shift, scale) if call.save else ()


def _native_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    front, dtype = (() if call.batch is None else (call.batch,)), call.operands[2].dtype
    evidence_bar, filtered_bar = cotangents
    return tuple(
        native.call(
            f"varax_hmm_adjoint_{suffix(call)}",
            [jax.ShapeDtypeStruct((*front, *o.shape), dtype) for o in call.operands],
            *operands,
            *residuals,
            jnp.zeros(front, dtype) if evidence_bar is None else evidence_bar,
            jnp.zeros(0, dtype) if filtered_bar is None else filtered_bar,
            **attributes(call),
        )
    )


NATIVE = native.native(_native_value, _native_adjoint)
PARALLEL = Implementation("parallel", ("cuda", "tpu"), parallel_value, parallel_adjoint)

filter_operation = Operation(
    "hmm_filter",
    filter_definition,
    saving=filter_saving,
    adjoint=filter_adjoint,
    implementations=(NATIVE, PARALLEL),
)
# On a CPU the parallel form is 10 to 26 times slower than a scan: there it comes last.
filter_operation.implementations.append(dataclasses.replace(PARALLEL, platforms=("cpu",)))
