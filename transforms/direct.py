"""Expectations in direct style: every site has one value, log weights add up on the side.

A site's estimator draws a value and a log weight that is 0 and carries derivatives. The log weights
of a region are its effect: inside scan and cond they come out of the body, in a while loop they are
carried. exp of their sum, which is 1, multiplies the outcome at the end.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .errors import CapabilityError
from .estimators import Direct
from .interpreter import Handler
from .law import Law
from .plan import Plan
from .seed import Keyed
from .site import Site


class Expect(Keyed):
    """Direct style: draw each site by its estimator and add up the log weights."""

    def __init__(self, plan: Plan, key: jax.Array):
        super().__init__(key)
        self.plan = plan
        self.log_weight: Any = jnp.zeros(())
        self.weighs = False  # whether any site has a log weight

    def site(self, site: Site, operands: list[Any]) -> Any:
        key = next(self.keys)
        if site.kind == "record":
            return operands[-1]
        if site.kind != "draw":
            raise _weighs(site)
        estimator = self.plan.estimator(site)
        assert isinstance(estimator, Direct)
        value, log_weight = estimator.draw(key, Law(site, operands))
        if not isinstance(log_weight, float):  # 0.0 says: none
            self.leave(log_weight)
        return value

    def inside(self, entered: Any) -> Expect:
        return Expect(self.plan, entered)

    def effects(self) -> Any:
        return self.log_weight

    def leave(self, effects: Any) -> None:
        self.log_weight = self.log_weight + effects
        self.weighs = True

    def leave_scan(self, effects: Any, length: int) -> None:
        self.leave(effects.sum(0))

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        return next(self.keys), jnp.zeros_like(self.log_weight)

    def inside_while(self, carried: Any) -> Expect:
        return Expect(self.plan, jax.random.split(carried[0])[0])

    def next_while(self, carried: Any, step: Handler) -> Any:
        return jax.random.split(carried[0])[1], carried[1] + step.effects()

    def leave_while(self, carried: Any) -> None:
        self.leave(carried[1])


def weighed(log_weight: Any, x: Any) -> Any:
    """x times exp(log_weight), which is 1; what is not a float has no derivative to mend."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return x * jnp.exp(log_weight).astype(jnp.result_type(x))


def _weighs(site: Site) -> CapabilityError:
    kind = "an observation" if site.kind == "observe" else "a factor"
    return CapabilityError(
        f"expect needs a program that is a draw; this one has {kind}, which would be ignored.",
        address=site.address,
        where=site.line,
        expected="random choices only",
        got="an unnormalised program",
        fix="score the model with m.log_density(choices) inside an objective, or normalise it",
    )
