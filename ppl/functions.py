"""The transformations as functions of models, measures and plain programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..transforms import derivatives as _derivatives
from ..transforms import expect as _expect
from ..transforms import seed as _seed
from ..transforms.choices import Choices
from ..transforms.signals import learning_signals
from ..transforms.smooth import assume_smooth
from .measure import Measure
from .model import Model
from .trace import Trace


def _function(f: Any) -> Callable[..., Any]:
    if isinstance(f, Measure):
        return f.program
    return f.function if isinstance(f, Model) else f


def seed(f: Callable[..., Any]) -> Callable[..., Any]:
    """`(key, *args) -> f(*args)` with its random choices drawn from `key`.

    Differentiating it gives pathwise derivatives only, and raises `DifferentiationError` where that
    would drop a score term; `vx.grad` is what differentiates an expectation.
    """
    f = _function(f)

    @functools.wraps(f)
    def seeded(key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        return _seed.seed(lambda: f(*args, **kwargs), key)

    return seeded


def expect(f: Callable[..., Any], *, strict: bool = False) -> Callable[..., Any]:
    """`(key, *args) -> unbiased estimate of E[f(*args)]`, itself differentiable by JAX.

    `jax.grad`, `jax.jacobian` and `jax.hessian` of it are unbiased estimates of the expectation's
    derivatives; each random choice is treated by its estimator, and a weight of its meets only the
    part of the value that the choice can influence.

    Args:
        f: a program, or a measure or model.
        strict: refuse estimators that are biased on purpose.

    Raises:
        CapabilityError: f observes or weighs.
        EstimatorError: an estimator cannot serve its site.
        UnsoundEstimatorError: a pathwise choice reaches a discontinuous operation.
        BiasedEstimatorError: `strict` and a site is biased.
    """
    return _expect.expect(_function(f), strict=strict)


def value_and_grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    strict: bool = False,
) -> Callable[..., Any]:
    """Like `jax.value_and_grad`, key first, of the expectation of f: both unbiased.

    `argnums` counts f's own arguments, without the key. Leaves that are not floats (functions in an
    Equinox module) get None. `strict` as in `vx.expect`.
    """
    return _derivatives.value_and_grad(_function(f), argnums, has_aux, strict=strict)


def grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    strict: bool = False,
) -> Callable[..., Any]:
    """Like `jax.grad`, key first, of the expectation of f; see `value_and_grad`."""
    return _derivatives.grad(_function(f), argnums, has_aux, strict=strict)


def simulate(measure: Measure, key: jax.Array | None = None) -> Trace:
    """`measure.simulate(key)`."""
    return measure.simulate(key)


def log_density(measure: Measure, choices: Choices) -> jax.Array:
    """`measure.log_density(choices)`."""
    return measure.log_density(choices)


def generate(
    measure: Measure, key: jax.Array | None, observations: Choices
) -> tuple[Trace, jax.Array]:
    """`measure.generate(key, observations)`."""
    return measure.generate(key, observations)


def condition(measure: Measure, observations: Choices) -> Measure:
    """`measure.condition(observations)`."""
    return measure.condition(observations)


def do(measure: Measure, values: Choices) -> Measure:
    """`measure.do(values)`: an intervention."""
    return measure.do(values)


def replay(measure: Measure, trace: Trace) -> Measure:
    """`measure.replay(trace)`: the measure with the noise of a trace."""
    return measure.replay(trace)
