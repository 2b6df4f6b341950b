"""What posterior prediction asks of a program: observations drawn anew, and their log densities.

    redrawn(program)     the program with a draw at the address of every observation, no factors
    pointwise(program)   the program that records the log density of every observation
    supported(program)   the program with density zero outside the supports of its choices, where
                         a distribution's own formula goes on
    observed(program)    the layout of the observations

The first three are programs again, so `generate` runs them with the latent choices given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from . import nested
from .edit import Edit
from .errors import show_address
from .interpreter import evaluate
from .law import Law, log_probs
from .layout import Entry, layout
from .measures import innermost
from .nested import Region, observations
from .site import (
    ARRAY,
    Address,
    Site,
    bind_site,
    make_site,
    over_lanes,
    rebind,
    unpack,
    value_shape,
    with_lanes,
)
from .staging import Program, stage


class Redraw(Edit):
    """Draw what was observed; a factor, which has no value to draw, is left out."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind == "factor":
            return operands[-1]
        if site.kind != "observe":
            return rebind(site, operands)
        inner = [x[(0,) * sum(m)] for x, m in zip(operands, _by_operand(site), strict=True)]
        measure, _ = unpack(site, inner)
        drawn = dataclasses.replace(
            site,
            kind="draw",
            tree=jax.tree.structure((jax.tree.unflatten(site.tree, site.statics)[0], None)),
            statics=site.statics[:-1],
            mapped=tuple(m[:-1] for m in site.mapped),
            value=value_shape(measure),
        )
        value = bind_site(drawn, operands[:-1])
        return value.astype(site.value.dtype)  # integers may have been observed as floats

    def nested(self, region: Region, jaxprs: Any, values: list[Any]) -> list[Any]:
        if not region.observed:
            return region.again(jaxprs, values)
        n = sum(region.counts)
        mapped = tuple(m[:n] for m in region.mapped)
        return region.again(jaxprs, values[:n], observed=False, mapped=mapped)


class Pointwise(Edit):
    """Record, at its address, the log density of each element of an observation: lanes, batch.

    An observed nested measure has one log density a lane, at the first of its addresses.
    """

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind != "observe":
            return rebind(site, operands)
        value = with_lanes(site, operands)
        _record(site.address, log_probs(site, operands, value))
        return value

    def nested(self, region: Region, jaxprs: Any, values: list[Any]) -> list[Any]:
        if not region.observed:
            return region.again(jaxprs, values)
        given, operands = observations(region, values)
        _record(region.addresses[0], nested.log_density(region, jaxprs, operands, given))
        return list(given.values())


class Supported(Edit):
    """A factor after each random choice: zero where the value is outside the support.

    For supports that are a matter of each number alone: whether a simplex sums to one, or a matrix
    is symmetric, is a question of rounding.
    """

    def site(self, site: Site, operands: list[Any]) -> Any:
        value = rebind(site, operands)
        if site.kind == "draw" and _is_elementwise(innermost(Law(site, operands).template)):
            bare, own = site.bare(operands)
            inside = over_lanes(bare, lambda m, _, v: innermost(m).support(v), own, value)
            log_weight = jnp.where(jnp.all(inside), 0.0, -jnp.inf)
            address = (f"support of {show_address(site.address)}",)
            bind_site(*make_site(address, "factor", None, log_weight))
        return value


def redrawn(program: Program) -> Any:
    """Evaluate a program with its observations drawn, inside the one that is being traced."""
    return _rewritten(program, Redraw())


def pointwise(program: Program) -> Any:
    """Evaluate a program that records the log densities of its observations."""
    return _rewritten(program, Pointwise())


def supported(program: Program) -> Any:
    """Evaluate a program whose density is zero outside the supports of its choices."""
    return _rewritten(program, Supported())


def observed(program: Program) -> dict[Address, Entry]:
    """The layout of a program's observations."""
    return layout(stage(program).jaxpr, kinds=("observe",))


def _rewritten(program: Program, handler: Edit) -> Any:
    staged = stage(program)
    return staged.rebuild(evaluate(handler, staged.jaxpr, staged.consts))


def _record(address: Address, value: jax.Array) -> None:
    bind_site(*make_site(address, "record", None, jnp.asarray(value, float)))


def _is_elementwise(measure: Any) -> bool:
    """Whether a support is known, and a matter of each number alone."""
    support = getattr(measure, "support", None)
    support = getattr(support, "base_constraint", support)
    return getattr(support, "event_dim", None) == 0


def _by_operand(site: Site) -> list[tuple[bool, ...]]:
    """Per operand, whether each lane maps it."""
    count = sum(s is ARRAY for s in site.statics)
    return list(zip(*site.mapped, strict=True)) or [()] * count
