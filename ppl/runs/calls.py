"""The device's part of a fit: many steps in one call, and an inquiry where one of them fails."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ...transforms.derivatives import join
from ...transforms.errors import NonFiniteError
from ..groups import path_name
from ..steps import InferenceState, InferenceStep, readings, require_same_form, split_arrays

UPDATES, BATCHES, INIT = range(3)  # what a key is for


class Calls:
    """The program of a fit: traced once, compiled once.

    Args:
        step: the inference step.
        rest: the leaves of its state that are not arrays.
        source: of the batches.
        most: of steps in one call.
    """

    def __init__(self, step: InferenceStep, rest: Any, source: Any, most: int):
        self.step, self.rest, self.source, self.most = step, rest, source, most
        mesh = source.placement.mesh
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._one = jax.jit(self._take)  # traced once: for its metrics, the loop and the inquiry
        self._many = jax.jit(self._steps, out_shardings=whole)
        self._lowered: Any = None
        self._compiled: Any = None

    def lower(self, now: Any, key: jax.Array, data: Any) -> Any:
        """The traced program; later calls take arguments of the same form."""
        if self._lowered is None:
            self._lowered = self._many.lower(now, key, *_count(0, 0), data)
        return self._lowered

    def __call__(self, now: Any, key: jax.Array, start: int, count: int, data: Any) -> Any:
        """`count` steps: what comes after them, their metrics [most], whether all is finite."""
        if self._compiled is None:
            self._compiled = self.lower(now, key, data).compile()
            self._lowered = None
        return self._compiled(now, key, *_count(start, count), data)

    def _take(self, now: Any, key: Any, number: Any, offset: Any, data: Any) -> tuple[Any, Any]:
        """The step of one number: what comes after it, and its metrics."""
        arrays, order = now
        renew = purpose_key(key, BATCHES, number)
        order, batch = self.source.take(data, order, number, offset, renew)
        state = join(arrays, self.rest)
        state, metrics = self.step.step(purpose_key(key, UPDATES, number), state, batch)
        after = split_arrays(state)[0]
        require_same_form(arrays, after)
        return (after, order), readings(metrics)

    def _steps(self, now: Any, key: Any, start: Any, count: Any, data: Any) -> tuple[Any, Any, Any]:
        _, form = jax.eval_shape(self._one, now, key, start, start, data)

        def body(i: Any, carry: Any) -> Any:
            now, values, sound = carry
            now, metrics = self._one(now, key, start + i, i, data)
            for name, metric in metrics.items():
                value = jnp.where(metric.present, metric.value, jnp.nan)
                values = values | {name: values[name].at[i].set(value)}
                sound &= jnp.isfinite(metric.value) | ~metric.present
            return now, values, sound

        values = {name: jnp.zeros(self.most, x.value.dtype) for name, x in form.items()}
        carry = (now, values, jnp.asarray(True))
        now, values, sound = jax.lax.fori_loop(jnp.zeros_like(count), count, body, carry)
        return now, values, sound & all_finite(now[0].params)

    # ---- after a failure

    def failure(self, now: Any, key: Any, start: int, count: int, data: Any) -> NonFiniteError:
        """Go through a failed call's steps again one by one, and say where it went wrong."""
        bad: list[str] = []
        number, offset, before, metrics = start, 0, now, {}
        for offset in range(count):
            number, before = start + offset, now
            now, metrics = self._one(before, key, *_count(number, offset), data)
            bad = [
                name
                for name in ordered(metrics)
                if metrics[name].present and not np.isfinite(metrics[name].value)
            ]
            if bad or not all_finite(now[0].params):
                break
        state = join(before[0], self.rest)
        finding = self._diagnose(state, before[1], key, number, offset, data)
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

    def _diagnose(
        self, state: InferenceState, order: Any, key: Any, number: int, offset: int, data: Any
    ) -> Any:
        """What the step itself finds, if it can."""
        if (ask := getattr(self.step, "diagnose", None)) is None:
            return None
        renew = purpose_key(key, BATCHES, number)
        _, batch = self.source.take(data, order, number, offset, renew)
        return ask(purpose_key(key, UPDATES, number), state, batch)


def purpose_key(key: jax.Array, purpose: int, number: Any) -> jax.Array:
    """The key of one purpose at one step."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), number)


def ordered(metrics: Any) -> list[str]:
    """The names, the main one first."""
    return sorted(metrics, key=lambda name: (name != "objective", name))


def all_finite(tree: Any) -> Any:
    """Whether all floating-point numbers of a tree are finite."""
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if _is_number(x)]
    return jnp.stack(leaves).all() if leaves else jnp.asarray(True)


def _count(*numbers: int) -> tuple[np.ndarray, ...]:
    """Host numbers, which on several hosts count as the same everywhere."""
    return tuple(np.asarray(x, jax.dtypes.canonicalize_dtype(int)) for x in numbers)


def _bad_leaves(tree: Any) -> str:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    bad = [path_name(p) or "the params" for p, x in paths if not all_finite(x)]
    return ", ".join(bad) or "no parameter"


def _is_number(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
