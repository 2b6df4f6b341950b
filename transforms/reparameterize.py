"""Centring: a location-scale choice as a function of another one that is easier to infer.

The choice `theta` becomes a recorded value, and the raw value that it is computed from (see
`centring.py`) a choice at `theta_raw`.

law:  the joint law of all other choices, of theta and of the data, and so the evidence, stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .centring import FAMILIES, SHOWN, Centring, family, split
from .choices import Flat, Given, mismatch
from .errors import ReparameterizationError, ShapeError
from .interpreter import evaluate
from .law import Law
from .layout import Entry, layout
from .measures import Masked, Scaled, innermost
from .nested import nested_p
from .site import (
    Address,
    Site,
    bind_site,
    has_sites,
    held_with,
    make_site,
    rebind,
    site_p,
    unpack,
)
from .staging import Program, Staged, stage

SUFFIX = "_raw"


class Recentre(Given):
    """Draw the raw choice of each given address, and record its value.

    Args:
        given: centring by address, an array over scans, lanes and batch.
        fixed: centring of addresses for which it is a Python number.
    """

    def __init__(self, given: Flat, fixed: Mapping[Address, float]):
        super().__init__(given)
        self.fixed = fixed

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.address in self.given:
            return _recentred(site, operands, self.given[site.address])
        if site.address in self.fixed:
            return _recentred(site, operands, self.fixed[site.address])
        return rebind(site, operands)

    def nested(self, region: Any, jaxprs: Any, values: list[Any]) -> list[Any]:
        return region.again(jaxprs, values)

    def inside(self, entered: Any) -> Recentre:
        return Recentre(entered, self.fixed)

    def inside_while(self, carried: Any) -> Recentre:
        return self.inside(carried)


def reparameterize(program: Program, centring: Mapping[Address, Centring]) -> Any:
    """Evaluate a program with some choices recentred inside the program that is being traced.

    Raises:
        UnknownAddressError: the program has no such choice.
        ReparameterizationError: the choice is an observation, one of another family, one of several
            branches or of a nested measure, or its density is raised to a power.
        ShapeError: a centring has not the shape of its choice's elements.
    """
    staged = stage(program)
    entries = _require(staged, centring)
    fixed = {a: c for a, c in centring.items() if isinstance(c, (int, float))}
    given = {a: _fitted(entries[a], c) for a, c in centring.items() if a not in fixed}
    return staged.rebuild(evaluate(Recentre(given, fixed), staged.jaxpr, staged.consts))


def candidates(staged: Staged) -> list[Address]:
    """The choices of a program that can be recentred, in program order."""
    return [a for a, e in layout(staged.jaxpr).items() if _problem(staged, a, e) is None]


def raw(address: Address) -> Address:
    """Where the raw choice is."""
    return (*address[:-1], address[-1] + SUFFIX)


# ---- one site


def _recentred(site: Site, operands: list[Any], centring: Any) -> Any:
    """The value of a site, computed from its raw choice."""
    with_own = isinstance(centring, jax.Array)  # of each lane

    def lane(operands: list[Any], centring: Any) -> Any:
        measure, _ = unpack(site, operands)
        batch = tuple(innermost(measure).batch_shape)
        simpler, place = split(measure, centring, batch)
        extras = operands[len(operands) - site.extras :]
        estimator = held_with(site.estimator, extras) if site.estimator else None
        new, arrays = make_site(raw(site.address), "draw", simpler, estimator=estimator)
        new = dataclasses.replace(new, line=site.line, branches=site.branches)
        return place(bind_site(new, arrays)).astype(site.value.dtype)

    for size, mapped in zip(reversed(site.lanes), reversed(site.mapped), strict=True):
        axes = ([0 if m else None for m in mapped], 0 if with_own else None)
        lane = jax.vmap(lane, in_axes=axes, axis_size=size)
    record, arrays = make_site(site.address, "record", None, lane(operands, centring))
    return rebind(record, arrays, line=site.line)


# ---- what can be recentred


def _require(staged: Staged, centring: Mapping[Address, Any]) -> dict[Address, Entry]:
    entries = layout(staged.jaxpr)
    observed = layout(staged.jaxpr, kinds=("observe",))
    for address in centring:
        if address in observed:
            raise ReparameterizationError(
                "reparameterize: an observation has no other parameterisation.",
                address=address,
                where=observed[address].site.line,
                fix="leave it out",
            )
        if address not in entries:
            raise mismatch([], [address], entries, centring, "reparameterize", complete=False)
        if (problem := _problem(staged, address, entries[address])) is not None:
            got, fix = problem
            raise ReparameterizationError(
                "reparameterize: this choice has no centring.",
                address=address,
                expected=f"a choice of {SHOWN}",
                got=got,
                where=entries[address].site.line,
                fix=fix,
            )
    return entries


def _problem(staged: Staged, address: Address, entry: Entry) -> tuple[str, str | None] | None:
    """Why a choice cannot be recentred and what to do, or None."""
    sites = [site for site in _own_draws(staged.jaxpr) if site.address == address]
    if not sites:
        return "a choice of a nested measure", "reparameterize the model that the measure is of"
    if len(sites) > 1 and any(site.branches for site in sites):
        return "a choice that several branches share", "give the branches addresses of their own"
    for measure in (Law(site, []).template for site in sites):
        if _is_scaled(measure):
            fix = "reparameterize first, vx.scaled(vx.reparameterize(model, ...), factor)"
            return "a density raised to a power", fix
        if type(family(measure)) not in FAMILIES:
            return type(family(measure)).__name__, "write it as a function of a simpler choice"
    return None


def _own_draws(region: Any) -> Iterator[Site]:
    """The random choices of a region but for those of nested measures."""
    for eqn in _jax.opened(region)[0].eqns:
        if eqn.primitive is site_p and eqn.params["site"].kind == "draw":
            yield eqn.params["site"]
        elif eqn.primitive is not nested_p:
            for sub in filter(has_sites, _jax.subjaxprs(eqn)):
                yield from _own_draws(sub)


def _is_scaled(measure: Any) -> bool:
    return isinstance(measure, Scaled) or (isinstance(measure, Masked) and _is_scaled(measure.base))


def _fitted(entry: Entry, centring: Any) -> jax.Array:
    """A centring for every element: scans, lanes, batch."""
    shape = entry.scans + Law(entry.site, []).elements
    try:
        return jnp.broadcast_to(jnp.asarray(centring), shape)
    except ValueError:
        raise ShapeError(
            "A centring has not the shape of its choice.",
            address=entry.site.address,
            expected=f"a number, or a shape that broadcasts to {shape}",
            got=f"shape {jnp.shape(centring)}",
            where=entry.site.line,
        ) from None
