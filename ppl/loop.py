"""The training loop: many steps in one call to the device, and an inquiry where one fails."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..transforms.derivatives import join
from ..transforms.errors import NonFiniteError
from .batches import Batches
from .groups import path_name
from .progress import Progress
from .result import FitResult
from .steps import (
    InferenceState,
    InferenceStep,
    on_device,
    readings,
    require_same_form,
    split_arrays,
)

BUFFER = 1024  # most steps of one call to the device
SECONDS = 0.25  # how long such a call should take, for the progress bar
UPDATES, BATCHES, INIT = range(3)  # what a key is for


class Loop:
    """One fit. Its state: the step's arrays, and the permutation of the data."""

    def __init__(self, step: InferenceStep, params: Any, key: jax.Array, batches: Batches):
        self.step, self.key, self.batches = step, key, batches
        state = on_device(step.init(self._key(INIT, 0), params))
        arrays, self.rest = split_arrays(state)
        self.start = (arrays, batches.start())
        self._one = jax.jit(self._take)  # traced once: for its metrics, the loop and the inquiry
        self._many = jax.jit(self._steps)

    def run(self, steps: int, *, progress: bool) -> FitResult:
        """All steps, in calls of a length that keeps the progress bar alive."""
        began = time.perf_counter()
        now, history, done, count, interrupted = self.start, [], 0, 1, False
        with Progress(steps, shown=progress) as bar:
            try:
                while done < steps:
                    before, clock = now, time.perf_counter()
                    count = min(count, steps - done, BUFFER)
                    now, values, sound = self._many(
                        now, jnp.asarray(done), jnp.asarray(count), self.batches.data
                    )
                    if not sound:
                        raise self._failure(before, done, count)
                    values = {name: np.asarray(values[name])[:count] for name in _ordered(values)}
                    history.append(values)
                    done += count
                    bar.update(count, values)
                    took = time.perf_counter() - clock
                    count = 8 if done == 1 else max(1, int(count * min(2.0, SECONDS / took)))
            except KeyboardInterrupt:
                interrupted = True
        state = join(now[0], self.rest)
        seconds = time.perf_counter() - began
        return FitResult(state.params, _columns(history), seconds, interrupted, state)

    def _key(self, purpose: int, number: Any) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(self.key, purpose), number)

    def _take(self, now: Any, number: Any, data: Any) -> tuple[Any, Any]:
        """The step of one number: what comes after it, and its metrics."""
        arrays, order = now
        order, batch = self.batches.take(data, order, number, self._key(BATCHES, number))
        state = join(arrays, self.rest)
        state, metrics = self.step.step(self._key(UPDATES, number), state, batch)
        after = split_arrays(state)[0]
        require_same_form(arrays, after)
        return (after, order), readings(metrics)

    def _steps(self, now: Any, start: Any, count: Any, data: Any) -> tuple[Any, Any, Any]:
        """`count` steps: what comes after them, their metrics [BUFFER], whether all is finite."""
        _, form = jax.eval_shape(self._one, now, start, data)

        def body(i: Any, carry: Any) -> Any:
            now, values, sound = carry
            now, metrics = self._one(now, start + i, data)
            for name, metric in metrics.items():
                value = jnp.where(metric.present, metric.value, jnp.nan)
                values = values | {name: values[name].at[i].set(value)}
                sound &= jnp.isfinite(metric.value) | ~metric.present
            return now, values, sound

        values = {name: jnp.zeros(BUFFER, x.value.dtype) for name, x in form.items()}
        carry = (now, values, jnp.asarray(True))
        now, values, sound = jax.lax.fori_loop(0, count, body, carry)
        return now, values, sound & _all_finite(now[0].params)

    # ---- after a failure

    def _failure(self, now: Any, start: int, count: int) -> NonFiniteError:
        """Go through a failed call's steps again one by one, and say where it went wrong."""
        data, bad = self.batches.data, []
        number, before, metrics = start, now, {}
        for number in range(start, start + count):
            before = now
            now, metrics = self._one(before, jnp.asarray(number), data)
            bad = [
                name
                for name in _ordered(metrics)
                if metrics[name].present and not np.isfinite(metrics[name].value)
            ]
            if bad or not _all_finite(now[0].params):
                break
        state = join(before[0], self.rest)
        finding = self._diagnose(state, before[1], number)
        what = "the gradient or the update" if finding else "the update"
        if bad:
            what = "the objective" if bad[0] == "objective" else f"`{bad[0]}`"
        shown = {name: float(x.value) for name, x in metrics.items() if x.present}
        values = ", ".join(f"{name} = {x:g}" for name, x in shown.items())
        error = NonFiniteError(
            f"At step {number} {what} is not finite.",
            address=finding.address if finding else None,
            got=f"{finding.what}: {finding.detail}"
            if finding
            else f"{values}; after the step not finite: {_bad_leaves(now[0].params)}",
            where=(finding.line or None) if finding else None,
            fix="check the data and the initial values, bound scales away from zero "
            "(jax.nn.softplus(x) + 1e-4), lower the learning rate or clip gradients "
            "(optax.clip_by_global_norm); the exception's `params` are those before this step",
        )
        error.step, error.params = number, state.params
        return error

    def _diagnose(self, state: InferenceState, order: Any, number: int) -> Any:
        """What the step itself finds, if it can."""
        if (ask := getattr(self.step, "diagnose", None)) is None:
            return None
        _, batch = self.batches.take(self.batches.data, order, number, self._key(BATCHES, number))
        return ask(self._key(UPDATES, number), state, batch)


def _ordered(metrics: Any) -> list[str]:
    """The names, the main one first."""
    return sorted(metrics, key=lambda name: (name != "objective", name))


def _columns(history: list[dict[str, np.ndarray]]) -> Any:
    """The objective's values, or a dict where anything else was measured."""
    if not history:
        return np.zeros(0)
    columns = {name: np.concatenate([x[name] for x in history]) for name in history[0]}
    return columns["objective"] if columns.keys() == {"objective"} else columns


def _all_finite(tree: Any) -> Any:
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if _is_number(x)]
    return jnp.stack(leaves).all() if leaves else jnp.asarray(True)


def _bad_leaves(tree: Any) -> str:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    bad = [path_name(p) or "the params" for p, x in paths if not _all_finite(x)]
    return ", ".join(bad) or "no parameter"


def _is_number(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
