"""Nearest-neighbour Gaussian processes: each point given a few of those before it.

p(y) is replaced by prod_i p(y_i | neighbours of i) (Vecchia 1988; Datta et al. 2016, NNGP). What a
point needs is a gather, a covariance matrix, its Cholesky factor and two solves, tiny all of them:
written as batched arrays they move n m^2 numbers through memory several times, fused they never
leave the registers and the first cache.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from .. import _jax
from ..errors import KernelDtypeError, KernelShapeError, KernelValueError
from ..frame import Operation
from . import arguments
from .profiles import covariance
from .vecchia_native import NATIVE


def definition(
    x: Any, neighbours: Any, length_scale: Any, variance: Any, noise: Any, extra: Any, *, kind: str
) -> tuple[jax.Array, jax.Array]:
    """Weights C^-1 c [n, m], variances variance + noise - c' C^-1 c [n]; -1 is no neighbour."""

    def one(point: Any, indices: Any) -> Any:
        there = (indices >= 0) & (indices < len(x))
        near = x[jnp.where(there, indices, 0)]
        both = there[:, None] & there
        c = jnp.where(there, variance * covariance(kind, point, near, length_scale, extra), 0)
        among = variance * covariance(kind, near[:, None], near, length_scale, extra)
        among = jnp.where(both, among, 0) + jnp.diag(jnp.where(there, noise, 1))
        factor = jnp.linalg.cholesky(among)
        half = solve_triangular(factor, c, lower=True)
        return solve_triangular(factor, half, lower=True, trans=1), variance + noise - half @ half

    return jax.vmap(one)(x, neighbours)


operation = Operation("nearest_neighbour_weights", definition, implementations=(NATIVE,))


def nearest_neighbour_weights(
    kind: str,
    x: Any,
    neighbours: Any,
    *,
    length_scale: Any,
    variance: Any = 1.0,
    noise: Any = 0.0,
    alpha: Any = None,
    period: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Conditional weights and variances of each point's value given its neighbours'.

    E[y_i | y_N] = sum_j weights[i, j] y[neighbours[i, j]] and Var[y_i | y_N] = variances[i], for y
    with covariance variance k(x_i, x_j) + noise (i = j). Derivatives exist in x and all parameters.

    Args:
        kind: as `covariance_matmul` has it.
        x: points [n, d].
        neighbours: [n, m] integers; each precedes its point, and -1 stands for none. See
            `ordered_neighbours`.
        length_scale: [] or [d]; positive.
        variance: [], zero or positive.
        noise: [], variance of independent noise in y, zero or positive. In float32 give at least
            1e-5 of `variance`, or close neighbours make a matrix that has no factor (NaN).
        alpha: [], of the rational quadratic.
        period: [], of the periodic covariance.

    Returns:
        weights [n, m], zero where there is no neighbour, and variances [n].

    Raises:
        KernelShapeError: shapes that do not fit.
        KernelDtypeError: operands that are not real; indices that are no integers.
        KernelValueError: an unknown kind, a parameter that is missing or not positive; an index
            that does not precede its point (where they are known: not under `jit`).
    """
    extras = {"alpha": alpha, "period": period}
    given = {k: e for k, e in extras.items() if e is not None}
    (x, length_scale, variance, noise, *more), dtype = arguments.floats(
        x, length_scale, variance, noise, *given.values()
    )
    arguments.points("x", x)
    extras.update(zip(given, more, strict=True))
    length_scale, extra = arguments.hyperparameters(
        kind, x.shape[1], length_scale, variance, extras
    )
    if noise.shape != ():
        raise KernelShapeError("noise must be a scalar.", got=list(noise.shape))
    arguments.positive("noise", noise, zero=True)
    neighbours = _checked(neighbours, len(x))
    extra = jnp.asarray(extra, x.dtype)
    weights, variances = operation(x, neighbours, length_scale, variance, noise, extra, kind=kind)
    return weights.astype(dtype), variances.astype(dtype)


def _checked(neighbours: Any, n: int) -> jax.Array:
    neighbours = neighbours if isinstance(neighbours, jax.Array) else jnp.asarray(neighbours)
    if not jnp.issubdtype(neighbours.dtype, jnp.integer):
        raise KernelDtypeError("Indices are integers.", expected="int32", got=neighbours.dtype)
    if neighbours.ndim != 2 or neighbours.shape[0] != n:
        raise KernelShapeError(
            "neighbours must have a row for each point.",
            expected=f"[{n}, m]",
            got=list(neighbours.shape),
        )
    if not _jax.is_traced(neighbours):
        values = np.asarray(neighbours)
        wrong = (values >= np.arange(n)[:, None]) | (values < -1)
        if wrong.any():
            i, j = (int(k[0]) for k in np.nonzero(wrong))
            raise KernelValueError(
                "A neighbour must precede its point.",
                expected=f"-1 (none) or less than {i} for point {i}",
                got=f"neighbours[{i}, {j}] = {values[i, j]}",
                fix="`ordered_neighbours(x, m)` finds them",
            )
    return neighbours.astype(jnp.int32)


def vecchia_log_likelihood(
    y: Any, kind: str, x: Any, neighbours: Any, **parameters: Any
) -> jax.Array:
    """log p(y) of a Gaussian process with mean zero, each value given its neighbours only.

    Exact if every point has all earlier ones as neighbours. Costs O(n m^3).

    Args:
        y: values [n].
        kind, x, neighbours, parameters: as `nearest_neighbour_weights` takes them.

    Returns:
        [], the log density.

    Raises:
        KernelShapeError: `y` has not a value for each point.
        Others: as `nearest_neighbour_weights`.
    """
    (y,), dtype = arguments.floats(y)
    weights, variances = nearest_neighbour_weights(kind, x, neighbours, **parameters)
    if y.shape != variances.shape:
        raise KernelShapeError(
            "There is one value for each point.", expected=list(variances.shape), got=list(y.shape)
        )
    neighbours = jnp.asarray(neighbours)
    near = jnp.where((neighbours >= 0) & (neighbours < len(y)), y[jnp.clip(neighbours, 0)], 0)
    left = y - jnp.sum(weights.astype(y.dtype) * near, 1)
    variances = variances.astype(y.dtype)
    terms = left**2 / variances + jnp.log(2 * jnp.pi * variances)
    return (-0.5 * _sum(terms)).astype(dtype)


def _sum(terms: jax.Array) -> jax.Array:
    """In blocks: a running sum in float32 loses digits with the number of its terms."""
    size = 1024
    padded = jnp.pad(terms, (0, -len(terms) % size)).reshape(-1, size)
    return jnp.sum(lax.optimization_barrier(jnp.sum(padded, 1)))


def ordered_neighbours(x: Any, m: int, *, length_scale: Any = 1.0) -> jax.Array:
    """The m nearest of the points before each point, by comparing all pairs: O(n^2) time.

    The order of the points is the caller's: a random or coarse-to-fine (maximin) one makes better
    approximations than one along a coordinate (Guinness 2018, Technometrics 60).

    Args:
        x: points [n, d], with known values.
        m: how many.
        length_scale: [] or [d], in which distances are measured.

    Returns:
        [n, m] int32, nearest first, -1 where there are fewer than m earlier points.

    Raises:
        KernelShapeError: `x` is not [n, d].
        KernelValueError: m is negative.
    """
    arguments.points("x", jnp.asarray(x))
    if m < 0:
        raise KernelValueError("The number of neighbours cannot be negative.", got=m)
    scaled = np.asarray(x, np.float64) / np.asarray(length_scale, np.float64)
    n = len(scaled)
    found = np.full((n, m), -1, np.int32)
    rows = max(1, 2**21 // max(n, 1))
    for start in range(1 if m else n, n, rows):
        at = np.arange(start, min(start + rows, n))
        before = scaled[: at[-1]]
        squares = sum(
            (scaled[at, q, None] - before[None, :, q]) ** 2 for q in range(scaled.shape[1])
        )
        squares = np.broadcast_to(squares, (len(at), len(before))).copy()
        squares[np.arange(len(before))[None] >= at[:, None]] = np.inf
        k = min(m, len(before))
        best = np.argpartition(squares, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(
            best, np.argsort(np.take_along_axis(squares, best, 1), 1, "stable"), 1
        )
        found[at, :k] = np.where(best < at[:, None], best, -1)
    return jnp.asarray(found)
