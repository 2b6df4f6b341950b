"""The interpreter that every transformation shares.

A transformation is a `Handler`: it says what a site means and how its effects cross the boundary
of a region (the body of a jit, scan, cond, while or checkpoint). `evaluate` walks the equations;
those without a site are bound again as they are, so the outer jit, vmap and grad stay in charge;
those that hide a site go to the rule of their primitive, and one without a rule is refused.

Laws: an equation is evaluated once, in program order; a program without sites is unchanged; a
site is either given to the handler or refused with its address, never skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import _jax
from .errors import HiddenSampleError
from .site import Site, eqn_has_sites, first_site, site_p
from .staging import Staged


class Handler:
    """A transformation. Accumulates effects while it walks one region, then hands them back."""

    def begin(self, jaxpr: Any) -> None:
        """Called with the region's jaxpr before its first equation."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        """The value of a site."""
        raise NotImplementedError

    def nested(self, region: Any, jaxprs: Any, values: list[Any]) -> list[Any]:
        """The values of a nested measure (`nested.py`)."""
        if region.how.exact:
            raise region.whole()
        headline = f"{region.name} has a density that is an estimate; an exact one is needed here."
        raise region.inexact(headline)

    # What crosses into an equation's region, and what comes back out of it.

    def enter(self, eqn: _jax.JaxprEqn) -> Any:
        """A pytree for a region that runs once; the branches of a cond share it."""
        return ()

    def enter_scan(self, eqn: _jax.JaxprEqn, length: int) -> Any:
        """A pytree for the body of a scan, leading axis `length`."""
        return ()

    def inside(self, entered: Any) -> Handler:
        """The same transformation in the region, from (a slice of) what entered."""
        raise NotImplementedError

    def effects(self) -> Any:
        """A pytree that this region hands back."""
        return ()

    def leave(self, effects: Any) -> None:
        """Take the effects of a region that ran once."""

    def leave_scan(self, effects: Any, length: int) -> None:
        """Take the effects of a scan's body, stacked along a leading axis."""

    def join(self, effects: list[Any]) -> list[Callable[[Any], Any]]:
        """Per branch of a cond, what makes its effects (given as shapes) alike."""
        return [lambda e: e for _ in effects]

    # A while loop has no fixed number of steps: its effects are carried.

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        """What the loop carries for this transformation, or an error."""
        raise NotImplementedError

    def inside_while(self, carried: Any) -> Handler:
        """The handler of one step."""
        raise NotImplementedError

    def next_while(self, carried: Any, step: Handler) -> Any:
        """What the next step carries."""
        raise NotImplementedError

    def leave_while(self, carried: Any) -> None:
        """Take what the loop carried when it ended."""

    def alive(self) -> Any:
        """Whether a loop may go on: false where all its choices are absent."""
        return True


Rule = Callable[[Handler, _jax.JaxprEqn, list[Any]], list[Any]]
RULES: dict[_jax.Primitive, Rule] = {}  # filled by control.py


def evaluate(
    handler: Handler, jaxpr: Any, operands: list[Any], rules: Mapping[Any, Rule] = RULES
) -> list[Any]:
    """Run a jaxpr's equations under a handler; `operands` are `[*consts, *args]`."""
    env: dict[Any, Any] = dict(zip(_jax.input_vars(jaxpr), operands, strict=True))
    handler.begin(jaxpr)
    for eqn in jaxpr.eqns:
        values = [read(env, v) for v in eqn.invars]
        env.update(zip(eqn.outvars, step(handler, eqn, values, rules), strict=True))
    return [read(env, v) for v in jaxpr.outvars]


def step(
    handler: Handler, eqn: _jax.JaxprEqn, values: list[Any], rules: Mapping[Any, Rule] = RULES
) -> list[Any]:
    """Evaluate one equation under a handler."""
    if eqn.primitive is site_p:
        return [handler.site(eqn.params["site"], values)]
    if not eqn_has_sites(eqn):
        return _jax.bind_again(eqn, values)
    if rule := rules.get(eqn.primitive):
        return rule(handler, eqn, values)
    raise refused(eqn)


def refused(eqn: _jax.JaxprEqn, why: str = "varax has no rule for it") -> HiddenSampleError:
    """The error for a primitive that hides a site and cannot be entered."""
    site = next(first_site(sub) for sub in _jax.subjaxprs(eqn) if _has(sub))
    return HiddenSampleError(
        f"A random choice sits inside `{_jax.shown(eqn.primitive)}`: {why}.",
        address=site.address,
        where=site.line,
        expected="random choices inside jit, vmap, scan, cond, switch, while_loop or checkpoint",
        got=f"`{_jax.shown(eqn.primitive)}` at {_jax.source_line(eqn)}",
        fix="draw outside and pass the value in",
    )


def _has(jaxpr: Any) -> bool:
    return any(eqn_has_sites(e) for e in _jax.opened(jaxpr)[0].eqns)


def read(env: dict[Any, Any], atom: Any) -> Any:
    """The value of a variable or a literal."""
    return atom.val if isinstance(atom, _jax.Literal) else env[atom]


def run(handler: Handler, staged: Staged) -> Any:
    """The program's value under a handler."""
    return staged.rebuild(evaluate(handler, staged.jaxpr, staged.consts))
