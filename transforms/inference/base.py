"""What an algorithm is, and what it works on.

A *target* is a program some of whose addresses have values; the others are its latents u, with
density gamma(u) = p(values, u) and integral Z. An algorithm is defined by three operations, whose
choices are random choices of the program that is being traced:

    evidence        log Z^ with E[Z^] = Z
    conditional     given u, log Z^ with E[1 / Z^ | u ~ gamma / Z] = 1 / Z
    draw            u and log Z^; the law of u is the algorithm's own

law:  q(u) being the law of u in `draw`, E[Z^ / gamma(u) | u] = 1 / q(u) there, and in `conditional`
      E[gamma(u) / Z^] = q(u).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from ..nested import Flat, Problem
from ..trace import joint


class Particle(NamedTuple):
    """Latents with gamma and their importance weight, leading axes where there are several."""

    latents: Flat
    log_density: jax.Array  # log gamma(u), or an estimate
    log_weight: jax.Array  # log gamma(u) / r(u), r what proposed u


@dataclasses.dataclass(frozen=True)
class Target:
    """One lane's program with values for its kept addresses."""

    problem: Problem
    values: Flat

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before the addresses of what an algorithm draws."""
        return (*self.problem.prefix, "particles")

    def propose(self) -> Particle:
        """Draw latents, from the program itself where there is no proposal."""
        problem, values = self.problem, self.values
        if problem.proposal is None:
            _, record = self._run(values)
            latents = {a: x for a, x in record.choices.items() if a not in values}
            return Particle(latents, record.log_density, record.weight)
        _, drawn = joint(problem.proposal(values), {}, what="simulate", prefix=self.prefix)
        scored = self._run(values | drawn.choices, keep=False)[1].log_density
        return Particle(drawn.choices, scored, scored - drawn.log_density)

    def score(self, latents: Flat) -> Particle:
        """Latents from elsewhere, with the weight that they would have had as a proposal."""
        _, record = self._run(self.values | latents, keep=False)
        return self.weigh(latents, record)

    def weigh(self, latents: Flat, record: Any) -> Particle:
        """Latents whose densities are known: `record` weighs the kept addresses."""
        problem = self.problem
        if problem.proposal is None:
            return Particle(latents, record.log_density, record.weight)
        _, back = joint(
            problem.proposal(self.values),
            latents,
            keep=False,
            what="log_density",
            prefix=self.prefix,
        )
        return Particle(latents, record.log_density, record.log_density - back.log_density)

    def _run(self, given: Flat, *, keep: bool = True) -> Any:
        problem = self.problem
        return joint(
            problem.program,
            given,
            keep=keep,
            what="generate",
            weighed=frozenset(self.values),
            prefix=self.prefix,
        )


class Algorithm:
    """Base class; instances are immutable."""

    name = "algorithm"

    def evidence(self, target: Target) -> jax.Array:
        """log Z^ with E[Z^] = Z."""
        raise NotImplementedError

    def conditional(self, target: Target, retained: Particle) -> jax.Array:
        """log Z^ of a run that one particle is given."""
        raise NotImplementedError

    def draw(self, target: Target) -> tuple[Particle, jax.Array]:
        """A particle and log Z^."""
        raise NotImplementedError
