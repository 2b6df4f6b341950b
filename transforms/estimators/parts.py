"""What several families of estimators share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..arrays import rise as rise
from ..law import Law
from ..measures import Masked, Scaled, fill, named
from ..site import over_lanes


def change(x: jax.Array) -> jax.Array:
    """`rise(x)` where x is finite, elsewhere a constant."""
    return jnp.where(jnp.isfinite(x), rise(x), 0.0)


def ratio(log_p: jax.Array) -> jax.Array:
    """p / stop_gradient(p): value one, all derivatives those of p over its value."""
    return jnp.exp(change(log_p))


def parameter(law: Law, name: str, event_dim: int = 0) -> jax.Array:
    """`law.parameter`, without a derivative where the site is absent."""
    x = law.parameter(name, event_dim)
    if not law.has_mask:
        return x
    here = law.present_elements()
    here = here.reshape(here.shape + (1,) * (x.ndim - here.ndim))
    return jnp.where(here, x, jax.lax.stop_gradient(x))


def element(measure: Any) -> Any:
    """The distribution of one element; no derivative passes into parameters that are absent."""
    while isinstance(measure, (Scaled, Masked)):
        measure = measure.shielded() if isinstance(measure, Masked) else measure.base
    return named(measure)


def filled(law: Law, values: jax.Array) -> jax.Array:
    """Values `[..., *site.shape]` in the site's dtype, a constant where the site is absent."""
    values = values.astype(law.site.value.dtype)
    if not law.has_mask:
        return values

    def one(value: jax.Array) -> jax.Array:
        return over_lanes(law.site, lambda m, _, v: fill(m, v), law.operands, value)

    each = values.reshape((-1, *law.site.shape))
    return jax.vmap(one)(each).reshape(values.shape)


def support(law: Law) -> jax.Array:
    """All values of one element, `[K, *event]`."""
    found = law.element_support()
    assert found is not None
    return jnp.asarray(found)


def class_log_probs(law: Law) -> jax.Array:
    """Log probability of each value of the support, `[K, *elements]`; zero where absent."""
    values = support(law)
    each = values.reshape((len(values), *(1,) * len(law.elements), *law.event_shape))
    shape = (len(values), *law.elements, *law.event_shape)
    return law.log_prob_each(jnp.broadcast_to(each, shape).astype(law.site.value.dtype))


def per_lane(law: Law, x: Any) -> jax.Array:
    """An estimator's scalar, which a vmap may have mapped, broadcastable to the elements."""
    x = jnp.asarray(x)
    return x.reshape(x.shape + (1,) * (len(law.elements) - x.ndim)) if x.ndim else x


def mirrored_uniform(key: jax.Array, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Uniform on the midpoints of 2^23 cells of (0, 1), so that 1 - u is exact in float32 too."""
    u = jax.random.uniform(key, like.shape, like.dtype)
    return (jnp.floor(u * 2**23) + 0.5) / 2**23
