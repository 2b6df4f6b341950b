"""Second moments of values inside a function, however it is transformed.

    moments = Moments()
    f(observe(moments, "layer", x))       # inside jit, vmap, scan, grad: x is passed on as it is
    moments["layer"]                      # the sum of outer products of all x that came by

An identity that is a primitive of its own. Under `vmap` it is bound once to all lanes, so that a
compiled function calls the host with one K x K matrix and not with every row.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax


class Moments:
    """Sums of outer products by name, and how many rows they are of."""

    def __init__(self):
        self._sums: dict[Hashable, np.ndarray] = {}
        self._counts: dict[Hashable, int] = {}

    def add(self, name: Hashable, total: Any, count: int) -> None:
        """Add sum_m x_m x_m^T of `count` rows."""
        self._sums[name] = self._sums.get(name, 0.0) + np.asarray(total, np.float64)
        self._counts[name] = self._counts.get(name, 0) + count

    def get(self, name: Hashable) -> np.ndarray | None:
        """The same as `moments[name]`, or None if nothing came by."""
        found = self._counts.get(name, 0)
        return self._sums[name] / found if found else None

    def __contains__(self, name: Hashable) -> bool:
        return self._counts.get(name, 0) > 0

    def __getitem__(self, name: Hashable) -> np.ndarray:
        """The mean of the outer products, float64[K, K]."""
        return self._sums[name] / self._counts[name]


def observe(moments: Moments, name: Hashable, x: jax.Array) -> jax.Array:
    """Add the outer products of the last axis of x to `moments[name]`, whenever this runs.

    Args:
        moments: where to.
        name: under which name.
        x: float[..., K].

    Returns:
        x.
    """
    return _observe.bind(jnp.asarray(x), moments=moments, name=name)[0]


def _run(x: Any, *, moments: Moments, name: Hashable) -> list[Any]:
    rows = np.asarray(x.astype(jnp.float32) if x.dtype.itemsize < 4 else x, np.float64)
    rows = rows.reshape(-1, x.shape[-1])
    with np.errstate(invalid="ignore"):  # infinities are found by who uses the moments
        moments.add(name, rows.T @ rows, len(rows))
    return [x]


def _lowered(avals: Any, *, moments: Moments, name: Hashable) -> Any:
    def function(x: jax.Array) -> tuple[jax.Array]:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
        total = jnp.matmul(rows.T, rows, precision="highest")

        def to_host(total: Any) -> np.ndarray:
            moments.add(name, total, len(rows))
            return np.zeros((), np.float32)

        zero = jax.pure_callback(to_host, jax.ShapeDtypeStruct((), np.float32), total)
        return (x + zero.astype(x.dtype),)  # used, so that it is not dead code

    return function


def _batched(size: int, operands: Any, dims: Any, **params: Any) -> Any:
    return _observe.bind(_jax.to_front(operands[0], dims[0]), **params), [0]


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    return _observe.bind(*primals, **params), list(tangents)


_observe = _jax.Primitive("observe")
_jax.set_rules(
    _observe,
    impl=_run,
    abstract=lambda x, **_: _jax.shaped([x]),
    batch=_batched,
    jvp=_jvp,
)
_jax.set_lowering(_observe, None, _lowered)
