"""`vx.reparameterize`: centred, non-centred and partially centred choices.

    theta ~ D(loc, scale)     becomes     theta_raw ~ D(c loc, scale^c)
                                          theta = loc + scale^(1 - c) (theta_raw - c loc)

The data decide which c is good. Where they say little about theta, theta_raw at c = 0 is nearly
independent of loc and scale a posteriori; where they determine theta, theta itself (c = 1) is.
Papaspiliopoulos, Roberts and Skoeld 2007; Gorinova, Moore and Hoffman 2020 (c learned).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from ..transforms import reparameterize as _transform
from ..transforms._jax import is_traced
from ..transforms.choices import flatten
from ..transforms.errors import CapabilityError, ReparameterizationError, show_address
from .measure import Measure
from .model import Model
from .parameterization import Parameterization, measured

NAMES = {"centred": 1.0, "noncentred": 0.0}


class Reparameterized(Measure):
    """A measure with some choices recentred.

    Attributes:
        choices: what was measured, where the centrings were chosen by measurement.
    """

    choices: Parameterization | None = None


@overload
def reparameterize(
    model: Measure, centring: Mapping[str, Any] | str, *, key: jax.Array | None = None
) -> Reparameterized: ...


@overload
def reparameterize(model: Model, centring: Mapping[str, Any]) -> Model: ...


def reparameterize(model: Any, centring: Any, *, key: jax.Array | None = None) -> Any:
    """The same law in other coordinates.

        vx.reparameterize(model(data), {"theta": "noncentred"})          # or 0.0
        vx.reparameterize(model(data), {"theta": jax.nn.sigmoid(phi)})    # learned with a guide
        vx.reparameterize(model(data), "measure", key=key).choices        # chosen, and why

    The choice is then at `theta_raw`; `theta` is a recorded value: `trace["theta"]`. Evidence and
    posterior stay as they are.

    Args:
        model: a measure; or a model, then a model is returned.
        centring: by address (`"theta"`, `"outer/theta"` or nested dicts) `"centred"`,
            `"noncentred"` or c in [0, 1], an array over the choice's elements too. The choices
            are normal, Student t, Cauchy, Laplace, logistic, Gumbel, multivariate normal, or
            transforms of these such as log-normal. Or `"measure"`: for each of these choices whose
            parameters depend on others, centred or non-centred is what gives a Gaussian the higher
            ELBO, one choice after the other.
        key: of the measurement.

    Raises:
        ReparameterizationError: the choice is of another family or an observation, or its density
            is raised to a power; a centring is no number in [0, 1]; `"measure"` without a key.
        UnknownAddressError, ShapeError: no such choice, or not a shape of its elements.
        CapabilityError: `model` is neither a measure nor a model; for `"measure"`, it has choices
            that are not continuous.
    """
    if not isinstance(model, (Measure, Model)):
        raise CapabilityError(
            "reparameterize: this is not a model.",
            expected="a model, or a measure: a model called with its arguments",
            got=repr(model),
            where=user_line(),
        )
    if isinstance(centring, str):
        return _by_measurement(model, centring, key)
    given = _numbers(centring)
    if isinstance(model, Measure):
        return _recentred(model, given)

    @functools.wraps(model.function)
    def function(*args: Any, **kwargs: Any) -> Any:
        return _recentred(model(*args, **kwargs), given).program()

    return Model(function)


def _recentred(measure: Measure, given: Mapping[tuple[str, ...], Any]) -> Reparameterized:
    def program() -> Any:
        return _transform.reparameterize(measure.program, given)

    original = None if measure.original is measure else _recentred(measure.original, given)
    return Reparameterized(program, f"reparameterized({measure.name})", original)


def _by_measurement(model: Any, asked: str, key: jax.Array | None) -> Reparameterized:
    if asked != "measure" or key is None or not isinstance(model, Measure):
        raise ReparameterizationError(
            "reparameterize: a measurement needs a model's measure and a key.",
            expected='vx.reparameterize(model(data), "measure", key=key), or a dict by address',
            got=f"{model!r}, {asked!r}, key={'None' if key is None else 'given'}",
            where=user_line(),
        )
    found = measured(model, _recentred, key)
    measure = _recentred(model, _numbers(found.centring))
    measure.choices = found
    return measure


def _numbers(centring: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Centrings by address, numbers where they are known."""
    given = {}
    for names, c in flatten(centring).items():
        address = tuple(part for name in names for part in name.split("/"))
        given[address] = _number(address, NAMES.get(c, c) if isinstance(c, str) else c)
    return given


def _number(address: tuple[str, ...], c: Any) -> Any:
    if is_traced(c):
        return c
    try:
        known = np.asarray(c, float)
        inside = bool(((known >= 0) & (known <= 1)).all())
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise ReparameterizationError(
            "reparameterize: this is no centring.",
            address=show_address(address),
            expected='"centred", "noncentred", or numbers from 0 (non-centred) to 1 (centred)',
            got=repr(c),
            where=user_line(),
        )
    return float(known) if known.ndim == 0 else jnp.asarray(known, float)
