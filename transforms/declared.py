"""Declared bias: an identity that says that the derivative of a value is not the true one.

`vx.check` reports it and `strict=True` refuses it, as for estimators that are biased on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from . import _jax

biased_p = _jax.Primitive("declare_biased")


def declare_biased(x: jax.Array, name: str) -> jax.Array:
    """`x`, with the statement that its derivative is biased on purpose.

    Args:
        x: an array, such as a straight-through estimate e + stop_gradient(q - e).
        name: what to call it in reports.
    """
    return biased_p.bind(jnp.asarray(x), name=name, line=user_line())


def declarations(region: Any) -> Iterator[tuple[str, str]]:
    """`(name, line)` of every declaration in a jaxpr."""
    for eqn in _jax.opened(region)[0].eqns:
        if eqn.primitive is biased_p:
            yield eqn.params["name"], eqn.params["line"]
        for sub in _jax.subjaxprs(eqn):
            yield from declarations(sub)


def _identity(x: Any, **_: Any) -> Any:
    return x


def _batch(size: int, operands: Any, dims: Any, **params: Any) -> Any:
    return biased_p.bind(*operands, **params), dims[0]


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    return biased_p.bind(*primals, **params), tangents[0]


_jax.set_rules(
    biased_p,
    impl=_identity,
    abstract=_identity,
    batch=_batch,
    jvp=_jvp,
    lower=_jax.lower_as(_identity),
)
