"""Products with a covariance matrix that is never formed.

The definition is one line. What it costs is the n x m matrix in memory, and its reading and writing
a few times over: the fast forms make each entry when it is needed and forget it. Derivatives
likewise: the adjoint meets each pair of points again, with weight a_i . b_j for the cotangent's row
and v's row.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..errors import KernelShapeError
from ..frame import Call, Implementation, Operation
from . import arguments
from .covariance_native import NATIVE
from .profiles import covariance

CHUNK = 128  # rows at a time in the XLA form


def definition(
    x: Any, y: Any, v: Any, length_scale: Any, variance: Any, extra: Any, *, kind: str
) -> jax.Array:
    """K v for K[i, j] = variance k(x_i, y_j); x [n, d], y [m, d], v [m, k]."""
    k = covariance(kind, x[:, None], y[None], length_scale, extra)
    return variance * jnp.matmul(k, v, precision=lax.Precision.HIGHEST)


# Anywhere: a chunk of rows at a time.


def _chunks(x: jax.Array) -> jax.Array:
    """Rows in chunks, the last one filled up with zeros."""
    count = -(-x.shape[0] // CHUNK)
    return jnp.pad(x, ((0, count * CHUNK - x.shape[0]), (0, 0))).reshape(count, CHUNK, x.shape[1])


def _in_chunks(x: Any, *others: Any, kind: str) -> jax.Array:
    if x.shape[0] <= CHUNK:
        return definition(x, *others, kind=kind)
    found = lax.map(lambda rows: definition(rows, *others, kind=kind), _chunks(x))
    return found.reshape(-1, found.shape[-1])[: x.shape[0]]


def _adjoint_in_chunks(operands: Any, cotangent: Any, *, kind: str) -> tuple[jax.Array, ...]:
    x, *others = operands

    def one(sums: Any, chunk: Any) -> Any:
        rows, along = chunk
        _, pull = jax.vjp(functools.partial(definition, kind=kind), rows, *others)
        dx, *more = pull(along)
        return [a + b for a, b in zip(sums, more, strict=True)], dx

    start = [jnp.zeros_like(o) for o in others]
    sums, dx = lax.scan(one, start, (_chunks(x), _chunks(cotangent)))
    return dx.reshape(-1, x.shape[1])[: x.shape[0]], *sums


def _xla_value(call: Call, *operands: Any) -> Any:
    f = functools.partial(_in_chunks, **call.statics)
    if call.batch is not None:
        f = jax.vmap(f, [0 if has else None for has in call.batched])
    return (f(*operands),), ()


def _xla_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    f = functools.partial(_adjoint_in_chunks, **call.statics)
    if call.batch is not None:
        f = jax.vmap(f, (tuple(0 if has else None for has in call.batched), 0))
    return f(tuple(operands), cotangents[0])


def _merge(operands: Any, dims: Any, statics: Any) -> Any:
    """A vmap over v alone is more columns."""
    if dims[2] is None or any(dim is not None for i, dim in enumerate(dims) if i != 2):
        return None
    x, y, v, *others = operands
    v = jnp.moveaxis(v, dims[2], 1)
    size, k = v.shape[1], v.shape[2]

    def finish(outputs: Any) -> Any:
        return (jnp.moveaxis(outputs[0].reshape(-1, size, k), 1, 0),)

    return (x, y, v.reshape(v.shape[0], size * k), *others), finish


operation = Operation(
    "covariance_matmul",
    definition,
    implementations=(NATIVE, Implementation("xla", (), _xla_value, _xla_adjoint)),
    merge=_merge,
)


def covariance_matmul(
    kind: str,
    x: Any,
    y: Any,
    v: Any,
    *,
    length_scale: Any,
    variance: Any = 1.0,
    alpha: Any = None,
    period: Any = None,
) -> jax.Array:
    """K(x, y) v without forming the covariance matrix K[i, j] = variance k(x_i, y_j).

    Memory is O(n + m), not O(n m), also for the gradient, which exists in every array; derivatives
    beyond the first reverse one, and forward ones, form the matrix. A `vmap` over v alone is more
    columns.

    Args:
        kind: "rbf", "matern12", "matern32", "matern52", "rational_quadratic" or "periodic"
            (`kernels.gp.profiles` has their formulas).
        x: points [n, d].
        y: points [m, d].
        v: vectors [m, k], or one vector [m].
        length_scale: [] or, one for each dimension, [d]; positive.
        variance: [], zero or positive.
        alpha: [], of the rational quadratic.
        period: [], of the periodic covariance.

    Returns:
        [n, k], or [n].

    Raises:
        KernelShapeError: shapes that do not fit.
        KernelDtypeError: operands that are not real.
        KernelValueError: an unknown kind, a missing parameter, or one that is not positive (where
            its value is known: not under `jit`).
    """
    given = (x, y, v, length_scale, variance, *(e for e in (alpha, period) if e is not None))
    (x, y, v, length_scale, variance, *extras), dtype = arguments.floats(*given)
    arguments.points("x", x)
    arguments.points("y", y, x.shape[1])
    if v.ndim not in (1, 2) or v.shape[0] != y.shape[0]:
        raise KernelShapeError(
            "v must have a row for each point of y.",
            expected=f"[{y.shape[0]}] or [{y.shape[0]}, k]",
            got=list(v.shape),
        )
    names = [n for n, e in (("alpha", alpha), ("period", period)) if e is not None]
    more = {"alpha": None, "period": None, **dict(zip(names, extras, strict=True))}
    length_scale, extra = arguments.hyperparameters(kind, x.shape[1], length_scale, variance, more)
    columns = v if v.ndim == 2 else v[:, None]
    extra = jnp.asarray(extra, x.dtype)
    (out,) = operation(x, y, columns, length_scale, variance, extra, kind=kind)
    return (out if v.ndim == 2 else out[:, 0]).astype(dtype)
