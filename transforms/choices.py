"""Choices: nested dicts from addresses to arrays, checked against the program they are given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd

from ..kernels.source import user_line
from . import _jax
from .errors import (
    AddressError,
    AddressMismatchError,
    LoopDensityError,
    MissingAddressError,
    ShapeError,
    SupportError,
    UnknownAddressError,
    show_address,
)
from .interpreter import Handler
from .law import Law
from .layout import Entry, layout_of
from .measures import fill, innermost
from .site import Address, Site, over_lanes, unpack

Choices = Mapping[str, Any]  # address -> array, or nested choices
Flat = dict[Address, Any]


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
    flat: Flat,
    entries: Mapping[Address, Entry],
    *,
    complete: bool,
    what: str,
    observed: Mapping[Address, Entry] | None = None,
) -> dict[Address, jax.Array]:
    """The given values as arrays of the program's dtypes.

    Args:
        flat: values by address.
        entries: the program's layout.
        complete: whether every address must be given.
        what: who asks, for messages.
        observed: the program's observations, for messages.

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
        seen = [a for a in unknown if a in (observed or {})]
        if seen and observed:
            raise UnknownAddressError(
                f"{what}: {show_address(seen[0])} is an observation of the program.",
                address=seen[0],
                expected=_set(entries),
                got=_set(flat),
                where=observed[seen[0]].site.line,
                fix="leave it out, or remove obs= from the model and give the value here",
            )
        raise mismatch(missing, unknown, entries, flat, what, complete=complete)
    return {a: _fitted(a, flat[a], entries[a]) for a in entries if a in flat}


def mismatch(
    missing: Any, unknown: Any, entries: Any, flat: Any, what: str, *, complete: bool
) -> Exception:
    """The error of choices that are missing and choices that the program does not have."""
    kind = MissingAddressError if not unknown else UnknownAddressError
    kind = AddressMismatchError if missing and unknown else kind
    known = {show_address(a).lower(): show_address(a) for a in entries}
    near = [
        f"{show_address(u)} is near {known[m[0]]}"
        for u in unknown
        if (m := difflib.get_close_matches(show_address(u).lower(), known, 1))
    ]
    if any("/" in name for address in unknown for name in address):
        near = ['nested addresses are nested dicts: {"outer": {"inner": value}}']
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
        or (
            "give exactly the program's unobserved addresses: choices | {address: value} adds "
            "one, m.condition(...) fixes some and leaves the others random"
            if complete
            else "give some of the program's unobserved addresses"
        ),
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
    """An array of the site's dtype; floats for integers (data often are) only if all are whole."""
    if not _jax.is_traced(value):
        with jax.ensure_compile_time_eval():  # what is known stays known, under jit too
            value = jnp.asarray(value)
    loses = jnp.issubdtype(value.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.integer)
    if loses and (_jax.is_traced(value) or not _is_whole(value, dtype)):
        return value
    return value if value.dtype == dtype else _cast(value, dtype)


def _is_whole(value: Any, dtype: Any) -> bool:
    known, limits = np.asarray(value), np.iinfo(dtype)
    inside = (known >= limits.min) & (known < limits.max)  # NaN is not
    return bool(inside.all() and (known == np.floor(known)).all())


def _cast(value: Any, dtype: Any) -> jax.Array:
    if _jax.is_traced(value):
        return value.astype(dtype)
    with jax.ensure_compile_time_eval():
        return value.astype(dtype)


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
    """Raise SupportError where a concrete value is outside a support that is known by now.

    And where the value of a categorical distribution, an index, is a float that is not known.
    """
    if _jax.is_traced(value) and _is_float(value) and _is_categorical(measure):
        raise SupportError(
            "The value of a categorical distribution is an index, and floats were given.",
            address=address,
            expected="integers",
            got=f"{value.dtype}",
            where=line,
            fix="give the data as integers, data.astype(int), or here: obs=x.astype(int)",
        )
    support = getattr(innermost(measure), "support", None)
    if support is None or innermost(measure) is not measure:
        return
    if any(_jax.is_traced(x) for x in jax.tree.leaves((value, support))):
        return
    with jax.ensure_compile_time_eval():
        inside = np.asarray(support(np.asarray(value)))  # NumPy compiles nothing
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


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


def _is_categorical(measure: Any) -> bool:
    while (base := getattr(measure, "base_dist", getattr(measure, "base", None))) is not None:
        measure = base
    return isinstance(measure, (npd.CategoricalProbs, npd.CategoricalLogits))


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
        if Law(site, operands).has_mask:
            return over_lanes(site, lambda m, _, v: fill(m, v), operands, value)
        return value

    def _of(self, eqn: _jax.JaxprEqn) -> Flat:
        inside = layout_of(eqn)
        return {a: self.given[a] for a in inside if a in self.given}
