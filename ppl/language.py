"""What a program says: sample, factor, deterministic, scaled, masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from ..transforms.choices import as_value, check_support
from ..transforms.edit import Mask, Nest, Scale
from ..transforms.errors import CapabilityError, EstimatorError, ShapeError, VaraxError
from ..transforms.estimators import Estimator
from ..transforms.law import Law
from ..transforms.measures import Masked, Scaled, innermost
from ..transforms.site import bind_site, make_site, value_shape
from ..transforms.trace import rewrite
from .measure import Measure


def sample(address: str, measure: Any, obs: Any = None, estimator: Estimator | None = None) -> Any:
    """A random choice, or with `obs` an observation.

    Args:
        address: name, unique in the program.
        measure: a distribution, or the measure of another model, whose addresses are nested under
            this one and whose value is returned.
        obs: the observed value, of exactly the measure's shape; for a model's measure, choices to
            condition it on.
        estimator: how `vx.expect` and `vx.grad` treat the choice (default: see `vx.estimators`).

    Returns:
        The value; under `jax.vmap` and `jax.lax.scan` that of one lane and one step.

    Raises:
        ShapeError: `obs` fits only by broadcasting, or not at all.
        SupportError: a concrete `obs` is outside the support.
        EstimatorError: the estimator cannot serve the distribution.
        CapabilityError: `measure` is not a measure.
    """
    path = _address(address)
    if estimator is not None and not isinstance(estimator, Estimator):
        raise EstimatorError(
            "This is not an estimator.",
            address=path,
            expected="an instance, such as varax.estimators.Score()",
            got=repr(estimator),
            where=user_line(),
        )
    if isinstance(measure, Measure):
        if estimator is not None:
            raise EstimatorError(
                "An estimator belongs to one random choice; a nested model has its own.",
                address=path,
                where=user_line(),
                fix=f"set estimator= inside {measure.name}",
            )
        inner = measure if obs is None else measure.condition(obs)
        return rewrite(inner.program, Nest(path))
    _require_measure(path, measure)
    if obs is None:
        site, operands = make_site(path, "draw", measure, estimator=estimator)
        if estimator is not None:
            estimator.serve(Law(site, operands))
        return bind_site(site, operands)
    return bind_site(*make_site(path, "observe", measure, _observed(path, measure, obs)))


def factor(address: str, log_weight: Any) -> None:
    """Multiply the program's density by `exp(log_weight)`, a scalar."""
    path = _address(address)
    if jnp.shape(log_weight) != ():
        raise ShapeError(
            "A factor's log weight is a scalar.",
            address=path,
            expected="shape ()",
            got=f"shape {jnp.shape(log_weight)}",
            where=user_line(),
            fix="sum it",
        )
    bind_site(*make_site(path, "factor", None, jnp.asarray(log_weight, float)))


def deterministic(address: str, value: Any) -> Any:
    """Record an array under an address, for `trace[address]`; returns it."""
    return bind_site(*make_site(_address(address), "record", None, jnp.asarray(value)))


def scaled(measure: Any, factor: Any) -> Any:
    """The measure with its density raised to a power.

    For minibatches (`factor = N / B`) and tempering. Draws are those of the measure itself.

    Args:
        measure: a distribution (`factor` broadcasts to its batch shape) or a model's measure.
        factor: the power.
    """
    _require_fit("factor", factor, measure)
    if isinstance(measure, Measure):
        return Measure(lambda: rewrite(measure.program, Scale(factor)), f"scaled({measure.name})")
    return Scaled(measure, factor)


def masked(measure: Any, mask: Any) -> Any:
    """The measure where `mask` is true; absent, with density 1, where it is false.

    For missing data, ragged data and models of changing dimension. Where it is absent a draw is a
    constant inside the support, and neither value nor parameters there have any influence.

    Args:
        measure: a distribution, or a model's measure.
        mask: bool, of the distribution's batch shape or broadcastable to it; a scalar for a model.
    """
    _require_fit("mask", mask, measure)
    if not jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
        raise ShapeError(
            "A mask is boolean.",
            expected="dtype bool",
            got=f"dtype {jnp.result_type(mask)}",
            where=user_line(),
            fix="compare: mask > 0; to raise a density to a power use vx.scaled",
        )
    mask = jnp.asarray(mask, bool)
    if isinstance(measure, Measure):
        return Measure(lambda: rewrite(measure.program, Mask(mask)), f"masked({measure.name})")
    return Masked(measure, mask)


def _address(address: Any) -> tuple[str]:
    if not isinstance(address, str) or not address or "/" in address:
        raise VaraxError(
            "An address is a name.",
            expected="a non-empty string without a slash (which stands for nesting)",
            got=repr(address),
            where=user_line(),
            fix="the address comes first: vx.sample('z', distribution)",
        )
    return (address,)


def _require_fit(what: str, array: Any, measure: Any) -> None:
    """A mask or a factor may not enlarge its measure."""
    if not isinstance(measure, Measure):
        _require_measure((what,), measure)
    batch = tuple(getattr(innermost(measure), "batch_shape", ()))
    try:
        fits = jnp.broadcast_shapes(jnp.shape(array), batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"A {what} does not fit its measure.",
            expected=f"a shape that broadcasts to the batch shape {batch}",
            got=f"shape {jnp.shape(array)}",
            where=user_line(),
            fix=f"expand the distribution, or draw under jax.vmap with one {what} per lane",
        )


def _require_measure(path: tuple[str, ...], measure: Any) -> None:
    methods = hasattr(measure, "sample") and hasattr(measure, "log_prob")
    if isinstance(measure, type) or not methods:
        raise CapabilityError(
            "This is not a measure.",
            address=path,
            expected="a distribution (varax.dist) or a model called with its arguments",
            got=repr(measure),
            where=user_line(),
            fix="call the model: vx.sample('local', local_model(theta))",
        )


def _observed(path: tuple[str, ...], measure: Any, obs: Any) -> jax.Array:
    if isinstance(obs, Mapping):
        raise CapabilityError(
            "A distribution has one value; choices were given.",
            address=path,
            expected="an array",
            got=f"a dict with {list(obs)}",
            where=user_line(),
        )
    needs = value_shape(measure)
    if jnp.shape(obs) != needs.shape:
        raise ShapeError(
            "An observation has not the shape of its distribution.",
            address=path,
            expected=f"shape {needs.shape} of {type(measure).__name__}",
            got=f"shape {jnp.shape(obs)}",
            where=user_line(),
            fix="give the distribution the data's shape, or use jax.vmap over the data; if one "
            "value is meant for all, jnp.broadcast_to(obs, shape)",
        )
    value = as_value(obs, needs.dtype)
    check_support(path, measure, value, user_line())
    return value
