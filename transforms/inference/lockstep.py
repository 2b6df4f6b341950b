"""What many particles run side by side: a program cut at its scans, and a handler for one particle.

What does not depend on the particles is computed once; everything else has the particles in front.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..edit import Edit
from ..interpreter import evaluate
from ..layout import layout_of
from ..nested import Flat
from ..site import Site, eqn_has_sites
from ..staging import Staged, stage
from ..trace import Joint


class Retaining(Joint):
    """Draws, but of a particle that is retained, which has its values."""

    flag: Any = None  # whether this particle is
    values: Flat = {}  # noqa: RUF012

    def _is_forward(self, site: Site) -> bool:
        """A retained particle has values, not the noise that they came from."""
        return False

    def _value(self, site: Site, operands: list[Any]) -> Any:
        drawn = super()._value(site, operands)
        if self.flag is None or site.address in self.given:
            return drawn
        return jnp.where(self.flag, self.values[site.address], drawn)

    def inside(self, entered: Any) -> Retaining:
        given, values = entered
        inner = Retaining(given, what=self.what, weighed=self.weighed, prefix=self.prefix)
        inner.flag, inner.values = self.flag, values
        return inner

    def _of(self, eqn: _jax.JaxprEqn) -> Any:
        here = layout_of(eqn)
        return super()._of(eqn), {a: x for a, x in self.values.items() if a in here}


@dataclasses.dataclass
class Lockstep:
    """A program that N particles run side by side, up to a scan at a time."""

    eqns: list[_jax.JaxprEqn]
    outer: dict[Any, Any]  # values that all particles share
    own: dict[Any, Any]  # values [N, ...]

    @staticmethod
    def of(staged: Staged) -> Lockstep:
        flat = stage(lambda: evaluate(Edit(), staged.jaxpr, staged.consts))  # calls are inlined
        shared = dict(zip(_jax.input_vars(flat.jaxpr), flat.consts, strict=True))
        return Lockstep(list(flat.jaxpr.eqns), shared, {})

    def scans(self) -> list[_jax.JaxprEqn]:
        return [e for e in self.eqns if e.primitive is _jax.scan_p and eqn_has_sites(e)]

    def split(self) -> tuple[list[_jax.JaxprEqn], _jax.JaxprEqn | None]:
        """The equations before the next scan that draws, and that one."""
        for i, eqn in enumerate(self.eqns):
            if eqn.primitive is _jax.scan_p and eqn_has_sites(eqn):
                before, self.eqns = self.eqns[:i], self.eqns[i + 1 :]
                return before, eqn
        before, self.eqns = self.eqns, []
        return before, None

    def read(self, v: Any) -> Any:
        return v.val if isinstance(v, _jax.Literal) else self.outer[v]


class Loop:
    """A scan's operands, shared by the particles or their own."""

    def __init__(self, program: Any, eqn: _jax.JaxprEqn, n: int):
        self.program, self.eqn = program, eqn
        n_consts, n_carry = _jax.scan_counts(eqn)
        self.n_carry = n_carry
        atoms = eqn.invars
        self.consts, xs = atoms[:n_consts], atoms[n_consts + n_carry :]
        self.own_consts = [program.own[v] for v in self.consts if inside(v, program.own)]
        self.carry = [
            program.own[v]
            if inside(v, program.own)
            else jnp.broadcast_to(program.read(v), (n, *jnp.shape(program.read(v))))
            for v in atoms[n_consts : n_consts + n_carry]
        ]
        self.mine = [inside(v, program.own) for v in xs]
        self.shared_xs = [program.read(v) for v, m in zip(xs, self.mine, strict=True) if not m]
        own = [program.own[v] for v, m in zip(xs, self.mine, strict=True) if m]
        self.own_xs = [jnp.moveaxis(x, 0, 1) for x in own]  # steps in front

    def step(self, handler: Any, carry: Any, own: Any, shared_xs: Any, own_xs: Any) -> Any:
        """One step of one particle: the carry and the outputs."""
        consts, mine, theirs, ours = iter(own), iter(own_xs), iter(shared_xs), self.program
        given = [next(consts) if inside(v, ours.own) else ours.read(v) for v in self.consts]
        xs = [next(mine) if m else next(theirs) for m in self.mine]
        jaxpr, inner = _jax.opened(self.eqn.params["jaxpr"])
        outs = evaluate(handler, jaxpr, [*inner, *given, *carry, *xs])
        return outs[: self.n_carry], outs[self.n_carry :]


def inside(v: Any, env: dict[Any, Any]) -> bool:
    """Whether a variable, no literal, has a value."""
    return not isinstance(v, _jax.Literal) and v in env


def shared(program: Lockstep, eqns: list[_jax.JaxprEqn]) -> tuple[Lockstep, list[_jax.JaxprEqn]]:
    """Evaluate what does not depend on the particles; the equations that are left."""
    left: list[_jax.JaxprEqn] = []
    dependent = set(program.own)
    for eqn in eqns:
        mine = any(not isinstance(v, _jax.Literal) and v in dependent for v in eqn.invars)
        if mine or eqn_has_sites(eqn):
            dependent.update(eqn.outvars)
            left.append(eqn)
        else:
            outs = _jax.bind_again(eqn, [program.read(v) for v in eqn.invars])
            program.outer.update(zip(eqn.outvars, outs, strict=True))
    return program, left


def lineage(ancestors: jax.Array, tree: Any, reverse: bool) -> tuple[jax.Array, Any]:
    """What [T, N, ...] the last particles' ancestors did, as [N, T, ...], and where they began."""

    def back(index: jax.Array, x: Any) -> Any:
        ancestor, values = x
        return ancestor[index], jax.tree.map(lambda v: v[index], values)

    n = ancestors.shape[1]
    origin, found = jax.lax.scan(
        back, jnp.arange(n, dtype=ancestors.dtype), (ancestors, tree), reverse=not reverse
    )
    return origin, jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), found)
