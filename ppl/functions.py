"""The transformations as functions of models, measures and plain programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..transforms import check as _check
from ..transforms import derivatives as _derivatives
from ..transforms import direction as _direction
from ..transforms import expect as _expect
from ..transforms import seed as _seed
from ..transforms import strategies
from ..transforms import tune as _tune
from ..transforms.choices import Choices
from ..transforms.declared import declare_biased as declare_biased
from ..transforms.nested import stage_forward
from ..transforms.signals import learning_signals as learning_signals
from ..transforms.smooth import assume_smooth as assume_smooth
from .measure import Measure
from .model import Model
from .trace import Trace


def _function(f: Any) -> Callable[..., Any]:
    if isinstance(f, Measure):
        return f.program
    return f.function if isinstance(f, Model) else f


def bound(f: Callable[..., Any], *args: Any) -> str:
    """Where `E[f(*args)]` lies by the estimated densities (`vx.marginal`, `vx.normalize`) in it.

    Returns:
        "exact" (there are none), "unbiased", "lower bound" or "upper bound" of the same expectation
        with exact densities, or "unknown" (they enter with both signs, or otherwise than through
        sums, products and log-sum-exp).
    """
    return _direction.direction(stage_forward(lambda: _function(f)(*args))).direction


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


def expect(
    f: Callable[..., Any],
    *,
    using: strategies.Strategy | None = None,
    strict: bool = False,
    estimators: _expect.Estimators | None = None,
) -> Callable[..., Any]:
    """`(key, *args) -> unbiased estimate of E[f(*args)]`, itself differentiable by JAX.

    `jax.grad`, `jax.jacobian` and `jax.hessian` of it are unbiased estimates of the expectation's
    derivatives; each random choice is treated by its estimator, and a weight of its meets only the
    part of the value that the choice can influence.

    Args:
        f: a program, or a measure or model.
        using: how the expectation is taken, one of `varax.strategies`: the mean of n runs,
            antithetic or quasi-Monte Carlo runs, quadrature, sigma points, enumeration.
        strict: refuse estimators that are biased on purpose.
        estimators: by address (`"z"`, `"local/z"`), in the place of those that f asks for.

    Raises:
        CapabilityError: f observes or weighs.
        EstimatorError: an estimator cannot serve its site.
        UnsoundEstimatorError: a pathwise choice reaches a discontinuous operation.
        BiasedEstimatorError: `strict` and a site is biased.
    """
    return _expect.expect(_function(f), using=using, strict=strict, estimators=estimators)


def value_and_grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    using: strategies.Strategy | None = None,
    strict: bool = False,
    estimators: _expect.Estimators | None = None,
) -> Callable[..., Any]:
    """Like `jax.value_and_grad`, key first, of the expectation of f: both unbiased.

    `argnums` counts f's own arguments, without the key. Leaves that are not floats (functions in an
    Equinox module) get None. `using`, `strict` and `estimators` as in `vx.expect`.
    """
    return _derivatives.value_and_grad(
        _function(f), argnums, has_aux, using=using, strict=strict, estimators=estimators
    )


def grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    using: strategies.Strategy | None = None,
    strict: bool = False,
    estimators: _expect.Estimators | None = None,
) -> Callable[..., Any]:
    """Like `jax.grad`, key first, of the expectation of f; see `value_and_grad`."""
    return _derivatives.grad(
        _function(f), argnums, has_aux, using=using, strict=strict, estimators=estimators
    )


def check(
    f: Callable[..., Any],
    *args: Any,
    key: jax.Array | None = None,
    draws: int = 256,
    strict: bool = False,
    estimators: _expect.Estimators | None = None,
) -> _check.Report:
    """What the gradient of E[f(*args)] rests on, site by site: prints as a table.

    For each random choice: its estimator, why it is sound, which part of the objective it answers
    for, how many times the program runs on for it, and its share of the gradient's variance, over
    `draws` estimates of the gradient in the floats of `args`.

    Raises: what `vx.expect` raises.
    """
    f = _function(f)
    return _check.check(f, *args, key=key, draws=draws, strict=strict, estimators=estimators)


def tune_estimators(
    objective: Callable[..., Any],
    params: Any,
    key: jax.Array,
    budget: float = 60.0,
    *,
    draws: int = 512,
) -> _tune.Tuning:
    """Measure variance x time of the sound estimators of every site, and choose.

        tuning = vx.tune_estimators(elbo, params, key, budget=30)
        result = vx.fit(elbo, params, optimizer, steps, key, estimators=tuning.estimators)

    Args:
        objective: `objective(params)`, a program with a scalar value.
        params: where to measure.
        key: of the draws, the same for every candidate.
        budget: seconds. The default assignment is always measured.
        draws: gradients to a measurement.

    Returns:
        `Tuning`: the best estimators by address, and the table of what was measured.

    Raises:
        BudgetError: the budget is not positive.
    """
    return _tune.tune_estimators(_function(objective), params, key, budget, draws=draws)


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
