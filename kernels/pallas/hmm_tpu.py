"""Batches of discrete chains on TPU: the filter and its adjoint, in blocks of steps (Mosaic TPU).

A loop that XLA compiles reads and writes the HBM in every step, a few kB at a time. Here a block of
steps of 128 chains is in vector memory while the next one arrives, the probabilities stay in
registers from step to step, and a step is one small float32 product and a few sums over sublanes.
Blocks of chains are independent, blocks of steps follow one another, backwards in the adjoint.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..mp.chain_steps import MOST, bounded, shift_of
from .padding import padded, up

LANES, SUBLANES = 128, 8


@dataclasses.dataclass(frozen=True)
class Blocks:
    """`steps` of 128 chains, fewer where they would be more than `most` numbers of an operand."""

    steps: int = 64
    most: int = 1 << 17

    def of(self, steps: int, states: int) -> int:
        """The steps of a block: whole tiles of the rows of shifts and scales."""
        fit = max(self.most // (states * LANES) // SUBLANES * SUBLANES, SUBLANES)
        return min(self.steps, fit, up(steps, SUBLANES))


def forward(
    initial: Any,
    transitions: Any,
    logs: Any,
    *,
    blocks: Blocks = Blocks(),
    interpret: Any = False,
) -> tuple[Any, Any, Any]:
    """Filtered probabilities, shifts and scales of every step: [N, K, B], [N, B], [N, B].

    Args:
        initial: [K, B].
        transitions: [K, K].
        logs: log likelihoods, [N, K, B].
        blocks: sizes of the blocks.
        interpret: run it without a TPU.
    """
    (steps, states, chains), height = logs.shape, up(logs.shape[1], SUBLANES)
    size = blocks.of(steps, height)
    initial = padded(initial, SUBLANES, LANES)
    # p' = A^T p, so that the product's left side is read along its rows
    turned = padded(transitions.T, SUBLANES, SUBLANES)
    logs = padded(_without_states(logs), size, None, LANES)

    def kernel(
        initial: Any, turned: Any, logs: Any, filtered: Any, shift: Any, scale: Any, carry: Any
    ) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            carry[...] = initial[...]

        def step(t: Any, predicted: Any) -> Any:
            x = logs[t]
            by = shift_of(predicted, x, axis=0)
            joint = predicted * jnp.exp(jnp.minimum(x - by, MOST))
            total = joint.sum(0, keepdims=True)
            p = joint / jnp.where(total == 0, 1.0, total)
            filtered[t] = p
            shift[pl.ds(t, 1), :] = by
            scale[pl.ds(t, 1), :] = total
            return _product(turned[...], p)

        carry[...] = jax.lax.fori_loop(0, size, step, carry[...])

    numbers = pl.BlockSpec((size, height, LANES), lambda b, n: (n, 0, b))
    rows = pl.BlockSpec((size, LANES), lambda b, n: (n, b))
    padded_steps, _, width = logs.shape
    found = _called(
        kernel,
        (numbers, rows, rows),
        [_f32(logs.shape), *[_f32((padded_steps, width))] * 2],
        [
            (initial, pl.BlockSpec((height, LANES), lambda b, n: (0, b))),
            (turned, pl.BlockSpec((height, height), lambda b, n: (0, 0))),
            (logs, numbers),
        ],
        (width // LANES, padded_steps // size),
        height,
        interpret,
    )
    filtered, shift, scale = found
    return filtered[:steps, :states, :chains], shift[:steps, :chains], scale[:steps, :chains]


def backward(
    transitions: Any,
    logs: Any,
    filtered: Any,
    shift: Any,
    scale: Any,
    evidence_bar: Any,
    filtered_bar: Any,
    *,
    blocks: Blocks = Blocks(),
    interpret: Any = False,
) -> tuple[Any, Any]:
    """The cotangents of log likelihoods, and of what was predicted: [N, K, B] each.

    As `mp.chain_filter.filter_adjoint`, with what `forward` gave, evidence_bar [B] and
    filtered_bar [N, K, B], or None.
    """
    (steps, states, chains), height = logs.shape, up(logs.shape[1], SUBLANES)
    size = blocks.of(steps, height)
    transitions = padded(transitions, SUBLANES, SUBLANES)
    logs = padded(_without_states(logs), size, None, LANES)
    arrays = [filtered] if filtered_bar is None else [filtered, filtered_bar]
    arrays = [padded(x, size, SUBLANES, LANES) for x in arrays]
    shift, scale = (padded(x, size, LANES) for x in (shift, scale))  # no scale: nothing is added
    evidence_bar = padded(evidence_bar[None], None, LANES)

    def kernel(transitions: Any, evidence_bar: Any, logs: Any, shift: Any, scale: Any, *refs: Any):
        filtered, *more, logs_bar, q, carry = refs

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            carry[...] = jnp.zeros_like(carry)

        def step(i: Any, bar: Any) -> Any:
            t = size - 1 - i
            p, c, by = filtered[t], scale[pl.ds(t, 1), :], shift[pl.ds(t, 1), :]
            bar = bar + more[0][t] if more else bar
            gain = jnp.where(c == 0, 0.0, evidence_bar[...])
            a = bar - (bar * p).sum(0, keepdims=True) + gain
            weights = jnp.exp(jnp.minimum(logs[t] - by, MOST)) / jnp.where(c == 0, 1.0, c)
            logs_bar[t] = p * a
            q[t] = bounded(a * bounded(weights))
            return _product(transitions[...], q[t])

        carry[...] = jax.lax.fori_loop(0, size, step, carry[...])

    padded_steps, _, width = logs.shape
    many = padded_steps // size
    numbers = pl.BlockSpec((size, height, LANES), lambda b, n: (many - 1 - n, 0, b))
    rows = pl.BlockSpec((size, LANES), lambda b, n: (many - 1 - n, b))
    logs_bar, q = _called(
        kernel,
        (numbers, numbers),
        [_f32(logs.shape)] * 2,
        [
            (transitions, pl.BlockSpec((height, height), lambda b, n: (0, 0))),
            (evidence_bar, pl.BlockSpec((1, LANES), lambda b, n: (0, b))),
            (logs, numbers),
            (shift, rows),
            (scale, rows),
            *((x, numbers) for x in arrays),
        ],
        (width // LANES, many),
        height,
        interpret,
    )
    return logs_bar[:steps, :states, :chains], q[:steps, :states, :chains]


def _called(
    kernel: Any,
    out_specs: Any,
    out_shape: Any,
    operands: Any,
    grid: tuple[int, int],
    height: int,
    interpret: Any,
) -> Any:
    """`kernel` for every block of chains, and for each of them from block to block of steps."""
    arrays, specs = zip(*operands, strict=True)
    return pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid=grid,
        in_specs=list(specs),
        out_specs=list(out_specs),
        scratch_shapes=[pltpu.VMEM((height, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(*arrays)


def _without_states(logs: Any) -> Any:
    """Whole tiles of states; those that are not there are impossible."""
    missing = -logs.shape[1] % SUBLANES
    return jnp.pad(logs, ((0, 0), (0, missing), (0, 0)), constant_values=-jnp.inf)


def _f32(shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _product(x: Any, y: Any) -> Any:
    precise = jax.lax.Precision.HIGHEST
    return jnp.dot(x, y, precision=precise, preferred_element_type=jnp.float32)
