"""Array helpers that several transformations share."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def where_leading(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` where a mask over the leading axes is true, `old` elsewhere."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)
