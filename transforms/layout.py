"""The layout of a program's addresses: which array belongs to each.

Scan lengths come first, then lanes, then the value of one lane. It is read off the jaxpr, so a
mistake in choices is found before any arithmetic, and the error can list both sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from . import _jax
from .errors import DuplicateAddressError, ShapeError
from .site import Address, Site, site_p


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


LAYOUTS: dict[Any, Callable[..., dict[Address, Entry]]] = {}  # of other primitives that draw


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
        new = layout_of(eqn, scans, loop)
        for address in found.keys() & new.keys():
            one, two = found[address].site, new[address].site
            if one.kind != "draw" or not one.excludes(two):
                _duplicate(address, two, one)
            _require_alike(address, found[address], new[address])
        found |= new
    return found


def layout_of(
    eqn: _jax.JaxprEqn, scans: tuple[int, ...] = (), loop: bool = False
) -> dict[Address, Entry]:
    """The addresses in one equation; `scans` and `loop` say what is around it."""
    if eqn.primitive is site_p:
        site = eqn.params["site"]
        return {site.address: Entry(site, scans, loop)}
    if (known := LAYOUTS.get(eqn.primitive)) is not None:
        return known(eqn, scans, loop)
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
            _require_alike(address, one, two)
        merged |= part
    return merged


def _require_alike(address: Address, one: Entry, two: Entry) -> None:
    if one.what != two.what:
        raise ShapeError(
            "Two branches use one address for values of different kind, shape or dtype.",
            address=address,
            expected=f"{one.what}, as at {one.site.line}",
            got=two.what,
            where=two.site.line,
            fix="give the branches addresses of their own",
        )


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
