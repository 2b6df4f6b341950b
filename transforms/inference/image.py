"""The image of a measure on R^D in the choices of a program: exact.

    x = T(u), u ~ q:    log q(x) = log q(u) - log |det dT/du|

with T the bijection of the program's supports (`unconstrained.py`). The nested equation's program
is the one whose choices these are, its proposal is q: over the same addresses, each with the shape
of its u, or over others that are all of R^D, one after the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from ..layout import layout
from ..nested import Flat, Problem
from ..staging import Staged
from ..trace import joint
from ..unconstrained import Space


@dataclasses.dataclass(frozen=True)
class Image:
    """What a measure on R^D makes of a program's choices."""

    who: str

    exact: ClassVar[bool] = True

    def simulate(self, problem: Problem) -> tuple[Flat, jax.Array]:
        """x and log q(x)."""
        space, noise = self._open(problem)
        _, record = joint(noise, {}, what="simulate", prefix=problem.prefix)
        drawn = {a: record.choices[a] for a in _shapes(noise)}  # a scan's record is in no order
        point = space.at(_like(drawn, space.shapes))
        return point.values, record.log_density - point.log_det

    def log_density(self, problem: Problem, values: Flat) -> jax.Array:
        """log q(x)."""
        space, noise = self._open(problem)
        u, log_det = space.inverse(values)
        given = _like(u, _shapes(noise))
        _, record = joint(noise, given, keep=False, what="log_density", prefix=problem.prefix)
        return record.log_density - log_det

    def _open(self, problem: Problem) -> tuple[Space, Staged]:
        assert problem.proposal is not None
        return Space.of(problem.program, self.who), problem.proposal({})


def _shapes(noise: Staged) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {a: e.shape for a, e in layout(noise.jaxpr).items()}


def _like(values: Flat, shapes: Mapping[tuple[str, ...], tuple[int, ...]]) -> Flat:
    """The same numbers by other addresses: their own, or one after the other."""
    if values.keys() == shapes.keys():
        return {a: values[a] for a in shapes}
    rest = jnp.concatenate([jnp.ravel(x) for x in values.values()])
    found = {}
    for address, shape in shapes.items():
        size = math.prod(shape)
        found[address], rest = rest[:size].reshape(shape), rest[size:]
    return found
