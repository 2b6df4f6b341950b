"""The density that one site contributes, and a mark on it for diagnosis.

`watch()` makes every contribution an equation of its own (`site_density`), with the address on it.
`fit` uses it after a failure to name the site whose density or gradient is not finite; otherwise
the arithmetic stands in the program as if the user had written it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from . import _jax
from .edit import observed_site
from .measures import log_density
from .site import Site, as_one_equation, over_lanes

_watched = contextvars.ContextVar("varax_watched", default=False)


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Mark the densities of programs traced inside."""
    token = _watched.set(True)
    try:
        yield
    finally:
        _watched.reset(token)


def at(site: Site, operands: list[Any], value: Any) -> jax.Array:
    """Log density of a draw at a value with lanes in front: a scalar, summed over all lanes."""
    return observed(*observed_site(site, operands, value))


def observed(site: Site, operands: list[Any]) -> jax.Array:
    """Log density of an observation: a scalar, summed over all lanes."""
    if _watched.get():
        return density_p.bind(*operands, site=site, kept=0)
    each = log_densities(site, operands)
    return each.sum() if each.ndim else each  # in the program, where credit can be assigned


@as_one_equation
def log_densities(site: Site, operands: list[Any]) -> jax.Array:
    """Log density of each element of an observation, shape `lanes + batch`."""
    return over_lanes(site, lambda m, v: log_density(m, v), operands)


def total(*operands: Any, site: Site, kept: int) -> jax.Array:
    """The sum over all axes but the first `kept` lanes."""
    lanes = over_lanes(site, lambda m, v: log_density(m, v).sum(), list(operands))
    return lanes.sum(tuple(range(kept, lanes.ndim)))


density_p = _jax.Primitive("site_density")


def _batch(size: int, operands: Any, dims: Any, *, site: Site, kept: int) -> tuple[Any, int]:
    operands = [_jax.to_front(x, d) for x, d in zip(operands, dims, strict=True)]
    mapped = tuple(d is not None for d in dims)
    site = dataclasses.replace(site, lanes=(size, *site.lanes), mapped=(mapped, *site.mapped))
    return density_p.bind(*operands, site=site, kept=kept + 1), 0


def _abstract(*avals: Any, site: Site, kept: int) -> Any:
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    out = jax.eval_shape(lambda *xs: total(*xs, site=site, kept=kept), *structs)
    return _jax.shaped_array(out.shape, out.dtype)


def _jvp(primals: Any, tangents: Any, *, site: Site, kept: int) -> Any:
    return _jax.jvp_of(lambda *xs: total(*xs, site=site, kept=kept), primals, tangents)


_jax.set_rules(
    density_p,
    impl=total,
    abstract=_abstract,
    batch=_batch,
    jvp=_jvp,
    lower=_jax.lower_as(total),
)
