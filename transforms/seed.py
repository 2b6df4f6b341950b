"""Seed: give a program its randomness, `program() -> value` becomes `key -> value`.

Laws: the same key gives the same draws, on any number of devices; draws of different sites, scan
steps and lanes are independent.

Keys: a region splits its key once, by the number of its equations that draw; a scan splits its own
by step, a site its own by lane.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .errors import DifferentiationError
from .interpreter import Handler, run
from .law import Law
from .measures import is_reparameterizable
from .pool import Pool, pooled, sample_from
from .pushforward import stage_drawing
from .site import Site, eqn_has_sites, with_lanes
from .staging import Program


class Keyed(Handler):
    """A handler that draws: it holds one key per region and gives every site and region its own."""

    def __init__(self, key: jax.Array):
        self.key = key
        self.keys: Iterator[jax.Array] = iter(())
        self.pool: Pool = {}

    def begin(self, jaxpr: Any) -> None:
        drawing = [eqn for eqn in jaxpr.eqns if eqn_has_sites(eqn)]
        keys = split(self.key, len(drawing))
        keys = [self.own(eqn, key) for eqn, key in zip(drawing, keys, strict=True)]
        self.pool, self.keys = pooled(zip(drawing, keys, strict=True)), iter(keys)

    def own(self, eqn: _jax.JaxprEqn, key: jax.Array) -> jax.Array:
        """The key that an equation draws from, made of what it was given."""
        return key

    def enter(self, eqn: _jax.JaxprEqn) -> Any:
        return next(self.keys)

    def enter_scan(self, eqn: _jax.JaxprEqn, length: int) -> Any:
        return jax.random.split(next(self.keys), length)


def split(key: jax.Array, count: int) -> Sequence[jax.Array]:
    """Keys for a region; the only one that draws takes the region's own."""
    return [key] * count if count < 2 else list(jax.random.split(key, count))


class Seed(Keyed):
    """Draw every site; observations keep their value."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        key = next(self.keys)
        if site.kind != "draw":
            return with_lanes(site, operands)
        return forward(site, operands, key, self.pool)

    def inside(self, entered: Any) -> Seed:
        return Seed(entered)

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        return next(self.keys)

    def inside_while(self, carried: Any) -> Seed:
        return Seed(jax.random.split(carried)[0])

    def next_while(self, carried: Any, step: Handler) -> Any:
        return jax.random.split(carried)[1]


def seed(program: Program, key: jax.Array) -> Any:
    """The value of `program()` with its choices drawn from `key`.

    Raises:
        DifferentiationError: when differentiated with respect to the parameters of a draw that
            has no pathwise derivative (`jax.grad` would silently drop the score term).
    """
    return run(Seed(key), stage_drawing(program))


def forward(site: Site, operands: list[Any], key: jax.Array, pool: Pool | None = None) -> jax.Array:
    """Draw one site, all lanes."""
    law = Law(site, operands, pool=pool or {})
    if is_reparameterizable(law.template):
        return law.sample(key)
    if (noise := law.pool.get(id(key))) is not None:
        return _no_derivative(site, operands, sample_from, noise.value)
    return _no_derivative(site, operands, lambda s, ops, key: Law(s, ops).sample(key), key)


def _no_derivative(site: Site, operands: list[Any], sample: Any, source: jax.Array) -> jax.Array:
    @functools.partial(jax.custom_jvp)
    def draw(source: jax.Array, operands: list[Any]) -> jax.Array:
        return sample(site, operands, source)

    @draw.defjvp
    def _refuse(primals: Any, tangents: Any) -> Any:
        raise DifferentiationError(
            "JAX's derivative met a draw that has no pathwise derivative; its score term would "
            "be dropped silently.",
            address=site.address,
            where=site.line,
            expected="parameters that are not differentiated, or a reparameterizable distribution",
            got=type(Law(site, operands).template).__name__,
            fix="use vx.grad or vx.value_and_grad for the objective, or draw from "
            "jax.lax.stop_gradient(parameters)",
        )

    return draw(source, [jnp.asarray(x) for x in operands])
