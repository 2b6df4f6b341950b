"""Where the codes of packed weights lie.

They lie as the instructions for products of bytes want them, which XLA can take apart as well. A
*tile* is 16 outputs. Within a tile, a *quad* is 64 bytes: 4 successive inputs of each of the 16
outputs (byte `4 n + i` is input i of output n). Quads share bytes where codes have fewer bits:

    bits  inputs per unit  bytes  quad q of the unit
    8     4                64     the byte
    4     8                64     (byte >> 4 q) & 15
    2     16               64     (byte >> 2 q) & 3
    3     16               96     as 2 bits, plus 4 * bit (4 n + i) of the 8 bytes at 64 + 8 q

Outputs are padded to whole tiles; inputs to whole groups, or to a multiple of 64 without groups.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

TILE = 16
BITS = (8, 4, 3, 2)
GROUPS = (32, 64, 128, 0)
UNIT = {8: (4, 64), 4: (8, 64), 3: (16, 96), 2: (16, 64)}  # inputs and bytes of a unit
WITHOUT_GROUPS = 64  # to which inputs are padded


def group_count(inputs: int, group: int) -> int:
    """Groups of so many inputs."""
    return -(-inputs // group) if group else 1


def padded_inputs(inputs: int, group: int) -> int:
    """Inputs with the padding."""
    step = group or WITHOUT_GROUPS
    return -(-inputs // step) * step


def packed_shape(shape: tuple[int, int], bits: int, group: int) -> tuple[int, int, int]:
    """Shape of the packed codes of a matrix."""
    inputs, size = UNIT[bits]
    return -(-shape[1] // TILE), padded_inputs(shape[0], group) // inputs, size


def pack(codes: Any, bits: int, group: int) -> jax.Array:
    """Codes [K, N] as uint8[tiles, units, bytes]; `unpack` is its inverse."""
    codes = jnp.asarray(codes).astype(jnp.uint8)
    inputs, outputs = codes.shape
    tiles, units, _ = packed_shape((inputs, outputs), bits, group)
    quads = UNIT[bits][0] // 4
    more = (padded_inputs(inputs, group) - inputs, tiles * TILE - outputs)
    codes = jnp.pad(codes, [(0, more[0]), (0, more[1])])
    lanes = codes.reshape(units, quads, 4, tiles, TILE).transpose(3, 0, 1, 4, 2)
    lanes = lanes.reshape(tiles, units, quads, 64)
    width = 8 // quads
    low = lanes & (2**width - 1)
    shifts = (width * jnp.arange(quads, dtype=jnp.uint8))[:, None]
    main = (low << shifts).sum(2, dtype=jnp.uint8)
    if bits != 3:
        return main
    high = (lanes >> 2).reshape(tiles, units, quads * 8, 8) << jnp.arange(8, dtype=jnp.uint8)
    return jnp.concatenate([main, high.sum(-1, dtype=jnp.uint8)], -1)


def unpack(packed: Any, bits: int, shape: tuple[int, int]) -> jax.Array:
    """The codes uint8[K, N] that `pack` was given."""
    packed = jnp.asarray(packed)
    tiles, units, _ = packed.shape
    quads = UNIT[bits][0] // 4
    width = 8 // quads
    shifts = (width * jnp.arange(quads, dtype=jnp.uint8))[:, None]
    lanes = (packed[:, :, None, :64] >> shifts) & jnp.uint8(2**width - 1)
    if bits == 3:
        high = (packed[:, :, 64:, None] >> jnp.arange(8, dtype=jnp.uint8)) & jnp.uint8(1)
        lanes = lanes | (high.reshape(lanes.shape) << 2)
    codes = lanes.reshape(tiles, units, quads, TILE, 4).transpose(1, 2, 4, 0, 3)
    return codes.reshape(units * quads * 4, tiles * TILE)[: shape[0], : shape[1]]


def per_input(per_group: Any, inputs: int, outputs: int, group: int) -> jax.Array:
    """[groups, N] repeated to [K, N]."""
    if not group:
        return jnp.broadcast_to(per_group, (inputs, outputs))
    return jnp.repeat(per_group, group, axis=0)[:inputs]


def decoded(codes: Any, zeros: Any, codebook: Any, bits: int, group: int) -> jax.Array:
    """The grid's values of codes [K, N]: int32, or floats of a codebook."""
    if codebook is not None:
        return codebook[codes.astype(jnp.int32)]
    if zeros is None:
        return codes.astype(jnp.int32) - 2 ** (bits - 1)
    return codes.astype(jnp.int32) - per_input(zeros, codes.shape[0], codes.shape[1], group).astype(
        jnp.int32
    )
