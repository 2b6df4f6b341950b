"""Posterior prediction: observations drawn anew at draws of the latent choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.source import user_line
from ...transforms import predictive
from ...transforms.choices import Choices, flatten, nest
from ...transforms.errors import CapabilityError, ShapeError, UnknownAddressError, show_address
from ...transforms.seed import seed
from ...transforms.site import Address
from ...transforms.trace import addresses
from ..measure import Measure
from .draws import model_of, over_keys, size_of


def predict(
    result: Any,
    key: jax.Array,
    n: int | None = None,
    measure: Measure | None = None,
    *,
    given: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Posterior predictive draws of a fit's or sampler's model, or of another measure.

    Args:
        result: a `FitResult` or `Draws`.
        key: randomness.
        n: draws, leading axis [n]. Of `Draws`, None takes all, leading axes [chains, draws]; of a
            fit it is 1,000.
        measure: the model by default; or the same at new inputs.
        given: as in `predict_at`.
    """
    measure = model_of(result, "predict") if measure is None else measure
    pick, draw = jax.random.split(key)
    known = getattr(result, "choices", None)
    choices = (
        known if n is None and known is not None else result.sample(pick, 1000 if n is None else n)
    )
    return predict_at(measure, choices, draw, given)


def predict_at(
    measure: Measure, choices: Choices, key: jax.Array, given: Iterable[str] | None = None
) -> dict[str, Any]:
    """Draws of what a measure observes, and of what is not given, at draws of its latent choices.

    Args:
        measure: the model, its observations to be drawn anew; or at new inputs. A masked entry is
            a constant where it is absent, a scaled measure draws as the unscaled one does, and a
            factor is left out.
        choices: draws of the latent choices; leading axes [...] in front of their own shapes.
        key: randomness.
        given: the addresses of the choices to carry over, all by default. A nested model's name
            stands for all of its addresses. The others are drawn anew, such as the effects of
            groups that were not seen.

    Returns:
        What was drawn, by address, leading axes [...]. No observation is among the conditions.

    Raises:
        UnknownAddressError, ShapeError: a choice that is given does not fit the measure.
        CapabilityError: nothing is left to draw.
    """
    measure = require_measure(measure, "predict")
    fresh = Measure(lambda: predictive.redrawn(measure.program), f"predictive({measure.name})")
    latent = _carried(choices, given)
    some = next(iter(flatten(choices).values()), np.zeros(1))
    lead = leading_axes(fresh, latent) if latent else jnp.shape(some)[:1]
    if not addresses(fresh.program).keys() - latent.keys():
        raise CapabilityError(
            f"There is nothing to predict: {measure.name} observes nothing.",
            expected="an observation, vx.sample(..., obs=...) or m.condition({...}), or an address "
            "that the fit does not have",
            got=f"latent choices {', '.join(map(show_address, latent))} alone",
            where=user_line(),
            fix="give the model that was fitted with its data, or at new inputs without them",
        )

    def one(key: jax.Array, latent: Any) -> Any:
        trace = seed(lambda: fresh.generate(None, latent)[0], key)
        return nest({a: x for a, x in flatten(trace.choices).items() if a not in known})

    known = latent.keys()
    return over_draws(one, fresh, nest(latent), lead, key)


def log_likelihood(measure: Measure, choices: Choices, key: jax.Array) -> dict[str, Any]:
    """Log density of each element of each observation, at draws of the latent choices.

    A masked element counts 0; scaling, which is no part of an observation's law, is left out.

    Returns:
        By address, [..., scans, lanes, batch]: a value's event axes are summed over.
    """
    measure = require_measure(measure, "log_likelihood")
    scored = Measure(lambda: predictive.pointwise(measure.program), f"pointwise({measure.name})")
    observed = predictive.observed(measure.program)
    latent = flatten(choices)

    def one(key: jax.Array, latent: Any) -> Any:
        recorded = flatten(seed(lambda: scored.generate(None, latent)[0], key).recorded)
        return nest({a: x for a, x in recorded.items() if a in observed})

    return over_draws(one, measure, nest(latent), leading_axes(measure, latent), key)


def observed_values(measure: Measure) -> dict[str, Any]:
    """The data of a measure, by address."""
    observed = predictive.observed(measure.program)
    trace = jax.jit(lambda key: measure.generate(key, {})[0].recorded)(jax.random.key(0))
    return nest({a: x for a, x in flatten(trace).items() if a in observed})


# ---- what these share


def require_measure(measure: Any, who: str) -> Measure:
    """Raise unless this is a measure."""
    if isinstance(measure, Measure):
        return measure
    raise CapabilityError(
        f"{who} needs a measure.",
        expected="a model called with its arguments",
        got=repr(measure),
        where=user_line(),
        fix="call the model: result.predict(key, n, model(new_x))",
    )


def over_draws(
    one: Callable[..., Any], measure: Measure, choices: Any, lead: tuple[int, ...], key: jax.Array
) -> Any:
    """`one(key, choices)` at each of the draws, whose leading axes are `lead`."""
    n = int(np.prod(lead, dtype=int))
    axes = len(lead)
    flat = jax.tree.map(lambda x: jnp.reshape(x, (n, *jnp.shape(x)[axes:])), choices)
    found = over_keys(one, key, n, size_of(measure), flat)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)


def leading_axes(measure: Measure, latent: Mapping[Address, Any]) -> tuple[int, ...]:
    """The axes of draws in front of the shapes that choices have in a measure.

    Raises:
        UnknownAddressError, ShapeError: an address or a shape that is not the measure's.
    """
    entries = addresses(measure.program)
    found = set()
    for address, value in latent.items():
        if address not in entries:
            raise UnknownAddressError(
                f"{measure.name} has not an address that was fitted.",
                address=address,
                expected=f"some of {{{', '.join(map(show_address, entries))}}}",
                got=f"{{{', '.join(map(show_address, latent))}}}",
                where=user_line(),
                fix="name those to carry over: given=(...)",
            )
        shape, own = jnp.shape(value), entries[address].shape
        cut = len(shape) - len(own)
        if cut < 0 or shape[cut:] != own:
            raise ShapeError(
                "Draws of a choice have not its shape.",
                address=address,
                expected=f"draws, then shape {own} in {measure.name}",
                got=f"shape {shape}",
                where=entries[address].site.line,
                fix="leave it out with given=(...): it is then drawn anew",
            )
        found.add(shape[:cut])
    if len(found) > 1:
        raise ShapeError(
            "The draws of the choices differ in number.",
            expected="the same leading axes at every address",
            got=", ".join(map(str, sorted(found))),
            where=user_line(),
        )
    return next(iter(found), ())


def _carried(choices: Choices, given: Iterable[str] | None) -> dict[Address, Any]:
    flat = flatten(choices)
    if given is None:
        return flat
    asked = [tuple(a.split("/")) for a in ([given] if isinstance(given, str) else given)]
    for address in asked:
        if not any(a[: len(address)] == address for a in flat):
            raise UnknownAddressError(
                "There are no draws of an address that is to be carried over.",
                address=address,
                expected=f"some of {{{', '.join(map(show_address, flat))}}}",
                where=user_line(),
            )
    return {a: x for a, x in flat.items() if any(a[: len(b)] == b for b in asked)}
