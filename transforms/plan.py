"""Which estimator serves which site of a program, decided before anything is evaluated.

The user's choice first. Otherwise: pathwise where the distribution has a differentiable sampler and
the program is smooth in the value; else enumeration while the paths stay few and no loop multiplies
them; else the score function with a leave-one-out baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from . import _jax, soundness
from .declared import declarations
from .dependence import NONE, bits, join
from .errors import (
    BiasedEstimatorError,
    CapabilityError,
    EnumerationError,
    EstimatorError,
    RelaxationError,
    UnknownAddressError,
    show_address,
)
from .estimators import Branching, Enumerate, Estimator, LeaveOneOut, Reparam, Score
from .estimators.base import cannot
from .law import Law, is_finite
from .site import Address, Site, draws, eqn_has_sites, has_sites, site_p
from .strategies import Strategy

if TYPE_CHECKING:
    from .credit import Credit
    from .flat import Flat

FEW = 64  # paths that enumeration may make by default
MOST = 2**24  # paths that it may make when asked for
LOOPS = (_jax.scan_p, _jax.while_p)


class Plan:
    """Estimators by site, and which equations branch."""

    def __init__(
        self,
        jaxpr: Any,
        *,
        strict: bool = False,
        estimators: Mapping[Address, Estimator] | None = None,
        using: Strategy | None = None,
    ):
        self.using = Strategy() if using is None else using
        self.asked = dict(estimators or {})  # by address, before what the program says
        self.salts: dict[Address, Any] = {}  # what to fold into the key of some sites
        self._jaxpr = jaxpr  # keeps the sites alive, whose ids are the keys
        self._chosen: dict[int, Estimator] = {}
        self.operands: dict[int, list[Any]] = {}  # their shapes
        self.sites: list[Site] = []  # the random choices, in program order
        self._default: set[int] = set()  # sites that the user left to us
        self._branching: dict[int, tuple[Any, bool]] = {}
        self.demoted: dict[int, soundness.Violation] = {}  # why a default is not pathwise
        self._all_known()
        self._check(jaxpr)
        self._region(jaxpr, in_loop=False, strict=strict)
        self.declared = list(declarations(jaxpr))  # (name, line) of what is biased on purpose
        if strict and self.declared:
            raise _declared(*self.declared[0])

    # ---- what was decided

    def estimator(self, site: Site) -> Estimator:
        """The estimator of a site of this program."""
        return self._chosen[id(site)]

    def own_key(self, eqn: _jax.JaxprEqn, key: jax.Array) -> jax.Array:
        """The key that an equation draws from, made of what it was given."""
        salt = self.salts.get(eqn.params["site"].address) if eqn.primitive is site_p else None
        return key if salt is None else jax.random.fold_in(key, salt)

    def elements(self, site: Site) -> tuple[int, ...] | None:
        """Shape of the elements that have weights; None where a site has none."""
        return Law(site, []).elements if self.estimator(site).weighs else None

    def branches(self, region: Any) -> bool:
        """Whether a region has a site with several values."""
        jaxpr, _ = _jax.opened(region)
        if (known := self._branching.get(id(jaxpr))) is None:
            found = any(map(self.branches_at, jaxpr.eqns))
            known = self._branching[id(jaxpr)] = (jaxpr, found)
        return known[1]

    def branches_at(self, eqn: _jax.JaxprEqn) -> bool:
        """Whether an equation is or contains a site with several values."""
        if eqn.primitive is site_p:
            return isinstance(self._chosen.get(id(eqn.params["site"])), Branching)
        return eqn_has_sites(eqn) and any(map(self.branches, _jax.subjaxprs(eqn)))

    def runs(self, dimension: int = 0) -> int:
        """How many times the program runs, at least as often as a baseline wants to compare."""
        n = self.using.runs(dimension)
        return n if n > 1 else self.compared

    @property
    def compared(self) -> int:
        """The most runs that a leave-one-out baseline asks for."""
        return max((getattr(e, "particles", 1) for e in self._chosen.values()), default=1)

    # ---- deciding

    def _asked(self, site: Site) -> Estimator | None:
        return self.asked.get(site.address, site.estimator)

    def _check(self, jaxpr: Any) -> None:
        """Find what cannot be pathwise. A default that cannot goes over to another estimator, whose
        weights may be the next obstacle; so until nothing is found.
        """

        def pathwise(site: Site) -> bool:
            asked = self._asked(site)
            if asked is None:
                return Law(site, []).has_rsample and id(site) not in self.demoted
            return asked.pathwise

        while found := soundness.violations(jaxpr, pathwise, direct=True):
            for site in draws(jaxpr):
                if (violation := found.get(id(site))) is None:
                    continue
                asked, law = self._asked(site), Law(site, [])
                if asked is not None and asked.relaxes:
                    raise _relaxed(law, asked, violation)
                if asked is not None and not asked.biased:
                    raise soundness.unsound(site, violation, sound_estimators(law))
            new = {i: v for i, v in found.items() if i not in self.demoted}
            if not new:
                break
            self.demoted |= new

    def _all_known(self) -> None:
        if not self.asked:
            return
        addresses = {site.address for site in draws(self._jaxpr)}
        if unknown := self.asked.keys() - addresses:
            raise UnknownAddressError(
                "An estimator is given for an address that the program does not have.",
                address=", ".join(map(show_address, sorted(unknown))),
                expected=f"one of {', '.join(sorted(map(show_address, addresses)))}",
                where=user_line(),
            )

    def _region(self, region: Any, *, in_loop: bool, strict: bool) -> None:
        jaxpr, _ = _jax.opened(region)
        for eqn in jaxpr.eqns:
            if eqn.primitive is site_p:
                self._site(eqn.params["site"], eqn, in_loop=in_loop, strict=strict)
            elif eqn_has_sites(eqn):
                loop = in_loop or eqn.primitive in LOOPS
                for sub in filter(has_sites, _jax.subjaxprs(eqn)):
                    self._region(sub, in_loop=loop, strict=strict)

    def _site(self, site: Site, eqn: _jax.JaxprEqn, *, in_loop: bool, strict: bool) -> None:
        if site.kind in ("observe", "factor"):
            raise _weighs(site)
        if site.kind != "draw" or id(site) in self._chosen:
            return
        self.operands[id(site)] = [_jax.struct(v) for v in eqn.invars]
        law = Law(site, self.operands[id(site)])
        chosen = self._asked(site)
        if (given := self.asked.get(site.address)) is not None:
            _require_usable(law, given)
        if chosen is None:
            chosen = self.using.default(law)
        if chosen is None:
            self._default.add(id(site))
            chosen = _default(law, smooth=id(site) not in self.demoted, in_loop=in_loop)
        if chosen.biased and strict:
            raise _biased(law, chosen)
        self._chosen[id(site)] = chosen
        self.sites.append(site)

    def settle(self, flat: Flat, credit: Credit) -> dict[int, tuple[bool, ...]]:
        """Count the paths, now that it is known which elements are coupled; the couplings.

        A site that would be enumerated by default goes over to the score function where the paths
        would become too many.
        """
        numbers = {p: n for n, p in enumerate(credit.found.choices)}
        drawing = [op for op in flat.ops if eqn_has_sites(op.eqn)]
        branching = {
            numbers[(i,)]: op
            for i, op in enumerate(drawing)
            if op.eqn.primitive is site_p and self.branches_at(op.eqn)
        }
        coupled = credit.coupled(branching)
        for op in drawing:  # a region that is entered as a whole
            if op.eqn.primitive is not site_p and self.branches_at(op.eqn):
                behind = join([credit.deps.get(x, NONE) for x in op.ins if isinstance(x, int)])
                for n in bits(behind.sources):
                    if n in coupled:
                        coupled[n] = (True,) * len(coupled[n])
        paths = {id(op): n for n, op in branching.items()}
        count = 1
        for op in drawing:
            if (n := paths.get(id(op))) is not None:
                count = self._count(op.eqn, coupled[n], count)
            elif self.branches_at(op.eqn):
                count *= self._paths(op.eqn)
            if count > MOST:
                raise _too_many(credit, op.eqn, count)
        return coupled

    def _count(self, eqn: _jax.JaxprEqn, coupled: tuple[bool, ...], paths: int) -> int:
        site = eqn.params["site"]
        law = Law(site, [_jax.struct(v) for v in eqn.invars], coupled)
        chosen = self.estimator(site)
        if not isinstance(chosen, Branching):
            return paths
        if id(site) not in self._default:
            return paths * chosen.count(law)
        assert law.support_shape is not None
        values = law.support_shape[0] ** min(law.coupled_count, 64)
        if paths * values <= FEW:
            return paths * values
        self._chosen[id(site)] = Score(LeaveOneOut())
        self._branching.clear()
        return paths

    def _paths(self, eqn: _jax.JaxprEqn) -> int:
        """How many paths leave a region that is entered as a whole."""
        if eqn.primitive is site_p:
            return self._count(eqn, Law(eqn.params["site"], []).coupled or (), 1)
        counts = [
            math.prod(self._paths(e) for e in _jax.opened(sub)[0].eqns if self.branches_at(e))
            for sub in _jax.subjaxprs(eqn)
        ]
        if eqn.primitive is _jax.scan_p:
            return min(max(counts) ** min(eqn.params["length"], 64), MOST + 1)
        return max(counts) if eqn.primitive is _jax.cond_p else math.prod(counts)


def _require_usable(law: Law, estimator: Estimator) -> None:
    """An estimator that is given from outside the program."""
    estimator.serve(law)
    if estimator.relaxes and not jnp.issubdtype(law.site.value.dtype, jnp.floating):
        raise cannot(
            EstimatorError,
            estimator,
            law,
            "a choice that was drawn as floats",
            "set it in the program, vx.sample(..., estimator=...), so that the value is a float",
        )


def _default(law: Law, *, smooth: bool, in_loop: bool) -> Estimator:
    if law.has_rsample and smooth:
        return Reparam()
    if not in_loop and law.support_shape is not None:
        return Enumerate()
    return Score(LeaveOneOut())


def sound_estimators(law: Law) -> list[str]:
    """What would be sound where a pathwise estimator is not."""
    return ["Enumerate()", "Score()"] if is_finite(law.template) else ["Score()"]


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


def _relaxed(law: Law, asked: Estimator, violation: Any) -> RelaxationError:
    return RelaxationError(
        f"{type(asked).__name__} runs the program on values between those of the support, and this "
        "one needs a value of the support.",
        address=law.address,
        expected="a program that is continuous in the value: products and sums, not an index",
        got=str(violation),
        where=law.site.line,
        fix="Score(), Enumerate() or RELAX(surrogate), which run it on values of the support alone",
    )


def _biased(law: Law, chosen: Estimator) -> BiasedEstimatorError:
    return BiasedEstimatorError(
        "strict=True refuses a biased gradient.",
        address=law.address,
        expected="an unbiased estimator",
        got=repr(chosen),
        where=law.site.line,
        fix=f"one of {', '.join(sound_estimators(law))}, or strict=False",
    )


def _declared(name: str, line: str) -> BiasedEstimatorError:
    return BiasedEstimatorError(
        "strict=True refuses a derivative that is declared to be biased.",
        expected="true derivatives",
        got=name,
        where=line,
        fix="an estimator at a random choice that is unbiased, or strict=False",
    )


def _too_many(credit: Credit, eqn: _jax.JaxprEqn, paths: int) -> EnumerationError:
    site = eqn.params["site"] if eqn.primitive is site_p else credit.found.sites[0]
    return EnumerationError(
        "Enumeration of this program makes too many paths.",
        address=site.address,
        expected=f"at most {MOST} paths",
        got=f"at least {paths} up to this site",
        where=site.line,
        fix="use estimator=Score() for some sites",
    )
