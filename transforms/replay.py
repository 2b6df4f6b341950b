"""Replay: run a program again with the noise of an earlier trace (abduction, then prediction).

    law:  replaying the program that made a trace gives the trace's values; after an intervention
          the values downstream change as they would have with the same noise.

Two passes with the handler that hands every region its own values: the first goes through the
program that made the trace and turns values into noise, the second turns noise into values.

Pearl, Causality, 2009, section 7.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .arrays import where_leading
from .choices import Choices, Flat, Given, check, flatten
from .interpreter import evaluate
from .law import Law
from .layout import layout
from .noise import NoNoiseError, noise_of, unrecoverable, value_from
from .site import Site, make_site, over_lanes, rebind
from .staging import Program, stage


class Abduct(Given):
    """Collect the noise behind the given values."""

    def __init__(self, given: Flat):
        super().__init__(given)
        self.noise: Flat = {}

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind != "draw":
            return operands[-1]
        value = self.value_of(site, operands)
        noise = _per_lane(noise_of, site, operands, value)
        if site.address in self.noise:  # of another branch of a vmapped cond
            noise = where_leading(Law(site, operands).present(), noise, self.noise[site.address])
        self.noise[site.address] = noise
        return value

    def effects(self) -> Flat:
        return self.noise

    def leave(self, effects: Flat) -> None:
        self.noise |= effects

    def leave_scan(self, effects: Flat, length: int) -> None:
        self.noise |= effects

    def join(self, effects: list[Any]) -> list[Callable[[Any], Any]]:
        shapes = {a: s for noise in effects for a, s in noise.items()}

        def complete(noise: Flat) -> Flat:
            return {a: noise.get(a, jnp.zeros(s.shape, s.dtype)) for a, s in shapes.items()}

        return [complete] * len(effects)


class Predict(Given):
    """Make every value from its noise; the values are recorded, no longer random."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind != "draw" or site.address not in self.given:
            return rebind(site, operands)
        value = _per_lane(value_from, site, operands, self.given[site.address])
        record, out = make_site(site.address, "record", None, value)
        return rebind(record, out, line=site.line)


def _per_lane(function: Any, site: Site, operands: list[Any], value: Any) -> jax.Array:
    try:
        return over_lanes(site, lambda m, _, v: function(m, v), operands, value)
    except NoNoiseError as error:
        raise unrecoverable(error.name, site.address, site.line) from error


def abduct(program: Program, choices: Choices) -> Flat:
    """The noise of every choice of a program's trace."""
    staged = stage(program)
    given = check(flatten(choices), layout(staged.jaxpr), complete=True, what="replay")
    handler = Abduct(given)
    evaluate(handler, staged.jaxpr, staged.consts)
    return handler.noise


def predict(program: Program, noise: Flat) -> Any:
    """Evaluate a program with noise, inside the program that is being traced."""
    staged = stage(program)
    known = layout(staged.jaxpr)
    handler = Predict({a: x for a, x in noise.items() if a in known})
    return staged.rebuild(evaluate(handler, staged.jaxpr, staged.consts))
