"""Packed weights as matrices of bytes, by transposing them, without touching a bit.

`quant.layout` stores tiles of 16 outputs for a CPU's byte products: packed[t, u, 4 n + i], where a
byte of 8-bit weights is the input 4 u + i of output 16 t + n, and one of 4-bit weights holds two,
inputs 8 u + i (low half) and 8 u + 4 + i (high half). Accelerators want outputs along one axis,
inputs along the other; the order of the inputs does not matter as long as the columns of x have
the same.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def by_input(packed: Any) -> jax.Array:
    """Bytes [K or K / 2, N]: outputs are contiguous (TPU: along lanes)."""
    tiles, units, _ = packed.shape
    # in two steps: as one transposition of four axes, it takes the TPU compiler minutes
    quads = packed.transpose(1, 0, 2).reshape(units, tiles * 16, 4)
    return quads.swapaxes(1, 2).reshape(units * 4, tiles * 16)


def by_output(packed: Any) -> jax.Array:
    """Bytes [N, K or K / 2]: inputs are contiguous (tensor cores: 8-bit operands must be so)."""
    tiles, units, _ = packed.shape
    quads = packed.reshape(tiles, units, 16, 4).transpose(0, 2, 1, 3)
    return quads.reshape(tiles * 16, units * 4)


def halves_apart(x: Any, block: int) -> jax.Array:
    """Columns of x [..., K]; in each block those of low halves, then those of high."""
    quads = x.reshape(*x.shape[:-1], x.shape[-1] // block, block // 8, 2, 4)
    return quads.swapaxes(-3, -2).reshape(x.shape)


def halves_together(x: Any) -> jax.Array:
    """Columns of x [..., K] in the order of the halves of bytes: low, high, low, high."""
    quads = x.reshape(*x.shape[:-1], x.shape[-1] // 8, 2, 4)
    return quads.swapaxes(-2, -1).reshape(x.shape)


def split(x: Any, parts: int) -> jax.Array:
    """x [M, K] as bfloat16[parts, M, K] whose sum it is: to 8, 16 or 24 bits for 1, 2 or 3 parts.

    A product with integers of 8 bits, which bfloat16 holds exactly, is then exact but for the sums.
    """
    found = []
    for _ in range(parts):
        # XLA may leave out a pair of conversions; not this one
        part = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        found.append(part.astype(jnp.bfloat16))
        x = jnp.where(jnp.isfinite(part), x - part, 0)
    return jnp.stack(found)
