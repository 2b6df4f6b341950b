"""Schedules: several inference steps that take turns on the same parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from ..transforms import finite
from ..transforms.derivatives import join
from ..transforms.errors import StepError
from .steps import (
    InferenceState,
    InferenceStep,
    Metric,
    Metrics,
    readings,
    require_step,
    split_arrays,
)


def schedule(parts: Mapping[str, tuple[InferenceStep, int | None]]) -> Schedule:
    """An inference step that is one of several in turn.

        wake = vx.GradientStep(wake_model, optax.adam(1e-3), groups="model")
        sleep = vx.GradientStep(sleep_guide, optax.adam(1e-3), groups="guide")
        vx.fit(vx.schedule({"wake": (wake, 1), "sleep": (sleep, 2)}), params, steps=3000, key=key)

    Args:
        parts: by name, a step and how many of it are taken before the next part's turn. After the
            last part comes the first again, unless the last number is None: that part goes on to
            the end, so that the parts are phases.

    The parts share the params; each has a memory of its own (an optimizer's state), which the
    others leave alone. A step of the schedule is one step of one part, with a batch and a key of
    its own. The metrics are those of all parts: `wake` for the part's `objective`, `wake/NAME` for
    another; a part that has not its turn measures nothing (NaN in the history). A schedule may be
    a part of a schedule.

    Raises:
        StepError: a part is not an inference step, or a number of steps is not positive.
    """
    if not isinstance(parts, Mapping) or not parts:
        raise StepError(
            "A schedule needs parts.",
            expected='{"name": (step, number of steps), ...}',
            got=repr(parts),
            where=user_line(),
        )
    return Schedule(tuple(_part(name, part, name == [*parts][-1]) for name, part in parts.items()))


class Part(NamedTuple):
    """A step with its number of turns; None: to the end."""

    name: str
    step: InferenceStep
    count: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """See `schedule`. Memory: how many steps were taken, and each part's memory by its name."""

    parts: tuple[Part, ...]

    def init(self, key: jax.Array, params: Any) -> InferenceState:
        """Every part's state, one after the other on the same params."""
        keys, memories = jax.random.split(key, len(self.parts)), {}
        for part, own in zip(self.parts, keys, strict=True):
            state = part.step.init(own, params)
            params, memories[part.name] = state.params, state.memory
        return InferenceState(params, {"steps": jnp.zeros((), int), "parts": memories})

    def step(
        self, key: jax.Array, state: InferenceState, batch: Any
    ) -> tuple[InferenceState, Metrics]:
        """One step of the part whose turn it is."""
        arrays, rest = split_arrays(state)

        def of_part(part: Part) -> Any:
            def run(arrays: Any, key: jax.Array, batch: Any) -> tuple[Any, Metrics]:
                whole = join(arrays, rest)
                mine, metrics = part.step.step(key, self.part(whole, part.name), batch)
                parts = whole.memory["parts"] | {part.name: mine.memory}
                memory = {"steps": whole.memory["steps"] + 1, "parts": parts}
                return split_arrays(InferenceState(mine.params, memory))[0], _named(part, metrics)

            return jax.jit(run)  # traced once, for the names of its metrics and for the switch

        runs = [of_part(part) for part in self.parts]
        forms = [jax.eval_shape(run, arrays, key, batch)[1] for run in runs]
        nothing = Metric(jnp.zeros((), float), jnp.asarray(False))
        absent = {name: nothing for form in forms for name in form}

        def branch(run: Any) -> Any:
            def taken(*operands: Any) -> tuple[Any, Metrics]:
                arrays, metrics = run(*operands)
                return arrays, absent | metrics

            return taken

        turn = self.turn(state.memory["steps"])
        arrays, metrics = jax.lax.switch(turn, [branch(run) for run in runs], arrays, key, batch)
        return join(arrays, rest), metrics

    def turn(self, number: Any) -> Any:
        """Which part takes the step of this number, counted from 0."""
        counts = [part.count for part in self.parts if part.count is not None]
        ends = np.cumsum(counts)
        if len(counts) == len(self.parts):
            number, ends = number % ends[-1], ends[:-1]
        return (number >= jnp.asarray(ends, int)).sum()

    def part(self, state: InferenceState, name: str) -> InferenceState:
        """The state of one part, for its `posterior` for example."""
        return InferenceState(state.params, state.memory["parts"][name])

    def diagnose(self, key: jax.Array, state: InferenceState, batch: Any) -> finite.Finding | None:
        """What the part whose turn it is says."""
        part = self.parts[int(self.turn(state.memory["steps"]))]
        if (ask := getattr(part.step, "diagnose", None)) is None:
            return None
        return ask(key, self.part(state, part.name), batch)


def _part(name: str, part: Any, last: bool) -> Part:
    if not isinstance(name, str) or not isinstance(part, tuple) or len(part) != 2:
        raise StepError(
            "A part of a schedule is a step with a number.",
            expected='"name": (step, number of steps)',
            got=f"{name!r}: {part!r}",
            where=user_line(),
        )
    step, count = part
    require_step(step, f"The part {name!r} of a schedule")
    whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool) and count >= 1
    if not (whole or (count is None and last)):
        raise StepError(
            f"The part {name!r} of a schedule needs a number of steps.",
            expected="a Python integer, 1 or more" + (", or None for the rest" if last else ""),
            got=repr(count),
            where=user_line(),
            fix="None, to the end, is for the last part",
        )
    return Part(name, step, None if count is None else int(count))


def _named(part: Part, metrics: Metrics) -> dict[str, Metric]:
    """The part's metrics under its name."""
    found = readings(metrics).items()
    return {part.name if n == "objective" else f"{part.name}/{n}": x for n, x in found}
