"""Centred or non-centred, by measurement: which one lets a Gaussian come nearer the posterior.

The evidence is that of the model whatever the parameterisation, so a higher ELBO is a smaller
divergence of the best mean-field Gaussian from the posterior, on the unconstrained space. Choices
are taken one after the other in the program's order, the earlier ones as they were decided. The
measure that Gorinova, Moore and Hoffman 2020 optimise; here it is compared at the two ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from ..transforms import reparameterize as _transform
from ..transforms.axis_rules import Along
from ..transforms.dependence import Analysis, bits
from ..transforms.errors import NonFiniteError, show_address
from ..transforms.law import Law
from ..transforms.site import Address, Site
from ..transforms.staging import stage
from ..transforms.trace import joint
from .fit import fit
from .functions import expect
from .guides import autoguide
from .measure import Measure

STEPS, LEARNING_RATE = 1000, 0.05  # of each fit
DRAWS = 8  # a step
REPEATS = 128  # of DRAWS draws, for an ELBO
CLEARLY = 2.0  # standard errors by which an ELBO is to be higher


@dataclasses.dataclass(frozen=True)
class Row:
    """One choice.

    Attributes:
        address: of the choice.
        centred, noncentred: ELBOs in nats, with the choices above as they were decided.
        error: standard error of their difference.
    """

    address: str
    centred: float
    noncentred: float
    error: float

    @property
    def noncentred_is_better(self) -> bool:
        """By more than two standard errors."""
        return self.noncentred - self.centred > CLEARLY * self.error


@dataclasses.dataclass(frozen=True)
class Parameterization:
    """What was measured; prints as a table.

    Attributes:
        rows: one for each choice whose law depends on others.
    """

    rows: tuple[Row, ...]

    @property
    def centring(self) -> dict[str, str]:
        """The choices to recentre, as `vx.reparameterize` takes them."""
        return {row.address: "noncentred" for row in self.rows if row.noncentred_is_better}

    def __repr__(self) -> str:
        if not self.rows:
            return "no location-scale choice depends on another choice"
        width = max(len("choice"), *(len(row.address) for row in self.rows))
        lines = [f"{'choice':{width}}  {'centred':>10}  {'noncentred':>10}  {'+/-':>6}  chosen"]
        for row in self.rows:
            chosen = "noncentred" if row.noncentred_is_better else "centred"
            numbers = f"{row.centred:10.2f}  {row.noncentred:10.2f}  {row.error:6.2f}"
            lines.append(f"{row.address:{width}}  {numbers}  {chosen}")
        return "\n".join(lines)


Recentred = Callable[[Measure, Mapping[Address, Any]], Measure]


def measured(measure: Measure, recentred: Recentred, key: jax.Array) -> Parameterization:
    """Decide every choice whose law depends on other choices.

    Raises:
        CapabilityError: a choice of the measure is discrete, or may be absent.
        InitialisationError: nowhere is the density finite.
    """
    measure.potential()  # refuses what has none
    decided: dict[Address, float] = {}
    now: np.ndarray | None = None
    rows = []
    for address in dependent(measure):
        if now is None:
            now = _elbo(measure, key)
        other = _elbo(recentred(measure, decided | {address: 0.0}), key)
        error = float(np.hypot(_standard_error(now), _standard_error(other)))
        row = Row(show_address(address), float(now.mean()), float(other.mean()), error)
        rows.append(row)
        if row.noncentred_is_better:
            decided[address], now = 0.0, other
    return Parameterization(tuple(rows))


def _elbo(measure: Measure, key: jax.Array) -> np.ndarray:
    """The ELBO of a mean-field fit, by new draws, [REPEATS]; -inf where the fit fails."""
    search, training, evaluation = jax.random.split(key, 3)
    guide = autoguide(measure, "mean_field", key=search, draws=DRAWS)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))
    try:
        params = fit(
            guide.elbo, guide.init(search), optimizer, STEPS, training, progress=False
        ).params
    except NonFiniteError:
        return np.full(REPEATS, -np.inf)
    keys = jax.random.split(evaluation, REPEATS)
    found = jax.jit(jax.vmap(lambda key: expect(guide.elbo)(key, params)))(keys)
    return np.nan_to_num(np.asarray(found, float), nan=-np.inf)


def _standard_error(terms: np.ndarray) -> float:
    return float(terms.std(ddof=1)) / len(terms) ** 0.5 if np.isfinite(terms).all() else 0.0


def dependent(measure: Measure) -> list[Address]:
    """The choices that can be recentred and whose location or scale depends on other choices."""
    found = _transform.candidates(stage(measure.program))

    def values() -> dict[Address, Any]:
        program = stage(
            lambda: _transform.reparameterize(measure.program, dict.fromkeys(found, 0.0))
        )
        recorded = joint(program, {}, what="reparameterize")[1].recorded
        return {a: recorded[a] for a in found}

    def elements(site: Site) -> tuple[int, ...]:
        return Law(site, []).elements

    values_of = Analysis(elements).footprint(stage(values).jaxpr)
    dependent = set()
    for address, dep in zip(sorted(found), values_of.outs, strict=True):
        for number in (n for n in bits(dep.sources) if n >= values_of.inputs):
            n = number - values_of.inputs
            own = tuple(Along(axis) for axis in range(len(values_of.shapes[n])))
            same = values_of.sites[n].address == _transform.raw(address)
            if not same or dep.axes(number, len(own)) != own:  # another choice, or another step
                dependent.add(address)
    return [a for a in found if a in dependent]
