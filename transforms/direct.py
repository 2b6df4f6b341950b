"""Expectations in direct style: what one run of a region draws, with the weights on the side.

A site's estimator draws a value and a log weight that is 0 and carries derivatives. The log weights
of a region are its effect, by the position of their site: inside scan and cond they come out of the
body, in a while loop their sum is carried. What they multiply is decided outside (`credit.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _jax
from .estimators import Direct, Drawn
from .interpreter import Handler
from .law import Law
from .plan import Plan
from .seed import Keyed
from .site import Site, with_lanes

Position = tuple[int, ...]  # the number of an equation that draws in its region, and so on inside


class Weighing(NamedTuple):
    """What a site leaves beside its value, each of the shape of its elements."""

    log_weight: jax.Array
    baseline: jax.Array | None


class Expect(Keyed):
    """Direct style: draw each site by its estimator and keep the log weights."""

    def __init__(self, plan: Plan, key: jax.Array):
        super().__init__(key)
        self.plan = plan
        self.at = -1  # number of the present equation among those that draw
        self.weighings: dict[Position, Weighing] = {}

    def site(self, site: Site, operands: list[Any]) -> Any:
        self.at += 1
        key = next(self.keys)
        if site.kind == "record":
            return with_lanes(site, operands)
        estimator = self.plan.estimator(site)
        assert isinstance(estimator, Direct)
        law = Law(site, operands, pool=self.pool)
        drawn = Drawn(*law.estimator(estimator).draw(key, law))
        if drawn.log_weight is not None:
            baseline = drawn.baseline
            self.weighings[(self.at,)] = Weighing(
                jnp.broadcast_to(drawn.log_weight, law.elements),
                None if baseline is None else jnp.broadcast_to(baseline, law.elements),
            )
        return drawn.value

    def own(self, eqn: _jax.JaxprEqn, key: jax.Array) -> jax.Array:
        return self.plan.own_key(eqn, key)

    def inside(self, entered: Any) -> Expect:
        return Expect(self.plan, entered)

    def enter(self, eqn: _jax.JaxprEqn) -> Any:
        self.at += 1
        return super().enter(eqn)

    def enter_scan(self, eqn: _jax.JaxprEqn, length: int) -> Any:
        self.at += 1
        return super().enter_scan(eqn, length)

    def effects(self) -> Any:
        return self.weighings

    def leave(self, effects: Any) -> None:
        for position, weighing in effects.items():
            self.weighings[(self.at, *position)] = weighing

    def leave_scan(self, effects: Any, length: int) -> None:
        self.leave(effects)  # with the steps in front

    def join(self, effects: list[Any]) -> list[Any]:
        """A branch that was not taken has weights of 1."""
        everything = {(i, *p): w for i, e in enumerate(effects) for p, w in e.items()}

        def filled(i: int) -> Any:
            def fill(mine: Any) -> Any:
                zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), everything)
                return zeros | {(i, *p): w for p, w in mine.items()}

            return fill

        return [filled(i) for i in range(len(effects))]

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        self.at += 1
        return next(self.keys), jnp.zeros(())

    def inside_while(self, carried: Any) -> Expect:
        return Expect(self.plan, jax.random.split(carried[0])[0])

    def next_while(self, carried: Any, step: Handler) -> Any:
        total = carried[1]
        for weighing in step.effects().values():
            total = (total + weighing.log_weight.sum()).astype(total.dtype)
        return jax.random.split(carried[0])[1], total

    def leave_while(self, carried: Any) -> None:
        self.weighings[(self.at,)] = Weighing(carried[1], None)
