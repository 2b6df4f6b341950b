"""Choices: nested dicts from addresses to arrays, their layout in a program, and values given.

A *layout* says of every address which array belongs to it: scan lengths in front, then lanes, then
the value of one lane. It is read off the jaxpr, so a mistake in choices is found before any
arithmetic, and the error can list both sets.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _jax
from .errors import (
    AddressError,
    AddressMismatchError,
    DuplicateAddressError,
    LoopDensityError,
    MissingAddressError,
    ShapeError,
    SupportError,
    UnknownAddressError,
    show_address,
)
from .interpreter import Handler
from .measures import innermost
from .site import Address, Site, site_p, unpack
from .source import user_line

Choices = Mapping[str, Any]  # address -> array, or nested choices
Flat = dict[Address, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One address of a program."""

    site: Site
    scans: tuple[int, ...]  # lengths of the scans around it, outermost first
    loop: bool = False  # inside a while loop

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scans + self.site.shape

    @property
    def what(self) -> str:
        """Kind, shape and dtype."""
        return f"{self.site.kind} of {self.site.value.dtype}{list(self.shape)}"


def layout(jaxpr: Any, *, kinds: Iterable[str] = ("draw",)) -> dict[Address, Entry]:
    """Every address of a program, in program order.

    Raises:
        DuplicateAddressError: two sites that can both run share an address, or one address is
            the beginning of another.
    """
    found = _layout(jaxpr, (), False)
    for address, entry in found.items():
        for n in range(1, len(address)):
            if address[:n] in found:
                _duplicate(address[:n], entry.site, found[address[:n]].site)
    return {a: entry for a, entry in found.items() if entry.site.kind in kinds}


def _layout(jaxpr: Any, scans: tuple[int, ...], loop: bool) -> dict[Address, Entry]:
    found: dict[Address, Entry] = {}
    for eqn in _jax.opened(jaxpr)[0].eqns:
        new = _layout_of(eqn, scans, loop)
        for address in found.keys() & new.keys():
            _duplicate(address, new[address].site, found[address].site)
        found |= new
    return found


def _layout_of(eqn: _jax.JaxprEqn, scans: tuple[int, ...], loop: bool) -> dict[Address, Entry]:
    if eqn.primitive is site_p:
        site = eqn.params["site"]
        return {site.address: Entry(site, scans, loop)}
    inner = (*scans, eqn.params["length"]) if eqn.primitive is _jax.scan_p else scans
    loop = loop or eqn.primitive is _jax.while_p
    parts = [_layout(sub, inner, loop) for sub in _jax.subjaxprs(eqn)]
    return _merge(parts, may_share=eqn.primitive is _jax.cond_p)


def _merge(parts: list[dict[Address, Entry]], *, may_share: bool) -> dict[Address, Entry]:
    merged: dict[Address, Entry] = {}
    for part in parts:
        for address in merged.keys() & part.keys():
            one, two = merged[address], part[address]
            if not may_share:
                _duplicate(address, two.site, one.site)
            if one.what != two.what:
                raise ShapeError(
                    "Two branches use one address for values of different kind, shape or dtype.",
                    address=address,
                    expected=f"{one.what}, as at {one.site.line}",
                    got=two.what,
                    where=two.site.line,
                    fix="give the branches addresses of their own",
                )
        merged |= part
    return merged


def _duplicate(address: Address, again: Site, first: Site) -> None:
    raise DuplicateAddressError(
        "Two random choices of one program share an address.",
        address=address,
        expected="every address once",
        got=f"a second one; the first is at {first.line}",
        where=again.line,
        fix="rename one, nest one with vx.sample(name, model(...)), or make them one choice "
        "under jax.vmap or jax.lax.scan",
    )


def flatten(choices: Choices, prefix: Address = ()) -> Flat:
    """Nested choices as `{("a", "b"): value}`."""
    if not isinstance(choices, Mapping):
        raise AddressError(
            "Choices are a dict from addresses to values.",
            expected='{"z": value}, nested for nested models',
            got=type(choices).__name__,
            where=user_line(),
            fix="of a trace, pass trace.choices",
        )
    flat: Flat = {}
    for name, value in choices.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, (*prefix, name))
        else:
            flat[(*prefix, name)] = value
    return flat


def nest(flat: Flat) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for address, value in flat.items():
        at = nested
        for name in address[:-1]:
            at = at.setdefault(name, {})
        at[address[-1]] = value
    return nested


def check(
    flat: Flat, entries: Mapping[Address, Entry], *, complete: bool, what: str
) -> dict[Address, jax.Array]:
    """The given values as arrays of the program's dtypes.

    Args:
        flat: values by address.
        entries: the program's layout.
        complete: whether every address must be given.
        what: who asks, for messages.

    Raises:
        MissingAddressError, UnknownAddressError, AddressMismatchError: by name, both sets listed.
        ShapeError: a shape that is not the address's, also where it would broadcast.
        LoopDensityError: an address inside a while loop.
    """
    for address, entry in entries.items():
        if entry.loop and (complete or address in flat):
            raise loop_density(entry.site, what)
    missing = [a for a in entries if a not in flat] if complete else []
    unknown = [a for a in flat if a not in entries]
    if missing or unknown:
        raise _mismatch(missing, unknown, entries, flat, what)
    return {a: _fitted(a, flat[a], entries[a]) for a in entries if a in flat}


def _mismatch(missing: Any, unknown: Any, entries: Any, flat: Any, what: str) -> Exception:
    kind = MissingAddressError if not unknown else UnknownAddressError
    kind = AddressMismatchError if missing and unknown else kind
    near = [
        f"{show_address(u)} is near {m[0]}"
        for u in unknown
        if (m := difflib.get_close_matches(show_address(u), map(show_address, entries), 1))
    ]
    says = [f"missing {_set(missing)}"] if missing else []
    says += [f"unknown {_set(unknown)}"] if unknown else []
    lines = [entries[a].site.line for a in missing] or [e.site.line for e in entries.values()]
    return kind(
        f"{what}: {' and '.join(says)}.",
        address=(missing or unknown)[0],
        expected=_set(entries),
        got=_set(flat),
        where=lines[0] if lines else None,
        fix="; ".join(near)
        or "give exactly the program's unobserved addresses: choices | {address: value} adds "
        "one, m.condition(...) fixes some and leaves the others random",
    )


def _set(addresses: Iterable[Address]) -> str:
    return "{" + ", ".join(show_address(a) for a in addresses) + "}"


def _fitted(address: Address, value: Any, entry: Entry) -> jax.Array:
    if jnp.shape(value) != entry.shape:
        raise ShapeError(
            "A value has not the shape of its random choice.",
            address=address,
            expected=f"shape {entry.shape} {_axes(entry)}",
            got=f"shape {jnp.shape(value)}",
            where=entry.site.line,
            fix="pass the full array (jnp.broadcast_to(value, shape) if repetition is meant)",
        )
    return as_value(value, entry.site.value.dtype)


def as_value(value: Any, dtype: Any) -> jax.Array:
    """An array; integers become floats where the site is continuous. Never floats integers."""
    if not _jax.is_traced(value):
        with jax.ensure_compile_time_eval():  # what is known stays known, under jit too
            value = jnp.asarray(value)
    wants_float = jnp.issubdtype(dtype, jnp.floating)
    is_float = jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(dtype) if wants_float and not is_float else value


def _axes(entry: Entry) -> str:
    parts = [f"scan {n}" for n in entry.scans] + [f"lane {n}" for n in entry.site.lanes]
    return f"({', '.join(parts)}, then {entry.site.value.shape})" if parts else ""


def loop_density(site: Site, what: str) -> LoopDensityError:
    """The error for choices in a while loop."""
    return LoopDensityError(
        f"{what}: a while_loop that samples has no fixed set of choices.",
        address=site.address,
        where=site.line,
        expected="a number of steps known while tracing",
        got="jax.lax.while_loop, or a fori_loop with a traced bound",
        fix="use jax.lax.scan over the largest number of steps with vx.masked(distribution, "
        "still_running); to run the loop forward only, use vx.seed",
    )


def check_support(address: Address, measure: Any, value: Any, line: str) -> None:
    """Raise SupportError where a concrete value is outside a support that is known by now."""
    support = getattr(innermost(measure), "support", None)
    if support is None or innermost(measure) is not measure:
        return
    if any(_jax.is_traced(x) for x in jax.tree.leaves((value, support))):
        return
    with jax.ensure_compile_time_eval():
        inside = np.asarray(support(jnp.asarray(value)))
    if not inside.all():
        outside = np.asarray(value)[~np.broadcast_to(inside, np.shape(value))].ravel()
        raise SupportError(
            "A value lies outside the support of its distribution.",
            address=address,
            expected=f"{support} of {type(measure).__name__}",
            got=f"{outside[:3].tolist()}{' ...' if outside.size > 3 else ''}",
            where=line,
            fix="correct the data, mask missing entries with vx.masked(distribution, mask), or "
            "choose a distribution with this support",
        )


class Given(Handler):
    """A handler that holds values by address and hands each region its own."""

    def __init__(self, given: Flat):
        self.given = given

    def enter(self, eqn: _jax.JaxprEqn) -> Any:
        return self._of(eqn)

    def enter_scan(self, eqn: _jax.JaxprEqn, length: int) -> Any:
        return self._of(eqn)

    def inside(self, entered: Any) -> Given:
        return type(self)(entered)

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        return self._of(eqn)

    def inside_while(self, carried: Any) -> Given:
        return type(self)(carried)

    def next_while(self, carried: Any, step: Handler) -> Any:
        return carried

    def leave_while(self, carried: Any) -> None:
        pass

    def value_of(self, site: Site, operands: list[Any]) -> Any:
        """The value given for a site, checked against its support where both are known."""
        value = self.given[site.address]
        if not site.lanes:
            check_support(site.address, unpack(site, operands)[0], value, site.line)
        return value

    def _of(self, eqn: _jax.JaxprEqn) -> Flat:
        inside = _layout_of(eqn, (), False)
        return {a: self.given[a] for a in inside if a in self.given}
