"""Which estimator serves which site of a program, decided before anything is evaluated.

The user's choice first. Otherwise: pathwise where the distribution has a differentiable sampler,
else enumeration while the paths stay few and no loop multiplies them, else the score function.
"""

from __future__ import annotations

import math
from typing import Any

from . import _jax
from .errors import EnumerationError
from .estimators import Branching, Enumerate, Estimator, Reparam, Score
from .law import Law
from .site import Site, eqn_has_sites, first_site, site_p

FEW = 64  # paths that enumeration may make by default
MOST = 2**24  # paths that it may make when asked for


class Plan:
    """Estimators by site, and which equations branch."""

    def __init__(self, jaxpr: Any):
        self._chosen: dict[int, Estimator] = {}  # by id of a site, which the jaxpr keeps alive
        self._branching: dict[int, bool] = {}  # by id of an equation
        self._region(jaxpr, 1, in_loop=False)

    def estimator(self, site: Site) -> Estimator:
        """The estimator of a site of this program."""
        return self._chosen[id(site)]

    def branches(self, jaxpr: Any) -> bool:
        """Whether a region has a site with several values."""
        return any(self.branches_at(eqn) for eqn in _jax.opened(jaxpr)[0].eqns)

    def branches_at(self, eqn: _jax.JaxprEqn) -> bool:
        """Whether an equation is or contains a site with several values."""
        return self._branching.get(id(eqn), False)

    def _region(self, jaxpr: Any, paths: int, *, in_loop: bool) -> int:
        """Plan a region that `paths` paths enter; the number that leave it."""
        jaxpr, _ = _jax.opened(jaxpr)
        for eqn in jaxpr.eqns:
            if not eqn_has_sites(eqn):
                continue
            at_site = eqn.primitive is site_p
            paths *= (self._site if at_site else self._inside)(eqn, paths, in_loop=in_loop)
            if paths > MOST:
                raise _too_many(eqn, paths)
        return paths

    def _inside(self, eqn: _jax.JaxprEqn, paths: int, *, in_loop: bool) -> int:
        loop = eqn.primitive in (_jax.scan_p, _jax.while_p)
        subs = list(_jax.subjaxprs(eqn))
        counts = [self._region(s, paths, in_loop=in_loop or loop) // paths for s in subs]
        self._branching[id(eqn)] = any(self.branches(s) for s in subs)
        if eqn.primitive is _jax.scan_p:
            return min(max(counts) ** min(eqn.params["length"], 64), MOST + 1)
        return max(counts) if eqn.primitive is _jax.cond_p else math.prod(counts)

    def _site(self, eqn: _jax.JaxprEqn, paths: int, *, in_loop: bool) -> int:
        site = eqn.params["site"]
        if site.kind != "draw":
            return 1
        law = Law(site, [_jax.struct(v) for v in eqn.invars])
        chosen = self._chosen.get(id(site), site.estimator)
        if chosen is None:
            chosen = _default(law, paths, in_loop=in_loop)
        chosen.serve(law)
        self._chosen[id(site)] = chosen
        self._branching[id(eqn)] = isinstance(chosen, Branching)
        return chosen.count(law) if isinstance(chosen, Branching) else 1


def _default(law: Law, paths: int, *, in_loop: bool) -> Estimator:
    if law.has_rsample:
        return Reparam()
    if not in_loop and law.support_shape is not None:
        values = law.support_shape[0] ** min(law.element_count, 64)
        if paths * values <= FEW:
            return Enumerate()
    return Score()


def _too_many(eqn: _jax.JaxprEqn, paths: int) -> EnumerationError:
    site = eqn.params["site"] if eqn.primitive is site_p else first_site(next(_jax.subjaxprs(eqn)))
    return EnumerationError(
        "Enumeration of this program makes too many paths.",
        address=site.address,
        expected=f"at most {MOST} paths",
        got=f"at least {paths} up to this site",
        where=site.line,
        fix="use estimator=Score() for some sites",
    )
