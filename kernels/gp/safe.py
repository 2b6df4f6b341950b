"""Cholesky with as little jitter as will do, and a report of it.

A covariance matrix of close points is positive definite on paper and not in floating point: in
float32, rounding alone moves eigenvalues by 1e-7 times the largest. Adding a multiple of the mean
of the diagonal makes up for it; how much depends on the matrix, so multiples are tried in turn, on
the device.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from .. import _jax
from ..errors import KernelValueError
from . import arguments, definite

FIRST = {"float32": 1e-5, "float64": 1e-10}  # the first multiple tried after 0
LAST = 0.1


def safe_cholesky(
    a: Any, *, first: float | None = None, last: float = LAST, check: bool = True
) -> Any:
    """Lower Cholesky factor of a + jitter I for the least jitter that will do, and the jitter.

    Tried in turn: 0, then `first`, 10 `first`, 100 `first`, ... up to `last`, times the mean of the
    diagonal. Works under `jit` and `vmap`. In derivatives the jitter is a constant.

    Args:
        a: [..., n, n]; the mean of it and its transpose is factored.
        first: relative to the mean of the diagonal; default 1e-5 in float32, 1e-10 in float64.
        last: the most that may be added, likewise.
        check: raise if `last` does not do and the values are known (not under `jit`); otherwise,
            and under `jit`, the factor is NaN and the jitter infinite.

    Returns:
        (factor [..., n, n], jitter [...]); NaN where `a` has NaNs.

    Raises:
        KernelShapeError: `a` is not square.
        KernelDtypeError: `a` is not real.
        KernelValueError: not 0 < first <= last.
        NotPositiveDefiniteError: naming the leading minor, and the jitter that would do.
    """
    (a,), dtype = arguments.floats(a)
    definite.square("a", a)
    first = FIRST[str(a.dtype)] if first is None else first
    if not 0 < first <= last:
        raise KernelValueError(
            "The ladder of jitters is empty.", expected="0 < first <= last", got=(first, last)
        )
    count = int(np.floor(np.log10(last / first) + 1e-9)) + 1
    f = functools.partial(_factor, first=float(first), count=count)
    for _ in range(a.ndim - 2):
        f = jax.vmap(f)
    factor, jitter = f((a + jnp.swapaxes(a, -1, -2)) / 2)
    if check and not _jax.is_traced(factor):
        failed = np.isinf(np.asarray(jitter))
        for index in np.argwhere(np.atleast_1d(failed))[:1]:
            where = f"a[{', '.join(map(str, index))}]" if a.ndim > 2 else "a"
            matrix = a[tuple(index.tolist())] if a.ndim > 2 else a
            raise definite.not_definite(
                matrix, f"{where}, even with {last:g} of its mean diagonal added,", "raise `last`"
            )
    return factor.astype(dtype), jitter.astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _factor(a: jax.Array, first: float, count: int) -> tuple[jax.Array, jax.Array]:
    n = a.shape[0]
    if n == 0:
        return a, jnp.zeros((), a.dtype)
    scale = jnp.maximum(jnp.abs(jnp.mean(jnp.diagonal(a))), jnp.finfo(a.dtype).tiny)

    def jitter_of(i: Any) -> jax.Array:
        return jnp.where(i == 0, 0, scale * first * 10.0 ** (i - 1).astype(a.dtype))

    def attempt(i: Any) -> jax.Array:
        return jnp.linalg.cholesky(
            a + jitter_of(i) * jnp.eye(n, dtype=a.dtype), symmetrize_input=False
        )

    def going_on(state: Any) -> jax.Array:
        i, factor = state
        hopeful = jnp.isfinite(scale) & jnp.isfinite(a).all()
        return ~jnp.isfinite(factor[-1, -1]) & (i < count) & hopeful

    def step(state: Any) -> Any:
        return state[0] + 1, attempt(state[0] + 1)

    start = jnp.zeros((), jnp.int32)
    i, factor = lax.while_loop(going_on, step, (start, attempt(start)))
    failed = ~jnp.isfinite(factor[-1, -1])
    hopeless = jnp.where(jnp.isfinite(a).all(), jnp.inf, jnp.nan)
    return factor, jnp.where(failed, hopeless, jitter_of(i))


@_factor.defjvp
def _(first: float, count: int, primals: Any, tangents: Any) -> Any:
    """Of l l' = a + constant: dl = l phi(l^-1 da l^-T), phi the lower triangle, its diagonal
    halved.
    """
    (a,), (da,) = primals, tangents
    l, jitter = _factor(a, first, count)
    da = (da + da.T) / 2
    half = solve_triangular(l, da, lower=True)
    inner = solve_triangular(l, half.T, lower=True)
    phi = jnp.tril(inner) - jnp.diag(jnp.diagonal(inner) / 2)
    dl = jnp.matmul(l, phi, precision=lax.Precision.HIGHEST)
    return (l, jitter), (dl, jnp.zeros_like(jitter))
