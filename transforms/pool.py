"""Noise for many sites at once: one call of the random generator in the place of one for each site.

A program of K scalar choices asks the generator K times for one number, and each time compiles and
runs its own loop. Where sites draw alike, `Pool` asks once, by `vmap` over their keys, and
`Law.sample` turns each one's share into its value.

    law:  a site's value is that of `measure.sample(key)`, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from . import _jax
from .measures import Scaled
from .site import Site, as_one_equation, over_lanes, site_p

LARGE = 1024  # numbers; a site that draws more is worth a call of its own
Kind = Callable[..., jax.Array]  # (key, shape) -> noise

KINDS: dict[type, tuple[Kind, Callable[[Any, jax.Array], Any]]] = {
    npd.Normal: (jax.random.normal, lambda m, z: m.loc + z * m.scale),
    npd.BernoulliLogits: (jax.random.uniform, lambda m, u: u < m.probs),
    npd.BernoulliProbs: (jax.random.uniform, lambda m, u: u < m.probs),
    npd.Exponential: (jax.random.exponential, lambda m, e: e / m.rate),
}


class Noise(NamedTuple):
    """What `kind(key)` gives, known before it is asked for."""

    key: jax.Array
    value: jax.Array  # [*lanes, *one lane's value]


Pool = dict[int, Noise]  # by the key's id


def pooled(draws: Iterable[tuple[_jax.JaxprEqn, jax.Array]]) -> Pool:
    """Noise for those equations that are sites of which several draw alike; each with its key."""
    alike: dict[Any, list[jax.Array]] = {}
    for eqn, key in draws:
        if eqn.primitive is site_p and (kind := _kind(eqn)) is not None:
            site = eqn.params["site"]
            alike.setdefault((kind, site.lanes, site.value.shape), []).append(key)
    pool: Pool = {}
    for (kind, lanes, shape), keys in alike.items():
        if len(keys) > 1:
            noise = _draw(kind, lanes, shape, jnp.stack(keys))
            pool |= {id(key): Noise(key, noise[i]) for i, key in enumerate(keys)}
    return pool


def _draw(kind: Kind, lanes: tuple[int, ...], shape: tuple[int, ...], keys: jax.Array) -> jax.Array:
    def site(key: jax.Array) -> jax.Array:
        one = lambda key: kind(key, shape)  # noqa: E731
        for _ in lanes:
            one = jax.vmap(one)
        return one(jax.random.split(key, lanes) if lanes else key)

    return jax.vmap(site)(keys)


def _kind(eqn: _jax.JaxprEqn) -> Kind | None:
    """How a site's noise is drawn; None where it has to draw by itself."""
    site = eqn.params["site"]
    if site.kind != "draw" or math.prod(site.shape) > LARGE:
        return None
    dtypes = {_jax.struct(v).dtype for v in eqn.invars}
    if any(jnp.issubdtype(x, jnp.inexact) and x != jnp.result_type(float) for x in dtypes):
        return None
    measure = jax.tree.unflatten(site.tree, site.statics)[0]
    found = _sampler(_inside(measure))
    return KINDS[found][0] if found is not None else None


def _inside(measure: Any) -> Any:
    """The distribution that a draw comes from unchanged."""
    while isinstance(measure, (Scaled, npd.Independent)):
        measure = measure.base if isinstance(measure, Scaled) else measure.base_dist
    return measure


def _sampler(measure: Any) -> type | None:
    """The type in `KINDS` whose sampler a distribution has."""
    kind = type(measure)
    return next((k for k in kind.__mro__ if k in KINDS and k.sample is kind.sample), None)


@as_one_equation
def sample_from(site: Site, operands: list[Any], noise: jax.Array) -> jax.Array:
    """What a site draws with a noise."""

    def place(measure: Any, _: Any, noise: jax.Array) -> Any:
        measure = _inside(measure)
        kind = _sampler(measure)
        assert kind is not None
        return KINDS[kind][1](measure, noise)

    return jnp.asarray(over_lanes(site, place, operands, noise), site.value.dtype)
