"""Control variates and baselines of a program's outputs: zeros with derivatives.

A control of a choice has mean zero, whatever the objective; so does a baseline times a score. They
are added to every scalar output that depends on the choice, as they would be to that output alone:

    output_i  +  sum_{choices n behind output_i} [control_n + error_n(output_i)]

A trained baseline is compared with its choice's share of *this* output, the output's derivative in
the choice's log weight. The derivative of that error is one in the baseline alone.

law:  each output's estimate and its derivatives are those of the program with this output alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from .dependence import NONE
from .errors import ObjectiveError
from .paths import Fan


def controls(fan: Fan) -> Iterator[tuple[int, jax.Array]]:
    """What to add to the outputs: pairs of an output's number and a scalar.

    Raises:
        ObjectiveError: there are controls or baselines, and the first output is no scalar.
    """
    added, trained = fan.weights.added(), fan.weights.trained()
    if not added and not trained:
        return
    _require_scalar(fan)
    means = [(n, _derivative_alone(fan.mean_of(control))) for n, control in added]
    signals = _signals(fan, list(trained))
    for i, behind in _scalars(fan).items():
        yield from ((i, mean) for n, mean in means if behind >> n & 1)
        for n, signal in signals.get(i, {}).items():
            yield from ((i, fan.mean_of(error)) for error in fan.weights.error(n, signal))


def _derivative_alone(x: jax.Array) -> jax.Array:
    return x - jax.lax.stop_gradient(x)


def _scalars(fan: Fan) -> dict[int, int]:
    """The outputs that are floats and scalars, with the choices that they depend on, as bits."""
    flat, deps = fan.flat, fan.credit.deps
    return {
        i: deps.get(at, NONE).sources
        for i, at in enumerate(flat.outs)
        if isinstance(at, int) and flat.is_float(at) and flat.shape(at) == ()
    }


def _signals(fan: Fan, trained: list[int]) -> dict[int, dict[int, Any]]:
    """By output, the shares of the trained choices behind it: `[*elements]` of each choice."""
    behind = {i: [n for n in trained if b >> n & 1] for i, b in _scalars(fan).items()}
    behind = {i: numbers for i, numbers in behind.items() if numbers}
    if not behind:
        return {}

    def of(shift: dict[int, Any]) -> list[Any]:
        outs = fan.outputs(shift)
        return [outs[i] for i in behind]

    zeros = {n: jnp.zeros(fan.credit.found.shapes[n]) for n in trained}
    outs, pull = jax.vjp(of, zeros)
    found = {}
    for k, (i, numbers) in enumerate(behind.items()):
        (shares,) = pull([jnp.full((), float(j == k), out.dtype) for j, out in enumerate(outs)])
        found[i] = {n: jax.lax.stop_gradient(shares[n]) for n in numbers}
    return found


def _require_scalar(fan: Fan) -> None:
    """Baselines and controls are for one number."""
    flat = fan.flat
    shape = flat.shape(flat.outs[0]) if flat.outs else None
    if shape != ():
        raise ObjectiveError(
            "A baseline or a control variate needs an objective that is one number.",
            expected="a scalar, alone or first",
            got="nothing" if shape is None else f"shape {shape}",
            where=user_line(),
            fix="return the mean or the sum, or use estimators without them (Score(), Reparam())",
        )
