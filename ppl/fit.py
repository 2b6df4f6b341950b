"""`vx.fit`: the common training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..transforms.errors import StepError
from ..transforms.expect import Estimators
from ..transforms.source import user_line
from ..transforms.strategies import Strategy
from .batches import Batches
from .gradient_step import GradientStep
from .loop import Loop
from .result import FitResult
from .steps import InferenceStep


def fit(
    objective: Callable[..., Any] | InferenceStep,
    params: Any,
    optimizer: Any = None,
    steps: int | None = None,
    key: jax.Array | None = None,
    *,
    data: Any = None,
    batch_size: int | None = None,
    maximize: bool = True,
    progress: bool = True,
    using: Strategy | None = None,
    estimators: Estimators | None = None,
    strict: bool = False,
) -> FitResult:
    """Repeat an inference step: by default, a stochastic gradient of an objective's expectation.

    Args:
        objective: `objective(params)`, or `objective(params, batch)` with data; a program whose
            value is a scalar, or one scalar for each parameter group (see `vx.GradientStep`). A
            bound such as the ELBO is maximised. An argument named `step` receives the step's
            number. Or an inference step: `vx.GradientStep`, `vx.schedule`, or any `InferenceStep`;
            then there is no `optimizer`.
        params: any pytree. Floating-point leaves are trained; the others (an Equinox module's
            functions) stay as they are.
        optimizer: an optax gradient transformation.
        steps: how many.
        key: all randomness. A step's draws depend on the key and the step's number alone.
        data: array or pytree of arrays whose leading axis are the data points.
        batch_size: data points a step, drawn without replacement from a permutation that is
            renewed on the device every epoch; all of them where it is None.
        maximize: False minimises.
        progress: whether to show the bar (on standard error).
        using: how the expectation is taken, as in `vx.expect`.
        estimators: by address, in the place of those that the objective asks for, such as those
            of `vx.tune_estimators`.
        strict: refuse estimators that are biased on purpose.

    Returns:
        `FitResult`. One compilation serves the whole run.

    Raises:
        NonFiniteError: a metric or a parameter stopped being finite: names the step and the first
            site whose value, density or gradient is not finite.
        ShapeError: the objective is not a scalar, or the data's leading axes differ.
        GroupError: the objective's groups are not those of the params.
        StepError: there is no optimizer, or one beside an inference step.
    """
    own = {
        "maximize": maximize,
        "using": using,
        "estimators": estimators,
        "strict": strict,
    }
    step = _as_step(objective, optimizer, own)
    if steps is None or key is None:
        raise StepError(
            "A fit needs a number of steps and a key.",
            expected="steps=1000, key=jax.random.key(0)",
            got=f"steps={steps}, key={key}",
            where=user_line(),
        )
    return Loop(step, params, key, Batches(data, batch_size)).run(steps, progress=progress)


def _as_step(objective: Any, optimizer: Any, own: dict[str, Any]) -> InferenceStep:
    """The inference step that was given, or that of an objective and its optimizer."""
    if not isinstance(objective, InferenceStep) or isinstance(objective, type):
        if not callable(objective) or optimizer is None:
            raise StepError(
                "A fit needs an objective with an optimizer, or an inference step.",
                expected="vx.fit(objective, params, optax.adam(1e-3), ...) or "
                "vx.fit(step, params, ...)",
                got=f"{objective!r} and optimizer={optimizer!r}",
                where=user_line(),
            )
        return GradientStep(objective, optimizer, **own)
    usual = {"maximize": True, "using": None, "estimators": None, "strict": False}
    given = [name for name in usual if own[name] != usual[name]]
    if given or optimizer is not None:
        raise StepError(
            "An inference step has its own settings.",
            expected="vx.fit(step, params, steps=..., key=...)",
            got=", ".join([*(["optimizer"] if optimizer is not None else []), *given]),
            where=user_line(),
            fix="vx.GradientStep(objective, optimizer, maximize=..., using=..., ...)",
        )
    return objective
