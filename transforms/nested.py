"""Nested measures: one equation for a measure whose density is an estimate.

A measure over some addresses of a program, the others integrated out, has a density that nobody can
compute; nor has what an algorithm such as importance resampling draws from. Both can be estimated
without bias, in one direction or the other (`inference/`):

    simulate:     x ~ p and w with E[1 / w | x] = 1 / p(x)
    log_density:  given x,      w with E[w] = p(x)

The equation holds the jaxpr of the program and that of its proposal, for one lane; its values are
the addresses that are kept. As for a site, a `vmap` adds a lane, so each lane has its own estimate.
Only `simulate`, `log_density` and `generate` estimate; elsewhere the measure is drawn from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, ClassVar, NoReturn, Protocol

import jax
import jax.numpy as jnp

from . import _jax
from .edit import Edit
from .errors import CapabilityError, DifferentiationError, UnhandledSampleError, show_address
from .interpreter import RULES, Handler, evaluate
from .layout import LAYOUTS, Entry
from .site import Address, has_sites
from .staging import Program, Staged, stage

Flat = dict[Address, Any]
_NOTHING = jax.tree.structure(())  # the value of a program of which the choices alone matter


@dataclasses.dataclass(frozen=True)
class Problem:
    """One lane of a nested measure.

    Attributes:
        program: what the measure is made of.
        proposal: from the kept values, a program over the other addresses; None if there is none.
        kept: the measure's addresses.
        prefix: what stands before the addresses of the choices that an algorithm makes.
    """

    program: Staged
    proposal: Callable[[Flat], Staged] | None
    kept: tuple[Address, ...]
    prefix: Address


class How(Protocol):
    """What draws from a nested measure and estimates its density, inside a program.

    Where `exact` is true the density is no estimate but for what its programs estimate themselves.
    """

    exact: ClassVar[bool]

    def simulate(self, problem: Problem) -> tuple[Flat, jax.Array]:
        """A draw and log w with E[1 / w | x] = 1 / p(x)."""
        ...

    def log_density(self, problem: Problem, values: Flat) -> jax.Array:
        """log w with E[w] = p(x)."""
        ...


@dataclasses.dataclass(frozen=True)
class Region:
    """What a nested equation says."""

    how: How
    name: str
    kept: tuple[tuple[Address, Entry], ...]  # of one lane
    seen: tuple[Address, ...]  # what the proposal is a function of
    counts: tuple[int, int]  # operands of the program and of the proposal
    line: str
    prefix: Address = ()
    observed: bool = False  # then the kept values are the last operands
    lanes: tuple[int, ...] = ()  # outermost first
    mapped: tuple[tuple[bool, ...], ...] = ()  # per lane, per operand

    @property
    def addresses(self) -> list[Address]:
        """The kept addresses as the outer program knows them."""
        return [self.prefix + a for a, _ in self.kept]

    def entries(self, scans: tuple[int, ...], loop: bool) -> dict[Address, Entry]:
        """The layout of the kept addresses."""
        found = {}
        for address, (_, entry) in zip(self.addresses, self.kept, strict=True):
            kind = "observe" if self.observed else "draw"
            site = dataclasses.replace(
                entry.site,
                address=address,
                kind=kind,
                lanes=self.lanes + entry.site.lanes,
                line=self.line,
            )
            found[address] = Entry(site, scans + entry.scans, loop)
        return found

    def given(self, values: Flat) -> Flat | None:
        """The kept values among others: all of them, or None where there is none."""
        given = {a: values[a] for a in self.addresses if a in values}
        if given and len(given) < len(self.addresses):
            raise CapabilityError(
                f"{self.name} has a density for all its addresses together.",
                address=next(a for a in self.addresses if a not in given),
                expected=f"all of {', '.join(map(show_address, self.addresses))}, or none",
                got=", ".join(map(show_address, given)),
                where=self.line,
                fix="give the others too, or leave all of them random",
            )
        return given or None

    def inexact(self, headline: str, fix: str | None = None) -> CapabilityError:
        """The error for an estimate in the place of an exact density."""
        return CapabilityError(
            headline,
            address=self.addresses[0],
            expected="Density",
            got="StochasticDensity",
            where=self.line,
            fix=fix,
        )

    def whole(self) -> CapabilityError:
        """The error for an operation on the parts of a density that is one."""
        return CapabilityError(
            f"{self.name} has one density for all its choices, which this needs one by one.",
            address=self.addresses[0],
            expected="choices of the program's own",
            got=", ".join(map(show_address, self.addresses)),
            where=self.line,
            fix="scale or mask log densities in the objective: factor * q.log_density(choices)",
        )

    def again(self, jaxprs: Any, operands: list[Any], **changes: Any) -> list[Any]:
        """Leave the same measure, lanes included, in the program that is being traced now."""
        return nested_p.bind(*operands, region=dataclasses.replace(self, **changes), jaxprs=jaxprs)

    def observe(self, jaxprs: Any, operands: list[Any], values: Flat) -> list[Any]:
        """Leave this measure as an observation of values, which have scans, then lanes in front."""
        moved = []
        for address, (_, entry) in zip(self.addresses, self.kept, strict=True):
            at, n = len(entry.scans), len(self.lanes)
            moved.append(jnp.moveaxis(values[address], range(at, at + n), range(n)))
        mapped = tuple((*m, *(True for _ in moved)) for m in self.mapped)
        return self.again(jaxprs, [*operands, *moved], observed=True, mapped=mapped)

    def structs(self) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each value, scans first, then lanes."""
        return [
            jax.ShapeDtypeStruct(e.scans + self.lanes + e.site.shape, e.site.value.dtype)
            for _, e in self.kept
        ]


nested_p = _jax.Primitive("nested")
nested_p.multiple_results = True


def bind_nested(
    program: Program,
    how: How,
    kept: list[Address],
    entries: dict[Address, Entry],
    *,
    proposal: Callable[[Flat], Program] | None = None,
    seen: Sequence[Address] = (),
    name: str,
    line: str,
) -> Flat:
    """Leave a nested measure in the program that is being traced; the kept values.

    Args:
        program: of which the addresses `kept` are kept; `entries` is its layout.
        proposal: from the values of the addresses `seen`, a program over what is to be drawn.
    """
    staged = stage(program)
    jaxprs, operands = [staged.jaxpr], list(staged.consts)
    if proposal is not None:
        shapes = {
            a: jax.ShapeDtypeStruct(entries[a].shape, entries[a].site.value.dtype) for a in seen
        }
        traced = jax.make_jaxpr(lambda values: _run(proposal(values)))(shapes)
        jaxpr, consts = _jax.opened(traced)
        jaxprs.append(jaxpr)
        operands += consts
    counts = (len(staged.consts), len(operands) - len(staged.consts))
    region = Region(how, name, tuple((a, entries[a]) for a in kept), tuple(seen), counts, line)
    values = nested_p.bind(*operands, region=region, jaxprs=tuple(jaxprs))
    return dict(zip(kept, values, strict=True))


def _run(program: Program) -> list[Any]:
    program()
    return []


def simulate(region: Region, jaxprs: Any, operands: list[Any]) -> tuple[Flat, jax.Array]:
    """Kept values by outer address, scans and lanes in front, and log w, shape `lanes`."""
    return _over_lanes(region, lambda ops: _simulate(region, jaxprs, ops), operands)


def _simulate(region: Region, jaxprs: Any, operands: list[Any]) -> tuple[Flat, jax.Array]:
    values, log_w = region.how.simulate(_problem(region, jaxprs, operands))
    return {region.prefix + a: values[a] for a, _ in region.kept}, log_w


def log_density(region: Region, jaxprs: Any, operands: list[Any], values: Flat) -> jax.Array:
    """log w of values by outer address, shape `lanes`."""

    def one(ops: list[Any], values: Flat) -> tuple[Flat, jax.Array]:
        inner = {a: values[region.prefix + a] for a, _ in region.kept}
        return {}, region.how.log_density(_problem(region, jaxprs, ops), inner)

    return _over_lanes(region, one, operands, values)[1]


def observations(region: Region, operands: list[Any]) -> tuple[Flat, list[Any]]:
    """What an observed nested measure was given, and its other operands."""
    n = sum(region.counts)
    axes = [m[n:] for m in region.mapped]
    values = {}
    for i, (address, (_, entry)) in enumerate(zip(region.addresses, region.kept, strict=True)):
        value, at = operands[n + i], len(entry.scans)
        here = [m[i] for m in axes]
        value = jnp.moveaxis(value, range(sum(here)), range(at, at + sum(here)))
        for lane, mapped in enumerate(here):
            value = value if mapped else jnp.expand_dims(value, at + lane)
        shape = (*entry.scans, *region.lanes, *entry.site.shape)
        values[address] = jnp.broadcast_to(value, shape)
    return values, operands[:n]


def _problem(region: Region, jaxprs: Any, operands: list[Any]) -> Problem:
    """The problem of one lane, its operands without lanes."""
    n, m = region.counts
    kept = tuple(a for a, _ in region.kept)
    program = Staged(jaxprs[0], operands[:n], _NOTHING, [])
    if len(jaxprs) == 1:
        return Problem(program, None, kept, region.prefix)

    def proposal(values: Flat) -> Staged:
        given = jax.tree.leaves({a: values[a] for a in region.seen})
        return Staged(jaxprs[1], [*operands[n : n + m], *given], _NOTHING, [])

    return Problem(program, proposal, kept, region.prefix)


def _over_lanes(region: Region, function: Any, operands: list[Any], values: Any = None) -> Any:
    scans = {region.prefix + a: len(e.scans) for a, e in region.kept}
    given, n = ([] if values is None else [values]), sum(region.counts)
    out_axes = ({} if given else scans, 0)
    for size, mapped in zip(reversed(region.lanes), reversed(region.mapped), strict=True):
        axes = ([0 if m else None for m in mapped[:n]], *[scans for _ in given])
        function = jax.vmap(function, in_axes=axes, out_axes=out_axes, axis_size=size)
    return function(operands[:n], *given)


# ---- what transformations make of it


def _rule(handler: Handler, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    return handler.nested(eqn.params["region"], eqn.params["jaxprs"], values)


RULES[nested_p] = _rule
LAYOUTS[nested_p] = lambda eqn, scans, loop: eqn.params["region"].entries(scans, loop)


class Forward(Edit):
    """Replace nested measures by draws from them."""

    def nested(self, region: Region, jaxprs: Any, values: list[Any]) -> list[Any]:
        if region.observed:
            raise CapabilityError(
                "An observation of a nested measure has no meaning in a draw.",
                address=region.addresses[0],
                where=region.line,
                fix="score the model's measure with log_density or generate",
            )
        drawn, _ = simulate(region, jaxprs, values)
        return list(drawn.values())


def stage_forward(program: Program, forward: Collection[Address] = ()) -> Staged:
    """`stage`, with nested measures replaced by draws from them."""
    staged = stage(program, forward)
    while has_nested(staged.jaxpr):
        old = staged
        staged = stage(lambda old=old: old.rebuild(evaluate(Forward(), old.jaxpr, old.consts)))
    return staged


def first_nested(jaxpr: Any) -> Region | None:
    """A nested measure of a program, at any depth, or None."""
    return next(_nested(jaxpr), None)


def first_estimate(jaxpr: Any) -> Region | None:
    """A nested measure of a program whose density is an estimate, or None."""
    return next((region for region in _nested(jaxpr) if not region.how.exact), None)


def has_nested(jaxpr: Any) -> bool:
    """Whether a program has a nested measure."""
    return first_nested(jaxpr) is not None


def _nested(jaxpr: Any) -> Iterator[Region]:
    jaxpr, _ = _jax.opened(jaxpr)
    if not has_sites(jaxpr):
        return
    for eqn in jaxpr.eqns:
        if eqn.primitive is nested_p:
            yield eqn.params["region"]
        for sub in _jax.subjaxprs(eqn):
            yield from _nested(sub)


# ---- the primitive's own rules


def _abstract(*_: Any, region: Region, jaxprs: Any) -> Any:
    return [_jax.shaped_array(s.shape, s.dtype) for s in region.structs()]


def _batch(size: int, operands: Any, dims: Any, *, region: Region, jaxprs: Any) -> Any:
    operands = [_jax.to_front(x, d) for x, d in zip(operands, dims, strict=True)]
    mapped = tuple(d is not None for d in dims)
    lanes = {"lanes": (size, *region.lanes), "mapped": (mapped, *region.mapped)}
    outs = region.again(jaxprs, operands, **lanes)
    return outs, [len(entry.scans) for _, entry in region.kept]


def _unhandled(*_: Any, region: Region, **__: Any) -> NoReturn:
    raise UnhandledSampleError(
        "A random choice ran outside any transformation, so nothing says how to draw it.",
        address=region.addresses[0],
        where=region.line,
        fix="give randomness with vx.seed(program)(key, ...), or use a measure's "
        "simulate(key), log_density(choices, key), vx.expect or vx.value_and_grad",
    )


def _lower(ctx: Any, *_: Any, region: Region, jaxprs: Any) -> NoReturn:
    _unhandled(region=region)


def _jvp(primals: Any, tangents: Any, *, region: Region, jaxprs: Any) -> NoReturn:
    raise DifferentiationError(
        "JAX's derivative met a random choice: differentiating through a draw needs an estimator.",
        address=region.addresses[0],
        where=region.line,
        fix="use vx.grad or vx.value_and_grad in the place of jax.grad",
    )


_jax.set_rules(nested_p, impl=_unhandled, abstract=_abstract, batch=_batch, jvp=_jvp, lower=_lower)
