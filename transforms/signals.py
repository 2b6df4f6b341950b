"""Learning signals: what each lane of a multi-sample objective answers for.

In a bound such as log 1/k sum_i w_i every lane's draws reach every term, so credit assignment by
itself lets all of them answer for the whole bound. `learning_signals(value, signals, lanes)` is
`value`, with the statement that value - signals[i] does not depend on what lane i drew:

    grad E[value] = E[grad value + sum_i signals_i grad log p(draws of lane i)]

Mnih and Rezende 2016 (VIMCO).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from . import _jax
from .axis_rules import RULES, Along
from .errors import ShapeError

signal_p = _jax.Primitive("learning_signals")


def learning_signals(value: Any, signals: Any, lanes: Any) -> jax.Array:
    """`value`, whose lanes have learning signals of their own.

    Args:
        value: a scalar objective of n lanes.
        signals: [n]; value - signals[i] must not depend on the draws of lane i.
        lanes: [n]; an array whose entry i depends on the draws of lane i alone, such as the log
            weights; choices drawn in lane i by a score function are recognised by it.

    The first derivative is right; higher ones are not. Choices that are pathwise or enumerated,
    and those made before the lanes, are not concerned.

    Raises:
        ShapeError: the shapes are not those.
    """
    value, signals, lanes = map(jnp.asarray, (value, signals, lanes))
    if value.shape != () or signals.ndim != 1 or signals.shape != lanes.shape:
        raise ShapeError(
            "Learning signals are one number for each lane of a scalar objective.",
            expected="shapes (), (n,) and (n,)",
            got=f"shapes {value.shape}, {signals.shape} and {lanes.shape}",
            where=user_line(),
        )
    return signal_p.bind(value, jax.lax.stop_gradient(signals), jax.lax.stop_gradient(lanes))


def _first(value: Any, signals: Any, lanes: Any) -> Any:
    return value


def _batch(size: int, operands: Any, dims: Any) -> Any:
    full = [_in_front(x, d, size) for x, d in zip(operands, dims, strict=True)]
    return signal_p.bind(*full), 0


def _in_front(x: Any, dim: int | None, size: int) -> Any:
    if dim is None:
        return jnp.broadcast_to(x, (size, *jnp.shape(x)))
    return jnp.moveaxis(x, dim, 0)


def _jvp(primals: Any, tangents: Any) -> Any:
    return signal_p.bind(*primals), _jax.instantiated(tangents[0])


_jax.set_rules(
    signal_p, impl=_first, abstract=_first, batch=_batch, jvp=_jvp, lower=_jax.lower_as(_first)
)
RULES["learning_signals"] = lambda params, ins, out: [
    {i: Along(i) for i in range(len(out))} for _ in ins
]
