"""What a callback sees of a fit, and when it is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ...kernels.source import user_line
from ...transforms.errors import StepError
from ..steps import InferenceState


class History:
    """What was measured at every step, by name: columns that grow in place."""

    def __init__(self, steps: int):
        self.steps = steps
        self.whole: dict[str, np.ndarray] = {}

    def write(self, start: int, values: Mapping[str, np.ndarray]) -> None:
        """The values of the steps from `start` on."""
        for name, new in values.items():
            if name not in self.whole:
                self.whole[name] = np.full(self.steps, np.nan, new.dtype)
            self.whole[name][start : start + len(new)] = new

    def columns(self, done: int) -> dict[str, np.ndarray]:
        """The first `done` values by name: views."""
        return {name: column[:done] for name, column in self.whole.items()}


@dataclasses.dataclass(frozen=True)
class Run:
    """A fit between two calls to the device.

    Attributes:
        step: how many steps are taken.
        steps: how many there are to be.
        state: the step's `InferenceState`.
        columns: name -> what was measured at every step so far, [step]; NaN where it was not.
            Views: copy what is to be kept.
        seconds: wall time so far.
        maximize: whether the objective is maximised.
    """

    step: int
    steps: int
    state: InferenceState
    columns: Mapping[str, np.ndarray]
    seconds: float
    maximize: bool = True

    @property
    def params(self) -> Any:
        """The parameters now, on the device."""
        return self.state.params

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of everything that was measured."""
        found = {name: x[np.isfinite(x)] for name, x in self.columns.items()}
        return {name: float(x[-1]) for name, x in found.items() if len(x)}


@dataclasses.dataclass(frozen=True)
class Watcher:
    """A callback and how often it is called: every so many steps, or (None) after every call."""

    call: Callable[[Run], Any]
    every: int | None

    def due(self, step: int) -> bool:
        """Whether it is to be called after so many steps."""
        return self.every is None or step % self.every == 0

    def stops(self, run: Run) -> bool:
        """Call it; whether it asks to stop.

        Raises:
            StepError: its answer is neither a bool nor None.
        """
        answer = self.call(run)
        if answer is None or isinstance(answer, (bool, np.bool_)):
            return bool(answer)
        raise StepError(
            "A callback answers whether to stop.",
            expected="True to end the run, None or False to go on",
            got=f"{answer!r} of {name_of(self.call)}",
            where=user_line(),
        )


def watchers(callbacks: Any, every: int | None, what: str) -> tuple[Watcher, ...]:
    """Callbacks as given, each with its `every`, its own attribute before the one for all."""
    given = callbacks if isinstance(callbacks, Iterable) else (callbacks,)
    found = []
    for call in given:
        if not callable(call) or isinstance(call, type):
            raise StepError(
                f"`{what}` takes functions of the run.",
                expected="f(run), which returns True to stop",
                got=repr(call),
                where=user_line(),
            )
        own = getattr(call, "every", every)
        found.append(Watcher(call, own if own is None else whole_number(own, "every")))
    return tuple(found)


def whole_number(value: Any, name: str) -> int:
    """A positive number of steps.

    Raises:
        StepError: it is not an integer, or not positive.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise StepError(
            f"`{name}` is not a number of steps.",
            expected="an integer, 1 or more",
            got=repr(value),
            where=user_line(),
            fix=f"{name}={int(value)}"
            if isinstance(value, (float, np.floating)) and value >= 1 and value == int(value)
            else None,
        )
    return int(value)


def name_of(call: Any) -> str:
    """How a callback is named in a message."""
    return getattr(call, "__qualname__", None) or repr(call)
