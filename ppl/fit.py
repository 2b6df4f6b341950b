"""`vx.fit`: the common training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ..kernels.source import user_line
from ..transforms.errors import StepError
from ..transforms.expect import Estimators
from ..transforms.strategies import Strategy
from .about import about
from .batches import Batches
from .gradient_step import GradientStep
from .loop import Loop
from .result import FitResult
from .runs.checkpoints import Checkpoints, as_checkpoints
from .runs.feed import Feed, is_stream
from .runs.keeper import Keeper
from .runs.placement import Placement
from .runs.run import Run, watchers, whole_number
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
    callbacks: Sequence[Callable[[Run], Any]] = (),
    every: int | None = None,
    stop: Any = (),
    checkpoint: str | Path | Checkpoints | None = None,
    resume: bool = True,
    mesh: Mesh | None = None,
    allow_nan: bool = False,
    model: Any = None,
    guide: Any = None,
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
        steps: how many, 1 or more.
        key: all randomness. A step's draws depend on the key and the step's number alone.
        data: array or pytree of arrays whose leading axis are the data points. Or batches to come,
            from the host: an iterator, or an iterable or a generator function, which begin anew at
            their end. All batches have one form. They are read ahead of the step.
        batch_size: data points a step, drawn without replacement from a permutation that is
            renewed on the device every epoch; all of them where it is None.
        maximize: False minimises.
        progress: whether to show the bar (on standard error).
        using: how the expectation is taken, as in `vx.expect`.
        estimators: by address, in the place of those that the objective asks for, such as those
            of `vx.tune_estimators`.
        strict: refuse estimators that are biased on purpose.
        callbacks: functions of a `vx.Run`, called between calls to the device. One that returns
            True ends the run.
        every: call them exactly after the steps that are multiples of this number; by default
            about four times a second.
        stop: rules that end the run (`vx.stopping.Plateau()`), one or several.
        checkpoint: a folder, or `vx.Checkpoints(folder, every=..., keep=...)`.
        resume: go on from the newest checkpoint of the folder, if there is one; the result is
            then bit for bit that of a run without interruption. False refuses such a folder.
        mesh: devices for data-parallel training: every batch is split along the mesh's first axis,
            the parameters are on all devices. Draws are the same on any number of devices.
        allow_nan: whether the data may have NaN, for models that mask missing values.
        model: the measure whose posterior is sought, its observations included, or a function from
            the params to it; and
        guide: `guide(params) -> Measure` over its unobserved choices: what the result's `summary`,
            `khat`, `sample`, `predict` and `to_arviz` are about. An automatic guide's ELBO
            (`vx.autoguide`) knows both.

    Returns:
        `FitResult`. One compilation serves the whole run.

    An exception of a callback or of an iterator has what was done as its attribute `result`, a
    `FitResult`. Ctrl-C ends the run and returns it. Both are saved, with checkpoints.

    Raises:
        NonFiniteError: a metric or a parameter stopped being finite: names the step and the first
            site whose value, density or gradient is not finite.
        ShapeError: the objective is not a scalar, or the data's leading axes differ.
        GroupError: the objective's groups are not those of the params.
        StepError: there is no optimizer, or one beside an inference step; `steps` is not a
            positive integer; a callback's answer is not a bool.
        DataError: no data points, missing values, or no numbers.
        CheckpointMismatchError, CheckpointDamagedError, CheckpointExistsError,
        CheckpointInUseError, CheckpointWriteError: the folder cannot be used.
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
    steps = whole_number(steps, "steps")
    every = None if every is None else whole_number(every, "every")
    watching = watchers(callbacks, every, "callbacks") + watchers(stop, every, "stop")
    settings = as_checkpoints(checkpoint)
    source = _source(data, batch_size, Placement(mesh), allow_nan)
    up = getattr(step, "maximize", True)
    known = about(step, None if is_stream(data) else data, model, guide)
    return Loop(step, params, key, source, up, known).run(
        steps,
        progress=progress,
        watchers=watching,
        keeper=None if settings is None else Keeper(settings),
        resume=resume,
    )


def _source(data: Any, size: int | None, placement: Placement, allow_nan: bool) -> Batches | Feed:
    """The batches, of arrays or of an iterator."""
    if not is_stream(data):
        return Batches(data, size, placement, allow_nan)
    if size is not None:
        raise StepError(
            "An iterator has batches of its own.",
            expected="data= an iterator, without batch_size",
            got=f"batch_size={size}",
            where=user_line(),
            fix="make batches of that size in the iterator, or pass data= the arrays themselves",
        )
    return Feed(data, placement, allow_nan)


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
