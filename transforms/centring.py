"""Location-scale laws and their centrings: the law of a simpler value, and the way back from it.

    theta ~ D(loc, scale):    raw ~ D(c loc, scale^c),    theta = loc + scale^(1 - c) (raw - c loc)

c = 1 is the law as it stands (centred); at c = 0 the raw value is independent of loc and scale
(non-centred); between the two it is partially centred. A multivariate normal with Cholesky factor L
has c L + (1 - c) I in the place of scale^c, and L (c L + (1 - c) I)^{-1} in that of scale^(1 - c).
A transformed law has the raw value of its base.

law:  log p(raw) + log |det d raw / d theta| == log p(theta).

Papaspiliopoulos, Roberts and Skoeld 2007; Gorinova, Moore and Hoffman 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from .measures import Masked

Centring = float | jax.Array
Place = Callable[[jax.Array], jax.Array]  # from raw to the value

SYMMETRIC = (npd.Normal, npd.StudentT, npd.Cauchy, npd.Laplace, npd.Logistic)
FAMILIES = (*SYMMETRIC, npd.Gumbel, npd.MultivariateNormal)
SHOWN = ", ".join([*(f.__name__ for f in FAMILIES), "LogNormal and other transforms of these"])


def split(
    measure: Any, centring: Centring, batch: tuple[int, ...], affine: tuple[Any, Any] = (0.0, 1.0)
) -> tuple[Any, Place]:
    """The law of the raw choice, and the value as a function of it.

    Args:
        measure: a law of a location-scale family, wrapped or transformed.
        centring: c, a number or an array over the leading axes of the elements.
        batch: the batch shape that the measure is expanded to.
        affine: a and b where what matters is a + b x, with x of a symmetric family.
    """
    if isinstance(measure, Masked):
        inner, place = split(measure.shielded(), centring, batch)
        return Masked(inner, measure.mask), lambda x: measure.fill(place(x))
    if isinstance(measure, npd.ExpandedDistribution):
        return split(measure.base_dist, centring, batch, affine)
    if isinstance(measure, npd.Independent):
        n = measure.reinterpreted_batch_ndims
        inner, place = split(measure.base_dist, centring, batch + measure.event_shape[:n], affine)
        return inner.to_event(n), place
    if _is_transformed(measure):
        transforms = list(measure.transforms)
        a, b = affine
        while transforms and _moves(transforms[0], measure):
            first = transforms.pop(0)
            a, b = first.loc + first.scale * a, first.scale * b
        affine = (a, b)
        inner, place = split(measure.base_dist, centring, batch, affine)
        return inner, lambda x: _chain(transforms, place(x))
    c = centring
    if not isinstance(c, (int, float)):
        c = _spread(c, max(len(batch) - jnp.ndim(c), 0))
    if isinstance(measure, npd.MultivariateNormal):
        return _multivariate(measure, c, batch)
    return _scalar(measure, c, batch, affine)


def family(measure: Any) -> Any:
    """The law under expansion, independence and transforms."""
    wrappers = (npd.Independent, npd.ExpandedDistribution, Masked)
    while isinstance(measure, wrappers) or _is_transformed(measure):
        measure = measure.base if isinstance(measure, Masked) else measure.base_dist
    return measure


def _is_transformed(measure: Any) -> bool:
    return isinstance(measure, npd.TransformedDistribution) and not isinstance(measure, FAMILIES)


def _moves(transform: Any, measure: Any) -> bool:
    """Whether a transform only changes the location and scale of the law that it is applied to."""
    affine = isinstance(transform, npd.transforms.AffineTransform)
    return affine and isinstance(family(measure), SYMMETRIC)


def _chain(transforms: list[Any], x: Any) -> Any:
    for transform in transforms:
        x = transform(x)
    return x


def _scalar(measure: Any, c: Any, batch: tuple[int, ...], affine: Any) -> tuple[Any, Place]:
    a, b = affine
    loc = jnp.broadcast_to(a + b * measure.loc, batch)
    scale = jnp.broadcast_to(abs(b) * measure.scale, batch)

    def law(loc: jax.Array, scale: jax.Array) -> Any:
        shape = (measure.df,) if isinstance(measure, npd.StudentT) else ()
        return type(measure)(*shape, loc, scale)

    if _is(c, 0):
        return law(jnp.zeros_like(loc), jnp.ones_like(scale)), lambda x: loc + scale * x
    if _is(c, 1):
        return law(loc, scale), lambda x: x
    return law(c * loc, scale**c), lambda x: loc + scale ** (1 - c) * (x - c * loc)


def _multivariate(measure: Any, c: Any, batch: tuple[int, ...]) -> tuple[Any, Place]:
    d = measure.event_shape[0]
    loc = jnp.broadcast_to(measure.loc, (*batch, d))
    scale = jnp.broadcast_to(measure.scale_tril, (*batch, d, d))
    eye = jnp.broadcast_to(jnp.eye(loc.shape[-1], dtype=scale.dtype), scale.shape)
    if _is(c, 0):
        law = npd.MultivariateNormal(jnp.zeros_like(loc), scale_tril=eye)
        return law, lambda x: loc + _product(scale, x)
    if _is(c, 1):
        return npd.MultivariateNormal(loc, scale_tril=scale), lambda x: x
    moved, mixed = _spread(c, 1) * loc, _spread(c, 2) * scale + (1 - _spread(c, 2)) * eye

    def place(x: jax.Array) -> jax.Array:
        free = jax.scipy.linalg.solve_triangular(mixed, (x - moved)[..., None], lower=True)
        return loc + _product(scale, free[..., 0])

    return npd.MultivariateNormal(moved, scale_tril=mixed), place


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...j->...i", matrix, x)


def _spread(c: Any, axes: int) -> jax.Array:
    """`c` over batches, with axes for what is inside one."""
    return jnp.reshape(c, jnp.shape(c) + (1,) * axes)


def _is(c: Any, number: int) -> bool:
    """Whether a centring is known to be this number, so that terms fall away."""
    return isinstance(c, (int, float)) and c == number
