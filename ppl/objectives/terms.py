"""The ELBO's two terms, E_q[log p(x | z)] and KL(q(z) || p(z)), the second in closed form.

    KL(q || p) = sum_a E_q[KL(q(z_a | earlier) || p(z_a | parents))]

over the addresses a, in the guide's order. This holds at an address where p's parents were drawn
earlier in the guide than z_a is; there a known divergence takes the place of log q - log p at the
draw (Kingma and Welling 2014).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions.kl import kl_divergence

from ...kernels.source import user_line
from ...transforms import _jax
from ...transforms.choices import Choices, Flat, check, flatten, nest
from ...transforms.errors import ClosedFormError
from ...transforms.interpreter import evaluate
from ...transforms.layout import layout
from ...transforms.measures import Masked, Scaled, log_prob, single
from ...transforms.site import Address, Site, unpack
from ...transforms.staging import Staged, stage
from ...transforms.trace import Joint
from ..measure import Measure
from .weights import explained


class ElboTerms(NamedTuple):
    """Estimates of E_q[log p(x | z)] and KL(q(z) || p(z)): scalars, in nats."""

    log_likelihood: jax.Array
    kl: jax.Array


def elbo_terms(
    p: Measure, q: Measure, data: Choices, *, analytic_kl: bool = False, exact: bool = False
) -> ElboTerms:
    """E_q[log p(x | z)] and KL(q(z) || p(z)), whose difference is the ELBO.

    The likelihood is what data, observations and factors contribute to p's density.

    Args:
        p, q, data: as for `elbo`.
        analytic_kl: whether an address's share of the divergence is taken in closed form. There
            must be one in NumPyro for its two distributions; p's distribution there may depend on
            choices that the guide makes earlier, but on no other; the address may not be inside a
            jit, scan or cond, nor masked, and is scaled by scalars only. Other addresses
            contribute log q - log p at the draw.
        exact: refuse if there are such other addresses.

    Raises:
        GuideMismatchError: q's addresses and data are not together p's, each once.
        ClosedFormError: `exact`, and an address has no closed form.
    """
    guide = _drawn(q)
    z = nest(guide.record.choices)
    with explained(p, z, data):
        model = _scored(*_checked(p, {**z, **data}), weighed=flatten(data))
    analytic = _closed_forms(p, {**z, **data}, guide, model) if analytic_kl or exact else {}
    drawn = [a for a in guide.record.choices if a not in analytic]
    if exact and drawn:
        raise ClosedFormError(
            "The divergence of guide and prior is needed exactly, and has no closed form here.",
            address=drawn[0],
            expected="distributions with a KL divergence in NumPyro, the prior's parents drawn "
            "earlier in the guide",
            got="an estimate, log q - log p at a draw",
            where=user_line(),
            fix="objectives.beta_elbo, which is linear in the divergence",
        )
    kl = guide.rest - model.rest
    kl += sum(part.log_density for a, part in guide.parts.items() if a not in analytic)
    kl -= sum(part.log_density for a, part in model.parts.items() if a not in analytic)
    return ElboTerms(model.record.weight, kl + sum(analytic.values()))


@dataclasses.dataclass
class _Part:
    site: Site
    operands: list[Any]
    value: jax.Array  # lanes in front
    log_density: jax.Array


class _Apart(Joint):
    """Draws or scores choices, with the densities of single latent sites set apart.

    Those in a jit, scan or cond, and estimated densities, are added up in the record as usual.
    """

    def __init__(self, given: Flat, *, keep: bool, weighed: Collection[Address] = ()):
        super().__init__(given, keep=keep, what="log_density", weighed=weighed)
        self.parts: dict[Address, _Part] = {}
        self.apart: list[jax.Array] | None = None  # takes the density of the site at hand

    def site(self, site: Site, operands: list[Any]) -> Any:
        plain = site.kind == "draw" and not site.branches and site.address not in self.weighed
        self.apart = [] if plain else None
        value = super().site(site, operands)
        if self.apart:
            self.parts[site.address] = _Part(site, operands, value, *self.apart)
        self.apart = None
        return value

    def _add(self, log_density: Any, *, given: bool) -> None:
        if self.apart is None:
            super()._add(log_density, given=given)
        else:
            self.apart.append(log_density)

    @property
    def rest(self) -> Any:
        """Log density of the latent choices that are not in `parts`."""
        return self.record.log_density - self.record.weight


def _drawn(q: Measure) -> _Apart:
    """A guide run forward, in the program that is being traced."""
    staged = stage(q.program)
    if layout(staged.jaxpr, kinds=("observe", "factor")):
        q.simulate()  # its error
    handler = _Apart({}, keep=True)
    evaluate(handler, staged.jaxpr, staged.consts)
    return handler


def _scored(staged: Staged, given: Flat, weighed: Collection[Address] = ()) -> _Apart:
    """A model at given choices."""
    handler = _Apart(given, keep=False, weighed=weighed)
    evaluate(handler, staged.jaxpr, staged.consts)
    return handler


def _checked(m: Measure, choices: Choices) -> tuple[Staged, Flat]:
    staged = stage(m.program)
    observed = layout(staged.jaxpr, kinds=("observe",))
    entries = layout(staged.jaxpr)
    given = check(flatten(choices), entries, complete=True, what="log_density", observed=observed)
    return staged, given


def _closed_forms(
    p: Measure, choices: Choices, guide: _Apart, model: _Apart
) -> dict[Address, jax.Array]:
    """Address -> KL(q_a || p_a), where the divergence is known and takes z_a's place."""
    order = list(guide.record.choices)  # in which the guide draws
    data = model.given.keys() - order
    parents = _parents(p, choices, list(model.parts))
    found = {}
    for address in guide.parts.keys() & model.parts.keys():
        if parents[address] <= {*order[: order.index(address)], *data}:
            kl = _divergence(guide.parts[address], model.parts[address])
            found |= {} if kl is None else {address: kl}
    return found


def _parents(p: Measure, choices: Choices, of: list[Address]) -> dict[Address, set[Address]]:
    """The choices that the distributions of p at some addresses depend on."""
    staged, given = _checked(p, choices)

    def operands(values: list[jax.Array]) -> list[list[Any]]:
        parts = _scored(staged, dict(zip(given, values, strict=True))).parts
        return [parts[a].operands for a in of]

    closed, shape = jax.make_jaxpr(operands, return_shape=True)(list(given.values()))
    needed = (set(_named(given, n)) for _, n in _jax.outputs_apart(closed))
    return {a: set().union(*(next(needed) for _ in ops)) for a, ops in zip(of, shape, strict=True)}


def _named(given: Flat, needed: list[bool]) -> list[Address]:
    return [a for a, n in zip(given, needed, strict=True) if n]


def _divergence(q: _Part, p: _Part) -> jax.Array | None:
    """KL(q_a || p_a) summed over lanes, or None where it has no closed form."""
    if q.site.lanes != p.site.lanes:
        return None

    def lane(q_operands: list[Any], p_operands: list[Any], value: jax.Array) -> jax.Array:
        return _kl(unpack(q.site, q_operands)[0], unpack(p.site, p_operands)[0], value)

    over_lanes: Callable[..., Any] = lane
    for size, *mapped in zip(
        reversed(q.site.lanes), reversed(q.site.mapped), reversed(p.site.mapped), strict=True
    ):
        axes = [[0 if m else None for m in ms] for ms in mapped]
        over_lanes = jax.vmap(over_lanes, in_axes=(*axes, 0), axis_size=size)
    try:
        return over_lanes(q.operands, p.operands, q.value).sum()
    except NotImplementedError:
        return None


def _kl(q: Any, p: Any, value: jax.Array) -> jax.Array:
    """KL(q || p); of q to the power b and p to the power a, E_q[b log q - a log p]."""
    scaled = isinstance(p, Scaled) or isinstance(q, Scaled)
    (p, a), (q, b) = _unscaled(p), _unscaled(q)
    one, other = single(q), single(p)
    if one.event_shape != other.event_shape:
        raise NotImplementedError
    elements = value.shape[: value.ndim - len(one.event_shape)]
    kl = jnp.broadcast_to(kl_divergence(one, other), elements).sum()
    return a * kl + (b - a) * log_prob(q, value).sum() if scaled else kl


def _unscaled(measure: Any) -> tuple[Any, Any]:
    """A distribution and the power that it is raised to, a scalar."""
    factor: Any = 1.0
    while isinstance(measure, Scaled) and jnp.shape(measure.factor) == ():
        measure, factor = measure.base, factor * measure.factor
    if isinstance(measure, (Scaled, Masked)):
        raise NotImplementedError
    return measure, factor
