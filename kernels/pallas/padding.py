"""Blocks: sizes rounded up to what the hardware moves at once, arrays filled with zeros to them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def block(size: int, largest: int, multiple: int) -> int:
    """A block length for an axis: `largest`, or the whole axis rounded up where it is shorter."""
    return min(largest, up(size, multiple))


def padded(x: Any, *sizes: int | None, value: float = 0) -> Any:
    """`x` filled at the end of each axis to multiples of `sizes` (None: as it is)."""
    widths = [
        (0, 0 if size is None else up(n, size) - n) for n, size in zip(x.shape, sizes, strict=True)
    ]
    return jnp.pad(x, widths, constant_values=value) if any(w for _, w in widths) else x
