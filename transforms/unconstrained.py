"""A program's choices as points of R^D: x = T(u), one bijection for each choice, by its support.

    log p(T(u)) + log |det dT/du|

is the log density of u. A support may depend on the choices before it (`Uniform(0, x)`), so both
directions walk through the program. Bijections are NumPyro's `biject_to(support)`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to

from .choices import Flat
from .errors import CapabilityError, LoopDensityError
from .interpreter import evaluate
from .law import Law
from .layout import Entry, layout
from .measures import innermost, is_discrete
from .nested import Region, first_nested
from .site import Address, Site, over_lanes, with_lanes
from .staging import Staged
from .trace import Joint, Record


class Point(NamedTuple):
    """A point of R^D and what a program makes of it.

    Attributes:
        values: the choices x = T(u), by address.
        log_density: log p(x), observations and factors included.
        log_det: log |det dT/du|.
        record: of the program's run.
    """

    values: Flat
    log_density: jax.Array
    log_det: jax.Array
    record: Record


@dataclasses.dataclass(frozen=True)
class Space:
    """The unconstrained space of a program.

    Attributes:
        staged: the program.
        entries: its layout.
        shapes: of each choice's u: scans, lanes, then what the bijection makes of one value.
    """

    staged: Staged
    entries: dict[Address, Entry]
    shapes: dict[Address, tuple[int, ...]]

    @staticmethod
    def of(staged: Staged, who: str) -> Space:
        """The space of a program's unobserved choices.

        Raises:
            CapabilityError: a choice is discrete, masked, or its density is an estimate.
            LoopDensityError: a choice in a while loop.
        """
        if (region := first_nested(staged.jaxpr)) is not None:
            raise _not_its_own(region, who)
        entries = layout(staged.jaxpr)
        for entry in entries.values():
            _require_continuous(entry, who)
        values = {a: jax.ShapeDtypeStruct(e.shape, e.site.value.dtype) for a, e in entries.items()}
        record = jax.eval_shape(lambda x: _run(_Unconstrain(x, who), staged), values)
        for address in record.present:
            raise _sometimes(entries[address].site, who)
        return Space(staged, entries, {a: record.choices[a].shape for a in entries})

    @property
    def size(self) -> int:
        """D."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def at(self, u: Flat) -> Point:
        """The program at u, by address."""
        record = _run(_Constrain(u), self.staged)
        values = {a: record.choices[a] for a in self.entries}
        return Point(values, record.log_density, record.weight, record)

    def factors(self, u: Flat) -> Flat:
        """The log weights of the program's factors, by address."""
        return _run(_Factors(u), self.staged).recorded

    def inverse(self, values: Flat) -> tuple[Flat, jax.Array]:
        """u of the choices, and log |det dT/du| there."""
        record = _run(_Unconstrain(values), self.staged)
        return {a: record.choices[a] for a in self.entries}, record.weight

    def ravel(self, u: Flat) -> jax.Array:
        """All u in one vector, in program order."""
        parts = [jnp.ravel(u[a]) for a in self.shapes]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)

    def unravel(self, vector: jax.Array) -> Flat:
        """The inverse of `ravel`."""
        found, at = {}, 0
        for address, shape in self.shapes.items():
            size = math.prod(shape)
            found[address] = vector[at : at + size].reshape(shape)
            at += size
        return found


def _run(handler: Any, staged: Staged) -> Record:
    evaluate(handler, staged.jaxpr, staged.consts)
    return handler.record


class _Constrain(Joint):
    """Choices are given as u; the weight is log |det dT/du|."""

    def __init__(self, given: Flat, who: str = "potential"):
        super().__init__(given, what=who)

    def _value(self, site: Site, operands: list[Any]) -> Any:
        value = self._through(site, operands, _forward)
        return value.astype(site.value.dtype)

    def _through(self, site: Site, operands: list[Any], direction: Any) -> Any:
        try:
            out, log_det = over_lanes(site, direction, operands, self.given[site.address])
        except NotImplementedError as error:
            law = Law(site, [])
            raise _no_space(
                site,
                self.what,
                f"a {law.name}, whose support no bijection of NumPyro's covers",
                "numpyro.distributions.biject_to.register(its constraint) adds one",
            ) from error
        self.record.weight = self.record.weight + log_det.sum()
        return out

    def _is_forward(self, site: Site) -> bool:
        return False

    def _add(self, log_density: Any, *, given: bool) -> None:
        self.record.log_density = self.record.log_density + log_density

    def inside(self, entered: Any) -> Joint:
        return type(self)(entered, self.what)


class _Unconstrain(_Constrain):
    """Choices are given as x; the record keeps u."""

    def _value(self, site: Site, operands: list[Any]) -> Any:
        value = self.value_of(site, operands)
        self._u = self._through(site, operands, _backward)
        return value

    def _keep(self, where: str, address: Address, value: Any) -> None:
        super()._keep(where, address, self._u if where == "choices" else value)


class _Factors(_Constrain):
    """The record keeps log weights in the place of recorded values."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        value = super().site(site, operands)
        if site.kind == "factor":
            super()._keep("recorded", site.address, with_lanes(site, operands))
        return value

    def _keep(self, where: str, address: Address, value: Any) -> None:
        if where != "recorded":
            super()._keep(where, address, value)


def _forward(measure: Any, _: Any, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    bijection = biject_to(innermost(measure).support)
    value = bijection(u)
    return value, jnp.sum(bijection.log_abs_det_jacobian(u, value))


def _backward(measure: Any, _: Any, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    bijection = biject_to(innermost(measure).support)
    u = bijection._inverse(value)
    return u, jnp.sum(bijection.log_abs_det_jacobian(u, value))


def _require_continuous(entry: Entry, who: str) -> None:
    site = entry.site
    if entry.loop:
        raise LoopDensityError(
            f"{who}: a while_loop that samples has no fixed set of choices.",
            address=site.address,
            where=site.line,
            fix="use jax.lax.scan over the largest number of steps",
        )
    law = Law(site, [])
    if is_discrete(law.template):
        raise _no_space(
            site,
            who,
            "a discrete choice",
            "sum it out inside the model (a mixture distribution, or vx.factor with "
            "jax.nn.logsumexp over its values), or fit a guide for it with vx.fit",
        )
    if law.has_mask:
        raise _sometimes(site, who)


def _not_its_own(region: Region, who: str) -> CapabilityError:
    if not region.how.exact:
        return region.inexact(f"{who} needs an exact density; that of {region.name} is not.")
    return CapabilityError(
        f"{who} needs choices that the program makes itself.",
        address=region.addresses[0],
        expected="vx.sample of distributions and models",
        got=f"a choice of {region.name}",
        where=region.line,
        fix="sample its noise in the model and compute the value from it",
    )


def _sometimes(site: Site, who: str) -> CapabilityError:
    got = "a choice that may be absent (masked, or in a branch)"
    return _no_space(site, who, got, "draw it outside the mask or branch, and use it inside")


def _no_space(site: Site, who: str, got: str, fix: str) -> CapabilityError:
    return CapabilityError(
        f"{who} needs choices that a smooth bijection maps to R^n.",
        address=site.address,
        expected="continuous choices, always present, with an exact density",
        got=got,
        where=site.line,
        fix=fix,
    )
