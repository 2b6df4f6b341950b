"""Array helpers that several transformations share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from . import _jax


def where_leading(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` where a mask over the leading axes is true, `old` elsewhere."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)


FEW = 4  # copies that are worth concatenating


def repeated(x: jax.Array, times: int, axis: int) -> jax.Array:
    """`x`, of size 1 along an axis, several times along it.

    A few copies are concatenated: the transpose is then a sum of slices, which XLA fuses with its
    neighbours, in the place of a reduction, which is a kernel to compile of its own.
    """
    if times <= FEW:
        return jnp.concatenate([x] * times, axis)
    return jnp.broadcast_to(x, (*x.shape[:axis], times, *x.shape[axis + 1 :]))


rise_p = _jax.Primitive("rise")


def rise(x: jax.Array) -> jax.Array:
    """x - stop_gradient(x): zero, with all derivatives of x.

    The zeros do not depend on x, so the compiler drops what only they would be computed from.
    """
    return rise_p.bind(x)


_jax.set_rules(
    rise_p,
    impl=jnp.zeros_like,
    abstract=lambda x: _jax.shaped_array(x.shape, x.dtype),
    batch=lambda size, operands, dims: (rise_p.bind(*operands), dims[0]),
    jvp=lambda primals, tangents: (rise_p.bind(*primals), _jax.instantiated(tangents[0])),
    lower=_jax.lower_as(jnp.zeros_like),
)
