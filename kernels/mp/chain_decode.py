"""Paths of a discrete chain: the most likely one, and draws from the posterior.

The most likely path is found in logarithms by sums and maxima alone, so every implementation gives
the same integers. Of paths that are equally likely, the one is taken whose last state is the
smallest, then the last but one, and so on.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import native
from ..frame import Call, Operation
from .chain_steps import attributes, blocked_sum, suffix


def viterbi_definition(initial: Any, transitions: Any, logs: Any) -> Any:
    """The most likely path and its log probability, all operands being logarithms: [N], []."""
    return _viterbi_saving(initial, transitions, logs)[0]


def _viterbi_saving(initial: Any, transitions: Any, logs: Any) -> Any:
    steps = logs.shape[0]
    if steps == 0:
        path = jnp.zeros(0, jnp.int32)
        return (path, jnp.zeros((), logs.dtype)), (path,)
    varying = transitions if transitions.ndim == 3 else None

    def less_its_maximum(score: Any) -> Any:
        top = score.max()
        return score - jnp.where(jnp.isfinite(top), top, 0)

    def forward(delta: Any, now: Any) -> Any:
        log, matrix = now
        matrix = transitions if matrix is None else matrix
        delta = less_its_maximum((delta[:, None] + matrix).max(0) + log)
        return delta, delta

    def backward(state: Any, now: Any) -> Any:
        delta, matrix = now
        matrix = transitions if matrix is None else matrix
        state = jnp.argmax(delta + matrix[:, state]).astype(jnp.int32)
        return state, state

    first = less_its_maximum(initial + logs[0])
    last, deltas = jax.lax.scan(forward, first, (logs[1:], varying))
    deltas = jnp.concatenate([first[None], deltas])
    state = jnp.argmax(last).astype(jnp.int32)
    _, path = jax.lax.scan(backward, state, (deltas[:-1], varying), reverse=True)
    path = jnp.append(path, state)
    unknown = sum(jnp.isnan(x).any() for x in (initial, transitions, logs)) > 0
    path = jax.lax.stop_gradient(jnp.where(unknown, 0, path))
    score = path_score(initial, transitions, logs, path)
    return (path, jnp.where(unknown, jnp.nan, score)), (path,)


def path_score(initial: Any, transitions: Any, logs: Any, path: Any) -> Any:
    """The log probability of a path and the data."""
    steps = jnp.arange(len(path))
    index = (path[:-1], path[1:]) if transitions.ndim == 2 else (steps[:-1], path[:-1], path[1:])
    return initial[path[0]] + blocked_sum(transitions[index]) + blocked_sum(logs[steps, path])


def _viterbi_adjoint(operands: Any, residuals: Any, cotangents: Any) -> Any:
    (path,), (_, score_bar) = residuals, cotangents
    if score_bar is None or len(path) == 0:
        return None, None, None
    initial, transitions, logs = operands
    _, pull = jax.vjp(lambda i, t, x: path_score(i, t, x, path), initial, transitions, logs)
    return pull(score_bar)


def _viterbi_native(call: Call, *operands: Any) -> Any:
    front = () if call.batch is None else (call.batch,)
    steps, dtype = call.operands[2].shape[0], call.operands[2].dtype
    path, score = native.call(
        f"varax_hmm_viterbi_{suffix(call)}",
        [
            jax.ShapeDtypeStruct((*front, steps), jnp.int32),
            jax.ShapeDtypeStruct(front, dtype),
        ],
        *operands,
        **attributes(call),
    )
    return (path, score), (path,) if call.save else ()


viterbi_operation = Operation(
    "hmm_viterbi",
    viterbi_definition,
    saving=_viterbi_saving,
    adjoint=_viterbi_adjoint,
    implementations=(native.native(_viterbi_native),),
)


def draw_definition(uniforms: Any, transitions: Any, filtered: Any) -> Any:
    """z_N ~ filtered_N, then z_n with probabilities filtered_n * p(z_{n+1} | z_n): [N] integers."""
    if len(uniforms) == 0:
        return jnp.zeros(0, jnp.int32)

    def chosen(weights: Any, uniform: Any) -> Any:
        sums = jnp.cumsum(weights)
        above = sums > uniform * sums[-1]
        last = jnp.where(weights > 0, jnp.arange(len(weights)), 0).max()
        return jnp.where(above.any(), jnp.argmax(above), last).astype(jnp.int32)

    def step(state: Any, now: Any) -> Any:
        p, uniform, matrix = now
        matrix = transitions if matrix is None else matrix
        state = chosen(p * matrix[:, state], uniform)
        return state, state

    last = chosen(filtered[-1], uniforms[-1])
    varying = transitions if transitions.ndim == 3 else None
    earlier = (filtered[:-1], uniforms[:-1], varying)
    _, path = jax.lax.scan(step, last, earlier, reverse=True)
    return jnp.append(path, last)


def _draw_native(call: Call, uniforms: Any, transitions: Any, filtered: Any) -> Any:
    front = () if call.batch is None else (call.batch,)
    struct = jax.ShapeDtypeStruct((*front, call.operands[2].shape[0]), jnp.int32)
    name = f"varax_hmm_draw_{suffix(call)}"
    path = native.call(name, [struct], filtered, transitions, uniforms, **attributes(call))
    return tuple(path), ()


draw_operation = Operation(
    "hmm_sample",
    draw_definition,
    implementations=(native.native(_draw_native),),
    differentiable=(False, False, False),
)
