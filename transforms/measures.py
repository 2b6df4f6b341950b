"""What a site may hold besides a distribution: a scaled or a masked measure.

A site's measure has `sample(key)` and `log_prob(value)`, the law of its draws, and the array
shapes `batch_shape` and `event_shape`; distributions of NumPyro have them. `log_density(measure,
value)` is what the site contributes to its program's density; it differs from the law for
`Scaled` alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """The density of `base` raised to the power `factor`; draws are those of `base`.

    Minibatches (`factor = N / B`) and tempering. Unnormalised unless `factor == 1`.
    """

    base: Any
    factor: Any  # scalar, or broadcastable to the batch shape

    def sample(self, key: Array) -> Array:
        return self.base.sample(key)

    def rsample(self, key: Array) -> Array:
        return self.base.rsample(key)

    def log_prob(self, value: Array) -> Array:
        return self.base.log_prob(value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
    """`base` where `mask` is true, absent elsewhere.

    Where it is absent the value is a constant inside the support and the density is 1, so neither
    the value nor the parameters there have any influence.
    """

    base: Any
    mask: Any  # bool, broadcastable to the batch shape

    def sample(self, key: Array) -> Array:
        return self.fill(self.base.sample(key))

    def rsample(self, key: Array) -> Array:
        return self.fill(self.shielded().rsample(key))

    def log_prob(self, value: Array) -> Array:
        return jnp.where(self.mask, self.shielded().log_prob(self.fill(value)), 0.0)

    def shielded(self) -> Any:
        """`base`, no derivative passing into its parameters where it is absent: not even NaN."""
        mask = jnp.asarray(self.mask)

        def shield(x: Any) -> Any:
            if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
                return x
            if jnp.shape(x)[: mask.ndim] != mask.shape:  # a parameter that present entries share
                return x
            here = mask.reshape(mask.shape + (1,) * (jnp.ndim(x) - mask.ndim))
            return jnp.where(here, x, jax.lax.stop_gradient(x))

        return jax.tree.map(shield, self.base)

    def fill(self, value: Array) -> Array:
        """`value` where present, a constant inside the support elsewhere."""
        mask = jnp.asarray(self.mask)
        mask = mask.reshape(mask.shape + (1,) * len(event_shape(self.base)))
        return jnp.where(mask, value, jax.lax.stop_gradient(_feasible(self.base, value)))


def _feasible(measure: Any, value: Array) -> Array:
    found = innermost(measure).support.feasible_like(value)
    return jnp.broadcast_to(found, value.shape).astype(value.dtype)


def fill(measure: Any, value: Array) -> Array:
    """`value` with a constant inside the support wherever `measure` is absent."""
    if isinstance(measure, Scaled):
        return fill(measure.base, value)
    return measure.fill(fill(measure.base, value)) if isinstance(measure, Masked) else value


def innermost(measure: Any) -> Any:
    """The distribution under any scaling and masking."""
    return innermost(measure.base) if isinstance(measure, (Scaled, Masked)) else measure


def event_shape(measure: Any) -> tuple[int, ...]:
    """The trailing axes that are one event; the others are independent."""
    return tuple(getattr(innermost(measure), "event_shape", ()))


def log_density(measure: Any, value: Array) -> Array:
    """What a site contributes to its program's log density, element by element.

    An element is the smallest independent part of a draw: `Independent` is looked through.
    """
    if isinstance(measure, Scaled):
        inner = log_density(measure.base, value)
        return _trailing(measure.factor, measure.base, inner) * inner
    if isinstance(measure, Masked):
        inner = log_density(measure.shielded(), measure.fill(value))
        return jnp.where(_trailing(measure.mask, measure.base, inner), inner, 0.0)
    return _log_prob(measure, value)


def log_prob(measure: Any, value: Array) -> Array:
    """Log density of the law of a draw, element by element; scaling leaves the law alone."""
    if isinstance(measure, Scaled):
        return log_prob(measure.base, value)
    if isinstance(measure, Masked):
        inner = log_prob(measure.shielded(), measure.fill(value))
        return jnp.where(_trailing(measure.mask, measure.base, inner), inner, 0.0)
    return _log_prob(measure, value)


def _log_prob(measure: Any, value: Array) -> Array:
    if isinstance(measure, npd.MaskedDistribution):
        inner, mask = _log_prob(measure.base_dist, value), jnp.asarray(measure._mask)
        inside = len(single(measure).batch_shape) - len(measure.batch_shape) if mask.ndim else 0
        return jnp.where(mask.reshape(mask.shape + (1,) * max(inside, 0)), inner, 0.0)
    element = single(measure)
    if element is not measure and _has_mask(measure.base_dist):
        inner = _log_prob(measure.base_dist, value)
        return jnp.broadcast_to(inner, value.shape[: value.ndim - len(element.event_shape)])
    if element is not measure and isinstance(measure, npd.ExpandedDistribution):
        element = element.expand(value.shape[: value.ndim - len(element.event_shape)])
    found = element.log_prob(value)
    shape = value.shape[: value.ndim - len(getattr(element, "event_shape", ()))]
    return jnp.broadcast_to(found, shape)


def _has_mask(measure: Any) -> bool:
    """Whether NumPyro's mask is somewhere under copies of a distribution."""
    if isinstance(measure, (npd.Independent, npd.ExpandedDistribution)):
        return _has_mask(measure.base_dist)
    return isinstance(measure, npd.MaskedDistribution)


def _trailing(x: Any, measure: Any, elements: Array) -> Array:
    """`x`, over the batch of a measure, with axes for the elements inside one batch entry."""
    x = jnp.asarray(x)
    inside = max(elements.ndim - len(batch_shape(measure)), 0) if x.ndim else 0
    return x.reshape(x.shape + (1,) * inside)


def single(measure: Any) -> Any:
    """The distribution of one element: without scaling, masks and independent copies."""
    measure = innermost(measure)
    while isinstance(measure, (npd.Independent, npd.ExpandedDistribution, npd.MaskedDistribution)):
        if isinstance(measure, npd.ExpandedDistribution) and not _independent(measure.base_dist):
            break
        measure = measure.base_dist
    return measure


def named(measure: Any) -> Any:
    """The distribution of one element, expansion looked through: for its type and parameters."""
    measure = single(measure)
    while isinstance(measure, npd.ExpandedDistribution):
        measure = measure.base_dist
    return measure


def _independent(measure: Any) -> bool:
    wrappers = (npd.Independent, npd.ExpandedDistribution, npd.MaskedDistribution)
    if isinstance(measure, npd.Independent):
        return True
    return isinstance(measure, wrappers) and _independent(measure.base_dist)


def batch_shape(measure: Any) -> tuple[int, ...]:
    """The leading axes of a draw: its independent entries."""
    return tuple(getattr(innermost(measure), "batch_shape", ()))


def is_reparameterizable(measure: Any) -> bool:
    """True where `rsample` gives a draw that is differentiable in the parameters."""
    return bool(getattr(innermost(measure), "has_rsample", False))


def is_normalised(measure: Any) -> bool:
    """False for a density that is no probability, or known up to a constant only."""
    measure = named(measure)
    return bool(getattr(measure, "normalised", not isinstance(measure, npd.ImproperUniform)))


def is_discrete(measure: Any) -> bool:
    """True for a measure on integers."""
    return bool(getattr(innermost(measure), "is_discrete", False))


def element_support(measure: Any) -> Array | None:
    """All values of one element, shape `[K, *event]`, or None if they cannot be listed.

    An element is one entry of the batch; an `Independent` wrapper is looked through, so its
    elements are those of the distribution inside.
    """
    measure = named(measure)
    if not getattr(measure, "has_enumerate_support", False):
        return None
    try:
        support = measure.enumerate_support(expand=False)
    except (NotImplementedError, TypeError, jax.errors.JAXTypeError):
        return None
    return support.reshape((support.shape[0], *measure.event_shape))
