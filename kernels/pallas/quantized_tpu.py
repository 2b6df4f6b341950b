"""Products with packed weights on TPU (Mosaic TPU).

With few rows the time is that of reading the weights, and the plain form reads and writes them in
float32: 4 K N bytes more each way. Here K N (8 bits) or K N / 2 bytes (4 bits) come into vector
memory and become integers there. Integers of 8 bits are exact in bfloat16, so a row in float32 is
three rows in bfloat16, whose products with the weights the matrix unit computes in one pass of
each instead of the six of a float32 product; scales come after the sums over a group. With int8
rows, sums are exact.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .packed_layout import by_input, halves_apart
from .padding import block, padded

LANES, SUBLANES = 128, 8
ROWS = {"bfloat16": 16, "int8": 32}  # of a register: rows are filled up to so many


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The largest blocks: rows of x, inputs, outputs."""

    rows: int = 128
    inputs: int = 1024
    outputs: int = 512


def matmul(
    x: Any,
    packed: Any,
    scales: Any,
    zeros: Any,
    *,
    bits: int,
    group: int,
    outputs: int,
    blocks: Blocks = Blocks(),
    interpret: Any = False,
) -> jax.Array:
    """sum_g scales[g] * (x @ (codes - zeros[g])) over the inputs of each group.

    Args:
        x: bfloat16[parts, M, K], added up at the end, or int8[1, M, K]; K is padded.
        packed: uint8, as `quant.layout` has it.
        scales: float32[groups, N].
        zeros: float32[groups, N], or None: codes mean themselves less 2 ** (bits - 1).
        bits: 8 or 4.
        group: inputs with one scale; 0: all.
        outputs: N.
        blocks: sizes of the blocks.
        interpret: run it without a TPU.

    Returns:
        float32[M, N].
    """
    parts, m, inputs = x.shape
    rows = block(m, blocks.rows, ROWS[x.dtype.name])
    wide = block(outputs, blocks.outputs, LANES)
    # A block of scales has 8 groups at least, or the only one there is.
    inner = block(inputs, blocks.inputs, SUBLANES * group if group else LANES)
    depth, groups = (group, inner // group) if group else (inner, 1)

    x = padded(x, None, rows, inner)
    total = x.shape[2]
    x = halves_apart(x, depth) if bits == 4 else x
    x = x.reshape(parts, x.shape[1], total // depth, depth).transpose(2, 0, 1, 3)
    codes = padded(by_input(packed), inner * bits // 8, wide)
    codes = codes.reshape(total // depth, depth * bits // 8, -1)
    parameters = [
        padded(p, groups if group else None, wide) for p in (scales, zeros) if p is not None
    ]
    per_group = pl.BlockSpec((groups, wide), lambda i, j, k: (k if group else 0, j))
    out = pl.pallas_call(
        functools.partial(_tile, bits=bits),
        out_shape=jax.ShapeDtypeStruct((x.shape[2], codes.shape[2]), jnp.float32),
        grid=(x.shape[2] // rows, codes.shape[2] // wide, total // inner),
        in_specs=[
            pl.BlockSpec((groups, parts, rows, depth), lambda i, j, k: (k, 0, i, 0)),
            pl.BlockSpec((groups, depth * bits // 8, wide), lambda i, j, k: (k, 0, j)),
            *(per_group for _ in parameters),
        ],
        out_specs=pl.BlockSpec((rows, wide), lambda i, j, k: (i, j)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(x, codes, *parameters)
    return out[:m, :outputs]


def _tile(x: Any, codes: Any, scales: Any, *refs: Any, bits: int) -> None:
    *zeros, out = refs
    groups, parts, rows, depth = x.shape

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        out[...] = jnp.zeros(out.shape, out.dtype)

    def group(g: Any, _: None) -> None:
        values = codes[g].astype(jnp.int32)
        if bits == 4:
            values = jnp.concatenate([values & 15, values >> 4], 0)
        zero = zeros[0][pl.ds(g, 1), :].astype(jnp.int32) if zeros else 2 ** (bits - 1)
        sums = _sums(x[g].reshape(parts * rows, depth), values - zero, parts)
        out[...] += scales[pl.ds(g, 1), :] * sums

    jax.lax.fori_loop(0, groups, group, None)


def _sums(x: Any, grid: Any, parts: int) -> Any:
    """x @ grid in the matrix unit; parts are added from the smallest."""
    integer = x.dtype == jnp.int8
    weights = grid.astype(jnp.int8) if integer else grid.astype(jnp.float32).astype(jnp.bfloat16)
    contract = (((1,), (0,)), ((), ()))
    kind = jnp.int32 if integer else jnp.float32
    sums = jax.lax.dot_general(x, weights, contract, preferred_element_type=kind)
    rows = x.shape[0] // parts
    pieces = [sums[i * rows : (i + 1) * rows, :].astype(jnp.float32) for i in range(parts)]
    return functools.reduce(jnp.add, reversed(pieces))
