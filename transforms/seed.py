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
from .site import Site, eqn_has_sites, with_lanes
from .staging import Program, stage


class Keyed(Handler):
    """A handler that draws: it holds one key per region and gives every site and region its own."""

    def __init__(self, key: jax.Array):
        self.key = key
        self.keys: Iterator[jax.Array] = iter(())

    def begin(self, jaxpr: Any) -> None:
        count = sum(eqn_has_sites(eqn) for eqn in jaxpr.eqns)
        self.keys = iter(split(self.key, count))

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
        return forward(site, operands, key) if site.kind == "draw" else with_lanes(site, operands)

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
    staged = stage(program)
    return run(Seed(key), staged)


def forward(site: Site, operands: list[Any], key: jax.Array) -> jax.Array:
    """Draw one site, all lanes."""
    law = Law(site, operands)
    if is_reparameterizable(law.template):
        return law.sample(key)
    return _no_derivative(site, law.sample, key, operands)


def _no_derivative(site: Site, sample: Any, key: jax.Array, operands: list[Any]) -> jax.Array:
    @functools.partial(jax.custom_jvp)
    def draw(key: jax.Array, operands: list[Any]) -> jax.Array:
        return Law(site, operands).sample(key)

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

    return draw(key, [jnp.asarray(x) for x in operands])
