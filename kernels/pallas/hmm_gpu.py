"""Batches of discrete chains on NVIDIA GPUs, Hopper and newer (Mosaic GPU).

What it avoids is a kernel launch in every step, 20 to 40 us as XLA compiles a loop. A thread has a
chain, its probabilities in registers from the first step to the last; blocks of steps of 128 chains
are copied to shared memory while those before them are computed. Threads exchange nothing. The
transitions are in shared memory, read by all threads at once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..mp.chain_steps import MOST, bounded, least_usual
from .padding import padded

CHAINS = 128  # threads of a warpgroup
UNIT = 32  # numbers of a copy to shared memory


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Steps of 128 chains: `most` numbers of a chain in a block; `stages` copies under way."""

    most: int = 32
    stages: int = 2

    def of(self, states: int) -> int:
        """The steps of a block."""
        return max(self.most // states, 1)


def forward(
    initial: Any,
    transitions: Any,
    logs: Any,
    *,
    blocks: Blocks = Blocks(),
    interpret: Any = None,
) -> tuple[Any, Any, Any]:
    """As `hmm_tpu.forward`."""
    (steps, states, chains), size = logs.shape, blocks.of(logs.shape[1])
    initial, logs = padded(initial, None, CHAINS), padded(logs, size, None, CHAINS)
    flat, many = _flat(transitions), logs.shape[0] // size

    def step(matrix: Any, t: Any, logs: Any, out: Any, now: Any) -> Any:
        filtered, shift, scale = out
        x = [logs[t, k] for k in range(states)]
        by = _shift_of(now, x)
        joint = [p * jnp.exp(jnp.minimum(y - by, MOST)) for p, y in zip(now, x, strict=True)]
        total = functools.reduce(jnp.add, joint)
        by_total = jnp.where(total == 0, 1.0, total)
        p = [y / by_total for y in joint]
        for k in range(states):
            filtered[t, k] = p[k]
        shift[t], scale[t] = by, total
        return tuple(
            _sum(p[i] * matrix[i * states + j] for i in range(states)) for j in range(states)
        )

    def body(initial: Any, transitions: Any, logs: Any, *refs: Any) -> None:
        out, (matrix, start, *leaving, barrier) = refs[:3], refs[3:]
        first = _block()
        plgpu.copy_gmem_to_smem(transitions, matrix, barrier)
        plgpu.copy_gmem_to_smem(initial.at[:, first], start, barrier)
        plgpu.barrier_wait(barrier)

        def of_block(at: Any, logs: Any, carry: Any) -> Any:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the block before has left

            def one(t: Any, carry: Any) -> Any:
                return step(matrix, t, logs, leaving, carry)

            carry = jax.lax.fori_loop(0, size, one, carry)
            _leave(leaving, out, at[0] * size, first)
            return carry

        plgpu.emit_pipeline(
            of_block,
            grid=(many,),
            in_specs=[_numbers(size, states)],
            max_concurrent_steps=min(blocks.stages, many),
            init_carry=tuple(start[k] for k in range(states)),
        )(logs.at[:, :, first])
        plgpu.wait_smem_to_gmem(0)

    shape = logs.shape
    scratch = [flat.shape, (states, CHAINS), (size, states, CHAINS), *[(size, CHAINS)] * 2]
    out_type = (_f32(shape), *[_f32((shape[0], shape[2]))] * 2)
    found = _called(body, out_type, scratch, shape[2], interpret)(initial, flat, logs)
    return found[0][:steps, :, :chains], *(x[:steps, :chains] for x in found[1:])


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
    interpret: Any = None,
) -> tuple[Any, Any]:
    """The cotangents of log likelihoods, and of what was predicted: [N, K, B] each.

    As `mp.chain_filter.filter_adjoint`, with what `forward` gave, evidence_bar [B] and
    filtered_bar [N, K, B], or None.
    """
    (steps, states, chains), size = logs.shape, blocks.of(logs.shape[1])
    numbers = [logs, filtered] if filtered_bar is None else [logs, filtered, filtered_bar]
    numbers = [padded(x, size, None, CHAINS) for x in numbers]
    rows = [padded(x, size, CHAINS) for x in (shift, scale)]  # no scale: nothing is added
    evidence_bar = padded(evidence_bar, CHAINS)
    flat, many = _flat(transitions), numbers[0].shape[0] // size

    def step(matrix: Any, gain: Any, t: Any, refs: Any, bar: Any) -> Any:
        shift, scale, logs, filtered, *more, logs_bar, q = refs
        p, c, by = [filtered[t, k] for k in range(states)], scale[t], shift[t]
        bar = [b + more[0][t, k] for k, b in enumerate(bar)] if more else bar
        gain = jnp.where(c == 0, 0.0, gain)
        add = gain - _sum(b * y for b, y in zip(bar, p, strict=True))
        by_scale = jnp.where(c == 0, 1.0, c)
        found = []
        for k in range(states):
            a = bar[k] + add
            logs_bar[t, k] = p[k] * a
            weight = bounded(jnp.exp(jnp.minimum(logs[t, k] - by, MOST)) / by_scale)
            found.append(bounded(a * weight))
            q[t, k] = found[k]
        return tuple(
            _sum(matrix[i * states + j] * found[j] for j in range(states)) for i in range(states)
        )

    def body(transitions: Any, evidence_bar: Any, *refs: Any) -> None:
        arrays, out = refs[: len(numbers) + 2], refs[len(numbers) + 2 : len(numbers) + 4]
        matrix, start, *leaving, barrier = refs[len(numbers) + 4 :]
        first = _block()
        plgpu.copy_gmem_to_smem(transitions, matrix, barrier)
        plgpu.copy_gmem_to_smem(evidence_bar.at[first], start, barrier)
        plgpu.barrier_wait(barrier)
        gain = start[...]

        def of_block(at: Any, *refs_and_carry: Any) -> Any:
            *refs, carry = refs_and_carry
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the block before has left

            def one(i: Any, carry: Any) -> Any:
                return step(matrix, gain, size - 1 - i, (*refs, *leaving), carry)

            carry = jax.lax.fori_loop(0, size, one, carry)
            _leave(leaving, out, (many - 1 - at[0]) * size, first)
            return carry

        plgpu.emit_pipeline(
            of_block,
            grid=(many,),
            in_specs=[_rows(size, many)] * 2 + [_numbers(size, states, many)] * len(numbers),
            max_concurrent_steps=min(blocks.stages, many),
            init_carry=(jnp.zeros_like(gain),) * states,
        )(*(x.at[(slice(None),) * (len(x.shape) - 1) + (first,)] for x in arrays))
        plgpu.wait_smem_to_gmem(0)

    shape = numbers[0].shape
    scratch = [flat.shape, (CHAINS,), *[(size, states, CHAINS)] * 2]
    call = _called(body, (_f32(shape),) * 2, scratch, shape[2], interpret)
    logs_bar, q = call(flat, evidence_bar, *rows, *numbers)
    return logs_bar[:steps, :, :chains], q[:steps, :, :chains]


def _called(body: Any, out_type: Any, scratch: Any, width: int, interpret: Any) -> Any:
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=(width // CHAINS,),
        grid_names=("chains",),
        scratch_types=(
            *(plgpu.SMEM(shape, jnp.float32) for shape in scratch),
            plgpu.Barrier(num_arrivals=2),
        ),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )


def _flat(transitions: Any) -> Any:
    """Row by row, in whole units of a copy."""
    return padded(transitions.reshape(-1), UNIT)


def _leave(blocks: Any, out: Any, at: Any, first: Any) -> None:
    """Start the copies of results to global memory."""
    plgpu.commit_smem()
    for block, array in zip(blocks, out, strict=True):
        where = (slice(None),) * (len(array.shape) - 2)
        plgpu.copy_smem_to_gmem(block, array.at[(pl.ds(at, block.shape[0]), *where, first)])


def _block() -> Any:
    """The chains of this warpgroup."""
    return pl.ds(jax.lax.axis_index("chains") * CHAINS, CHAINS)


def _numbers(size: int, states: int, many: int | None = None) -> Any:
    """Blocks of [N, K, chains]; with `many`, from the last of so many to the first."""
    at = (lambda n: (n, 0, 0)) if many is None else (lambda n: (many - 1 - n, 0, 0))
    return plgpu.BlockSpec((size, states, CHAINS), at)


def _rows(size: int, many: int | None = None) -> Any:
    at = (lambda n: (n, 0)) if many is None else (lambda n: (many - 1 - n, 0))
    return plgpu.BlockSpec((size, CHAINS), at)


def _shift_of(predicted: Any, x: Any) -> Any:
    """`mp.chain_steps.shift_of`, with a state in each element of the lists."""
    top = _finite(functools.reduce(jnp.maximum, x))
    likely = _sum(p * jnp.exp(y - top) for p, y in zip(predicted, x, strict=True))
    within = [jnp.where(p > 0, y, -jnp.inf) for p, y in zip(predicted, x, strict=True)]
    reachable = _finite(functools.reduce(jnp.maximum, within))
    return jnp.where(likely > least_usual(jnp.float32), top, reachable)


def _finite(x: Any) -> Any:
    return jnp.where(x < jnp.inf, jnp.where(x > -jnp.inf, x, 0.0), 0.0)


def _sum(terms: Any) -> Any:
    return functools.reduce(jnp.add, terms)


def _f32(shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
