"""Exogenous noise: what a draw is made of, apart from its distribution's parameters.

    value = g(parameters, noise),   noise of the value = the inverse of g in its second argument

Location-scale laws use the standardised value, multivariate normals the whitened one, transformed
laws the noise of their base, other continuous scalars their cumulative distribution function. A
draw of a discrete law is not an invertible function of noise (many noises give one value).

    law:  value_from(d, noise_of(d, x)) == x;  noise_of(d, x) does not depend on d's parameters
          where x was drawn from d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from .errors import CapabilityError, VaraxError
from .measures import Masked, Scaled

Rule = Callable[[Any, Any], Any]  # (distribution, value or noise) -> noise or value


def noise_of(measure: Any, value: jax.Array) -> jax.Array:
    """The noise that makes `measure` give `value`; the value's shape."""
    return _rules(measure)[0](measure, value)


def value_from(measure: Any, noise: jax.Array) -> jax.Array:
    """What `measure` makes of a noise."""
    return _rules(measure)[1](measure, noise)


def _rules(measure: Any) -> tuple[Rule, Rule]:
    for kinds, inverse, forward in RULES:
        if isinstance(measure, kinds):
            return inverse, forward
    if getattr(measure, "is_discrete", True) or getattr(measure, "event_shape", ()):
        raise NoNoiseError(type(measure).__name__)
    return lambda m, x: _quantile(m, "cdf", x), lambda m, u: _quantile(m, "icdf", u)


def _quantile(measure: Any, function: str, x: jax.Array) -> jax.Array:
    try:
        return getattr(measure, function)(x)
    except (NotImplementedError, AttributeError, ImportError):  # numpyro's gamma needs a package
        raise NoNoiseError(type(measure).__name__) from None


def _whiten(m: Any, x: Any) -> Any:
    centred = (x - m.loc)[..., None]
    return jax.scipy.linalg.solve_triangular(m.scale_tril, centred, lower=True)[..., 0]


def _through(m: Any, noise: Any) -> Any:
    value = value_from(m.base_dist, noise)
    for transform in m.transforms:
        value = transform(value)
    return value


def _back(m: Any, value: Any) -> Any:
    for transform in reversed(m.transforms):
        value = transform.inv(value)
    return noise_of(m.base_dist, value)


RULES: tuple[tuple[Any, Rule, Rule], ...] = (
    (
        Masked,
        lambda m, x: noise_of(m.base, m.fill(x)),
        lambda m, e: m.fill(value_from(m.base, e)),
    ),
    (Scaled, lambda m, x: noise_of(m.base, x), lambda m, e: value_from(m.base, e)),
    (
        (npd.Independent, npd.ExpandedDistribution),
        lambda m, x: noise_of(m.base_dist, x),
        lambda m, e: value_from(m.base_dist, e),
    ),
    (npd.TransformedDistribution, _back, _through),
    (
        (npd.Normal, npd.Laplace, npd.Logistic, npd.Cauchy, npd.Gumbel),
        lambda m, x: (x - m.loc) / m.scale,
        lambda m, e: m.loc + m.scale * e,
    ),
    (
        npd.MultivariateNormal,
        _whiten,
        lambda m, e: m.loc + jnp.einsum("...ij,...j->...i", m.scale_tril, e),
    ),
    (npd.Delta, lambda m, x: jnp.zeros_like(x), lambda m, e: jnp.broadcast_to(m.v, e.shape)),
)


def from_normal(measure: Any, z: jax.Array) -> jax.Array:
    """What `measure` makes of standard normal noise, smooth in it; z has the value's shape."""
    if isinstance(measure, Masked):
        return measure.fill(from_normal(measure.shielded(), z))
    if isinstance(measure, (Scaled, npd.Independent, npd.ExpandedDistribution)):
        return from_normal(measure.base if isinstance(measure, Scaled) else measure.base_dist, z)
    if isinstance(measure, npd.TransformedDistribution) and not isinstance(measure, npd.Gumbel):
        value = from_normal(measure.base_dist, z)
        for transform in measure.transforms:
            value = transform(value)
        return jnp.asarray(value)
    if isinstance(measure, (npd.Normal, npd.MultivariateNormal)):
        return value_from(measure, z)
    if getattr(measure, "is_discrete", True) or getattr(measure, "event_shape", ()):
        raise NoNoiseError(type(measure).__name__)
    return _quantile(measure, "icdf", jax.scipy.special.ndtr(z))


class NoNoiseError(VaraxError):
    """A distribution whose noise cannot be recovered from a draw; the caller adds the address."""

    def __init__(self, name: str):
        super().__init__(f"the noise of {name} cannot be recovered from a draw")
        self.name = name


def unrecoverable(name: str, address: Any, line: str) -> CapabilityError:
    """The error for replaying a draw without a recoverable noise."""
    return CapabilityError(
        "replay needs the noise behind a draw, and this one does not have a unique noise.",
        address=address,
        expected="a location-scale, multivariate normal, transformed or continuous scalar "
        "distribution with a cdf and its inverse",
        got=name,
        where=line,
        fix="write the choice as a function of explicit noise (an argmax of Gumbel draws for a "
        "categorical), or fix the address with m.do",
    )
