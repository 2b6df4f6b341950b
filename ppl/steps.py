"""Inference steps: what `vx.fit` repeats, from a state to the next one.

laws of a step:
    it is a function of (key, state, batch) alone, traceable by JAX
    the state that it returns has the tree, shapes and dtypes of the one it was given
    its metrics have the same names every time
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from ..transforms.derivatives import is_float
from ..transforms.errors import StepError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InferenceState:
    """What a step works on: a pytree.

    Attributes:
        params: what is inferred: parameters, particles, natural parameters of sites. The steps of a
            `vx.schedule` share it.
        memory: what else the step needs, a pytree of arrays: an optimizer's state, a count. Each
            step of a schedule has its own.
    """

    params: Any
    memory: Any = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metric:
    """A scalar that only some steps measure: NaN in the history where `present` is false."""

    value: Any
    present: Any = True


Metrics = Mapping[str, Any]  # name -> scalar or Metric; the main one is called "objective"


@runtime_checkable
class InferenceStep(Protocol):
    """One step of an inference algorithm: any object with these two methods.

    A step whose params stand for a distribution also has `posterior(state) -> Measure`. One that
    can say what is not finite has `diagnose(key, state, batch) -> Finding | None`, which `vx.fit`
    calls with the arguments of the step that failed.
    """

    def init(self, key: jax.Array, params: Any) -> InferenceState:
        """The state before the first step, from the params given to `vx.fit`."""
        ...

    def step(
        self, key: jax.Array, state: InferenceState, batch: Any
    ) -> tuple[InferenceState, Metrics]:
        """The next state, and scalars to watch. `batch` is None where there are no data."""
        ...


def require_step(step: Any, who: str) -> None:
    """Raise unless this is an inference step."""
    if isinstance(step, type) or not isinstance(step, InferenceStep):
        raise StepError(
            f"{who} needs an inference step.",
            expected="an object with init(key, params) and step(key, state, batch)",
            got=repr(step),
            where=user_line(),
            fix="vx.GradientStep(objective, optimizer), vx.schedule(...), or your own",
        )


def readings(metrics: Any) -> dict[str, Metric]:
    """A step's metrics, each a float with a flag.

    Raises:
        StepError: they are not a dict of scalars.
    """
    shapes = {k: jnp.shape(_value(x)) for k, x in metrics.items()} if _is_dict(metrics) else None
    if shapes is None or any(shape != () for shape in shapes.values()):
        raise StepError(
            "A step's metrics are scalars by name.",
            expected='a dict such as {"objective": value}',
            got=type(metrics).__name__
            if shapes is None
            else ", ".join(f"{name}: shape {shape}" for name, shape in shapes.items()),
            where=user_line(),
        )
    return {name: _reading(x) for name, x in metrics.items()}


def _is_dict(metrics: Any) -> bool:
    return isinstance(metrics, Mapping) and all(isinstance(name, str) for name in metrics)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Metric) else x


def _reading(x: Any) -> Metric:
    present = x.present if isinstance(x, Metric) else True
    return Metric(jnp.asarray(_value(x), float), jnp.asarray(present, bool))


# ---- states as arrays, for JAX's loops


def split_arrays(tree: Any) -> tuple[Any, Any]:
    """A tree's JAX arrays and its other leaves, None in the place of the others."""
    arrays = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else None, tree)
    rest = jax.tree.map(lambda x: None if isinstance(x, jax.Array) else x, tree)
    return arrays, rest


def strong(x: Any) -> jax.Array:
    """A number as an array whose type is its own, so that it stays when it is updated."""
    return jnp.asarray(x, jnp.result_type(x))


def on_device(state: InferenceState) -> InferenceState:
    """A state whose numbers are JAX arrays, but for integers and functions among the params."""

    def number(x: Any) -> bool:
        return isinstance(x, (bool, int, float, complex, np.ndarray, np.generic, jax.Array))

    params = jax.tree.map(lambda x: strong(x) if is_float(x) else x, state.params)
    memory = jax.tree.map(lambda x: strong(x) if number(x) else x, state.memory)
    return InferenceState(params, memory)


def require_same_form(before: Any, after: Any) -> None:
    """Raise unless a step returned arrays like those it was given."""

    def forms(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path): f"{jnp.result_type(x)}{list(jnp.shape(x))}"
            for path, x in leaves
        }

    old, new = forms(before), forms(after)
    for at in [*old, *(new.keys() - old.keys())]:
        if old.get(at) != new.get(at):
            raise StepError(
                "A step changed the form of its state.",
                expected=f"state{at}: {old.get(at, 'no array')}, as before the step",
                got=new.get(at, "no array"),
                where=user_line(),
                fix="astype(x.dtype) after an update; what changes size has to be padded",
            )
