"""Simulate, log_density, generate: one handler that draws what is not given and adds up densities.

Laws: log_density(simulate().choices) == simulate().log_density; the weight of generate is the
density of what was given, under the draws of the rest.

The draws stay random choices of the program that is being traced, so an objective may simulate a
guide and the estimators decide later what a draw is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax, density, nested, pushforward
from .arrays import where_leading
from .bounds import estimate
from .choices import Choices, Flat, Given, check, check_support, flatten, loop_density
from .edit import Edit
from .errors import CapabilityError
from .interpreter import Handler, evaluate
from .law import Law
from .layout import Entry, layout
from .nested import Region, observations
from .site import Address, Site, first_site, rebind, unpack, with_lanes
from .staging import Program, Staged, drawn_forward, stage


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    """What a run of a program leaves behind."""

    choices: Flat = dataclasses.field(default_factory=dict)  # draws, scan axes and lanes in front
    recorded: Flat = dataclasses.field(default_factory=dict)  # deterministic values, observations
    present: Flat = dataclasses.field(default_factory=dict)  # of choices made in some branch only
    log_density: Any = 0.0  # of draws, observations and factors
    weight: Any = 0.0  # of given choices, observations and factors


class Joint(Given):
    """Choices that are given take their value, the others are drawn."""

    def __init__(
        self,
        given: Flat,
        *,
        keep: bool = True,
        what: str = "simulate",
        weighed: Collection[Address] | None = None,
        prefix: Address = (),
    ):
        super().__init__(given)
        self.keep = keep  # whether choices are collected, or the densities alone
        self.what = what
        self.weighed = given.keys() if weighed is None else weighed  # whose densities are weights
        self.prefix = prefix  # of the addresses of choices that stay random
        self.record = Record(log_density=jnp.zeros(()), weight=jnp.zeros(()))

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind == "factor":
            self._add(with_lanes(site, operands).sum(), given=True)
            return operands[-1]
        if site.kind == "record":
            self._keep("recorded", site.address, with_lanes(site, operands))
            return operands[-1]
        if site.kind == "observe":
            value, kept = with_lanes(site, operands), "recorded"
            if not site.lanes:
                check_support(site.address, *unpack(site, operands), site.line)
            lp = density.observed(site, operands)
        elif self._is_forward(site):
            value, lp = pushforward.draw(site, operands, self.prefix + site.address)
            kept = "choices"
        else:
            value, kept = self._value(site, operands), "choices"
            lp = density.at(site, operands, value)
        if kept == "choices" and (law := Law(site, operands)).has_mask:
            merged = self._merge(site, law.present(), value)
        else:
            merged = value
        self._keep(kept, site.address, merged)
        self._add(lp, given=site.kind == "observe" or site.address in self.weighed)
        return value

    def nested(self, region: Region, jaxprs: Any, values: list[Any]) -> list[Any]:
        """A nested measure, whose density is an estimate."""
        kept, given = "choices", None
        if region.observed:
            kept, (given, values) = "recorded", observations(region, values)
        else:
            given = region.given(self.given)
        inner = dataclasses.replace(region, prefix=self.prefix + region.prefix)
        if given is None:
            drawn, log_w = nested.simulate(inner, jaxprs, values)
            found = dict(zip(region.addresses, drawn.values(), strict=True))
            if not region.how.exact:
                log_w = estimate(log_w, "1 / p", region.name, region.line)
        else:
            found = given
            renamed = dict(zip(inner.addresses, given.values(), strict=True))
            log_w = nested.log_density(inner, jaxprs, values, renamed)
            if not region.how.exact:
                log_w = estimate(log_w, "p", region.name, region.line)
        for address, value in found.items():
            self._keep(kept, address, value)
        weighed = region.observed or any(a in self.weighed for a in found)
        self._add(log_w.sum(), given=weighed)
        return list(found.values())

    def _is_forward(self, site: Site) -> bool:
        """Whether a draw is to be computed from its noise."""
        drawn = site.address not in self.given
        return drawn and self.prefix + site.address in drawn_forward() and pushforward.serves(site)

    def _value(self, site: Site, operands: list[Any]) -> Any:
        if site.address in self.given:
            return self.value_of(site, operands)
        return rebind(site, operands, address=self.prefix + site.address)

    def _merge(self, site: Site, mask: Any, value: Any) -> Any:
        """Note where a masked choice is present; branches of a vmapped cond may share it."""
        if (other := self.record.choices.get(site.address)) is not None:
            value = where_leading(mask, value, other)
            mask = mask | self.record.present[site.address]
        self._keep("present", site.address, mask)
        return value

    def _add(self, log_density: Any, *, given: bool) -> None:
        self.record.log_density = self.record.log_density + log_density
        if given:
            self.record.weight = self.record.weight + log_density

    def _keep(self, where: str, address: Address, value: Any) -> None:
        if self.keep:
            getattr(self.record, where)[address] = value

    # ---- how records cross boundaries

    def inside(self, entered: Any) -> Joint:
        inner = Joint(entered, keep=self.keep, what=self.what, prefix=self.prefix)
        inner.weighed = self.weighed
        return inner

    def effects(self) -> Record:
        return self.record

    def leave(self, effects: Record) -> None:
        mine = self.record
        mine.choices |= effects.choices
        mine.recorded |= effects.recorded
        mine.present |= effects.present
        mine.log_density = mine.log_density + effects.log_density
        mine.weight = mine.weight + effects.weight

    def leave_scan(self, effects: Record, length: int) -> None:
        self.leave(
            dataclasses.replace(
                effects,
                log_density=effects.log_density.sum(0),
                weight=effects.weight.sum(0),
            )
        )

    def join(self, effects: list[Any]) -> list[Callable[[Any], Any]]:
        shapes = {field: {} for field in ("choices", "recorded", "present")}
        for record in effects:
            for field, known in shapes.items():
                known |= getattr(record, field)
        everywhere = set.intersection(*(set(r.choices) for r in effects))

        def complete(record: Record) -> Record:
            full = {f: _filled(getattr(record, f), shapes[f]) for f in ("choices", "recorded")}
            sometimes = (set(shapes["choices"]) - everywhere) | set(shapes["present"])
            present = {
                a: record.present.get(a, jnp.asarray(a in record.choices)) for a in sometimes
            }
            return dataclasses.replace(record, **full, present=present)

        return [complete] * len(effects)

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        raise loop_density(first_site(eqn.params["body_jaxpr"]), self.what)


def _filled(values: Flat, shapes: Flat) -> Flat:
    return {a: values.get(a, jnp.zeros(s.shape, s.dtype)) for a, s in shapes.items()}


def joint(
    staged: Staged,
    given: Flat,
    *,
    what: str,
    keep: bool = True,
    weighed: Collection[Address] | None = None,
    prefix: Address = (),
) -> tuple[Any, Record]:
    """A program's value and record with some choices given, inside the one that is being traced.

    Args:
        what: who asks, for messages.
        keep: whether choices are collected, or the densities alone.
        weighed: the addresses whose densities are the weight, those that are given by default.
        prefix: what to put before the addresses of the choices that stay random.
    """
    handler: Any = Joint(given, keep=keep, what=what, weighed=weighed, prefix=prefix)
    value = staged.rebuild(evaluate(handler, staged.jaxpr, staged.consts))
    return value, handler.record


def simulate(program: Program) -> tuple[Any, Record]:
    """Run a program forward: `(value, record)`.

    Raises:
        CapabilityError: the program observes or weighs, so a forward run is not a draw from it.
        DuplicateAddressError, LoopDensityError: see `choices.layout`.
    """
    staged = stage(program)
    layout(staged.jaxpr)
    weighed = layout(staged.jaxpr, kinds=("observe", "factor"))
    if weighed:
        site = next(iter(weighed.values())).site
        raise CapabilityError(
            "simulate needs a measure that can be sampled; this one is unnormalised.",
            address=site.address,
            where=site.line,
            expected="Sampleable",
            got="Unnormalised: it contains "
            + ("an observation" if site.kind == "observe" else "a factor"),
            fix="m.generate(key, {}) gives a draw with its importance weight; "
            "m.log_density(choices) scores choices from a guide",
        )
    return joint(staged, {}, keep=True, what="simulate")


def log_density(program: Program, choices: Choices) -> jax.Array:
    """Joint log density, a scalar, of all of a program's choices.

    Raises:
        MissingAddressError, UnknownAddressError, AddressMismatchError, ShapeError, SupportError,
        LoopDensityError: see `choices.check`.
    """
    staged, given = _given(program, choices, complete=True, what="log_density")
    return joint(staged, given, keep=False, what="log_density")[1].log_density


def generate(program: Program, choices: Choices) -> tuple[Any, Record]:
    """Run forward with some choices given: `(value, record)`, whose weight is theirs."""
    staged, given = _given(program, choices, complete=False, what="generate")
    return joint(staged, given, keep=True, what="generate")


def edit(program: Program, choices: Choices, handler: type[Given], what: str) -> Any:
    """Evaluate a program under `Condition` or `Do` inside the program that is being traced."""
    staged, given = _given(program, choices, complete=False, what=what)
    return staged.rebuild(evaluate(handler(given), staged.jaxpr, staged.consts))


def rewrite(program: Program, handler: Handler) -> Any:
    """Evaluate a program under any handler inside the program that is being traced."""
    staged = stage(program)
    return staged.rebuild(evaluate(handler, staged.jaxpr, staged.consts))


def detached(program: Program) -> Any:
    """Evaluate a program with no derivative in what it closes over."""
    staged = stage(program)
    consts = [jax.lax.stop_gradient(x) for x in staged.consts]
    return staged.rebuild(evaluate(Edit(), staged.jaxpr, consts))


def not_pathwise(program: Program) -> list[Site]:
    """The choices of a program that are not pathwise by their distribution or estimator."""
    sites = [entry.site for entry in layout(stage(program).jaxpr).values()]
    return [site for site in sites if not _is_pathwise(site)]


def _is_pathwise(site: Site) -> bool:
    if site.estimator is not None:
        return site.estimator.pathwise
    return Law(site, []).has_rsample


def addresses(program: Program) -> dict[Address, Entry]:
    """The layout of a program's choices."""
    return layout(stage(program).jaxpr)


def _given(program: Program, choices: Choices, *, complete: bool, what: str) -> tuple[Staged, Flat]:
    staged = stage(program)
    entries = layout(staged.jaxpr)
    observed = layout(staged.jaxpr, kinds=("observe",))
    return staged, check(flatten(choices), entries, complete=complete, what=what, observed=observed)
