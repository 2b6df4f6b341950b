"""One batch axis, however many vmaps there were.

An operand either has the batch axis in front or is shared by the whole batch. A further vmap makes
one axis of the two, so that implementations meet at most one; operands that only one of the two
maps are repeated, those that neither maps stay shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .. import _jax


def batch_again(
    size: int,
    operands: Sequence[Any],
    dims: Sequence[int | None],
    batch: int | None,
    batched: Sequence[bool],
) -> tuple[list[Any], int, tuple[bool, ...]]:
    """Operands, length of the batch axis and who has it, after one more vmap of `size`."""
    if batch is None:
        moved = [_jax.to_front(x, dim) for x, dim in zip(operands, dims, strict=True)]
        return moved, size, tuple(dim is not None for dim in dims)
    total = size * batch
    new = []
    for x, dim, had in zip(operands, dims, batched, strict=True):
        if dim is None and not had:
            new.append(x)
            continue
        x = _jax.to_front(x, dim)
        core = x.shape[(dim is not None) + had :]
        x = x.reshape((size if dim is not None else 1, batch if had else 1, *core))
        new.append(jnp.broadcast_to(x, (size, batch, *core)).reshape((total, *core)))
    return new, total, tuple(b or d is not None for b, d in zip(batched, dims, strict=True))


def split(outputs: Sequence[Any], size: int, batch: int | None) -> tuple[list[Any], list[int]]:
    """Outputs with the new mapped axis in front of the old batch axis, if there was one."""
    if batch is None:
        return list(outputs), [0] * len(outputs)
    return [x.reshape((size, batch, *x.shape[1:])) for x in outputs], [0] * len(outputs)
