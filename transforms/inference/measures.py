"""The two measures that an algorithm makes: a marginal, and a normalised target.

    Marginal      p(x) = sum_u p(x, u), a target for every x with Z = p(x)
                  simulate:     (x, u) ~ p, w = Z^ of `conditional` given u
                  log_density:  w = Z^ of `evidence`
    Normalized    the law q of what `draw` gives, near gamma / Z
                  simulate:     w = gamma(x) / Z^ of `draw`
                  log_density:  w = gamma(x) / Z^ of `conditional` given x

Lew, Cusumano-Towner and Mansinghka 2022 (RAVI); Lew, Huot, Staton and Mansinghka 2023 (ADEV).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from ..nested import Flat, Problem
from ..trace import joint
from .base import Algorithm, Target


@dataclasses.dataclass(frozen=True)
class Marginal:
    """Some addresses of a program, the others integrated out by an algorithm."""

    using: Algorithm

    exact: ClassVar[bool] = False

    def simulate(self, problem: Problem) -> tuple[Flat, jax.Array]:
        """x and log w with E[1 / w | x] = 1 / p(x)."""
        _, record = joint(
            problem.program,
            {},
            what="simulate",
            weighed=frozenset(problem.kept),
            prefix=problem.prefix,
        )
        values = {a: record.choices[a] for a in problem.kept}
        latents = {a: x for a, x in record.choices.items() if a not in values}
        target = Target(problem, values)
        return values, self.using.conditional(target, target.weigh(latents, record))

    def log_density(self, problem: Problem, values: Flat) -> jax.Array:
        """log w with E[w] = p(x)."""
        return self.using.evidence(Target(problem, values))


@dataclasses.dataclass(frozen=True)
class Normalized:
    """What an algorithm draws from a target."""

    using: Algorithm

    exact: ClassVar[bool] = False

    def simulate(self, problem: Problem) -> tuple[Flat, jax.Array]:
        """x and log w with E[1 / w | x] = 1 / q(x)."""
        particle, log_z = self.using.draw(Target(problem, {}))
        return particle.latents, particle.log_density - log_z

    def log_density(self, problem: Problem, values: Flat) -> jax.Array:
        """log w with E[w] = q(x)."""
        target = Target(problem, {})
        retained = target.score(values)
        return retained.log_density - self.using.conditional(target, retained)
