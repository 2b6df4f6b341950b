"""Randomised Hadamard rotation: it makes any group of weights look normal.

    signs = rotation_signs(200, seed=0)                   # +-1
    y = rotate(x, signs, block=64)                        # the last axis, in blocks of 64
    x = unrotate(y, signs, block=64)

Each block of x is multiplied by random signs and then by the orthonormal Hadamard matrix
H / sqrt(n) (Ailon and Chazelle 2006). An inner product is the same after both sides were rotated:
weights are rotated before they are rounded, activations when they come. A length that is no
multiple of the block ends in smaller powers of two (200 = 3 * 64 + 8), so nothing is padded.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import KernelShapeError, KernelValueError


def hadamard(x: jax.Array) -> jax.Array:
    """The orthonormal fast Walsh-Hadamard transform of the last axis, its own inverse.

    Args:
        x: [..., n], n a power of two.

    Returns:
        x H_n / sqrt(n), H_n[i, j] = (-1)^popcount(i & j) (Sylvester's order), by n log n sums.

    Raises:
        KernelShapeError: n is no power of two.
    """
    x = jnp.asarray(x)
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or n & (n - 1):
        raise KernelShapeError(
            "A Hadamard transform needs a power of two.",
            expected="a last axis of length 1, 2, 4, 8, ...",
            got=x.shape,
            fix="`rotate` takes any length, in blocks of powers of two",
        )
    return transformed(x, n)


def _hadamard(x: Any, xp: Any) -> Any:
    shape, n = x.shape, x.shape[-1]
    half = 1
    while half < n:
        x = x.reshape(*shape[:-1], n // (2 * half), 2, half)
        a, b = x[..., 0, :], x[..., 1, :]
        x = xp.stack([a + b, a - b], axis=-2)
        half *= 2
    return x.reshape(shape) * xp.asarray(1 / math.sqrt(n), x.dtype)


def blocks(length: int, block: int) -> tuple[int, ...]:
    """How `rotate` divides an axis: blocks of `block`, then the binary digits of what is left.

    Raises:
        KernelValueError: the block is no power of two.
    """
    if block < 1 or block & (block - 1):
        raise KernelValueError(
            "A rotation is done in blocks of a power of two.",
            expected="1, 2, 4, 8, ...",
            got=block,
        )
    rest = length % block
    digits = (1 << i for i in reversed(range(rest.bit_length())))
    return (block,) * (length // block) + tuple(d for d in digits if rest & d)


def rotation_signs(length: int, seed: int) -> np.ndarray:
    """Random signs for `rotate`: float32[length] of +1 and -1, the same for a seed everywhere."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), size=length)


def rotate(x: jax.Array, signs: jax.Array, *, block: int) -> jax.Array:
    """Multiply by the signs, then transform each block: x -> x diag(signs) H. Orthonormal.

    Args:
        x: [..., n].
        signs: [n] of +1 and -1.
        block: a power of two.

    Raises:
        KernelShapeError: signs and x do not fit.
        KernelValueError: the block is no power of two.
    """
    x = _fitting(x, signs)
    return transformed(x * jnp.asarray(signs, x.dtype), block)


def unrotate(y: jax.Array, signs: jax.Array, *, block: int) -> jax.Array:
    """The inverse of `rotate`: y -> y H diag(signs)."""
    y = _fitting(y, signs)
    return transformed(y, block) * jnp.asarray(signs, y.dtype)


def _fitting(x: jax.Array, signs: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    if x.ndim == 0 or jnp.shape(signs) != x.shape[-1:]:
        raise KernelShapeError(
            "The signs of a rotation do not fit its operand.",
            expected=f"one sign for each of {x.shape[-1] if x.ndim else 'the'} entries",
            got=f"signs {jnp.shape(signs)} for {x.shape}",
        )
    return x


@functools.partial(jax.jit, static_argnums=1)
def transformed(x: jax.Array, block: int) -> jax.Array:
    """The Hadamard transform of each block of the last axis."""
    return transform_blocks(x, block, jnp)


def transform_blocks(x: Any, block: int, xp: Any) -> Any:
    """The same in jax.numpy or NumPy."""
    lead, n = x.shape[:-1], x.shape[-1]
    sizes = blocks(n, block)
    whole = n // block * block
    parts = []
    if whole:
        parts.append(_hadamard(x[..., :whole].reshape(*lead, -1, block), xp).reshape(*lead, whole))
    at = whole
    for size in sizes[n // block :]:
        parts.append(_hadamard(x[..., at : at + size], xp))
        at += size
    return xp.concatenate(parts, axis=-1) if parts else x
