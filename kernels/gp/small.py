"""Cholesky factors and triangular solves of many small matrices.

A matrix of 20 rows is too small to fill a vector register along its rows, and a call of LAPACK
costs as much as the work. The fast form puts a matrix into each lane, so that a batch is factored
at the speed of memory; derivatives too.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from .. import _jax
from ..errors import KernelShapeError
from ..frame import Call, Operation
from ..native import call as native_call
from ..native import native
from . import arguments, definite

LARGEST = 64
SUFFIX = {"float32": "f32", "float64": "f64"}
MODES = {"lower": 1, "transposed": 2, "both": 3}  # bits: forward by l, backward by its transpose


def cholesky_definition(a: Any) -> jax.Array:
    """The lower factor of (a + a') / 2; NaN where that is not positive definite."""
    return jnp.linalg.cholesky(a, symmetrize_input=True)


def solve_definition(l: Any, b: Any, *, mode: str) -> jax.Array:
    """l^-1 b ("lower"), l^-T b ("transposed") or (l l')^-1 b ("both"); l [n, n], b [n, k]."""
    if mode != "transposed":
        b = solve_triangular(l, b, lower=True)
    return b if mode == "lower" else solve_triangular(l, b, lower=True, trans=1)


def _refuse(call: Call) -> str | None:
    n = call.operands[0].shape[-1]
    return f"is for matrices of up to {LARGEST} rows, not {n}" if n > LARGEST else None


def _run(name: str, like: Any, shape: Any, *operands: Any, **attributes: Any) -> jax.Array:
    result = jax.ShapeDtypeStruct(shape, like.dtype)
    if 0 in shape:
        return jnp.zeros(shape, like.dtype)
    numbers = {k: np.int64(v) for k, v in attributes.items()}
    return native_call(f"varax_{name}_{SUFFIX[str(like.dtype)]}", result, *operands, **numbers)


def _batch(call: Call) -> int:
    return 1 if call.batch is None else call.batch


def _cholesky_value(call: Call, a: Any) -> Any:
    l = _run("small_cholesky", a, a.shape, a, batch=_batch(call))
    return (l,), (l,) if call.save else ()


def _cholesky_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    (l,), (ct,) = residuals, cotangents
    return (_run("small_cholesky_adjoint", l, l.shape, l, ct, batch=_batch(call)),)


def _cholesky_saving(a: Any) -> Any:
    l = cholesky_definition(a)
    return l, l


def _solve(call: Call, l: Any, b: Any, batched: tuple[bool, ...], mode: str) -> jax.Array:
    front = () if call.batch is None else (call.batch,)
    shape = (*front, *call.operands[1].shape)
    bits = batched[0] + 2 * batched[1]
    return _run(
        "small_triangular_solve", b, shape, l, b, batch=_batch(call), batched=bits, mode=MODES[mode]
    )


def _solve_value(call: Call, l: Any, b: Any) -> Any:
    return (_solve(call, l, b, call.batched, call.statics["mode"]),), ()


def _solve_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    """With _ for cotangents: of x = l^-1 b, b_ = l^-T x_ and l_ = -tril(b_ x'); of x = l^-T b,
    b_ = l^-1 x_ and l_ = -tril(x b_').
    """
    (l, b), (ct,), mode = operands, cotangents, call.statics["mode"]
    of_l, of_b = call.batched
    front = call.batch is not None

    def solve(rhs: Any, mode: str, batched: bool = front) -> jax.Array:
        return _solve(call, l, rhs, (of_l, batched), mode)

    if mode == "lower":
        found, x = solve(ct, "transposed"), solve(b, "lower", of_b)
        return -jnp.tril(_outer(found, x)), found
    if mode == "transposed":
        found, x = solve(ct, "lower"), solve(b, "transposed", of_b)
        return -jnp.tril(_outer(x, found)), found
    middle = solve(ct, "lower")
    found = solve(middle, "transposed")
    y = solve(b, "lower", of_b)
    x = solve(y, "transposed")
    return -jnp.tril(_outer(x, middle) + _outer(found, y)), found


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """sum_k x[.., i, k] y[.., j, k]; XLA's batched products of thin matrices are slow."""
    if x.shape[-1] <= 4:
        return jnp.sum(x[..., :, None, :] * y[..., None, :, :], -1)
    return jnp.matmul(x, jnp.swapaxes(y, -1, -2), precision=jax.lax.Precision.HIGHEST)


def _merge_columns(operands: Any, dims: Any, statics: Any) -> Any:
    """A vmap over b alone is more columns."""
    (l, b), (on_l, on_b) = operands, dims
    if on_l is not None or on_b is None:
        return None
    b = jnp.moveaxis(b, on_b, 1)
    n, size, k = b.shape

    def finish(outputs: Any) -> Any:
        return (jnp.moveaxis(outputs[0].reshape(n, size, k), 1, 0),)

    return (l, b.reshape(n, size * k)), finish


cholesky = Operation(
    "small_cholesky",
    cholesky_definition,
    saving=_cholesky_saving,
    implementations=(native(_cholesky_value, _cholesky_adjoint, refuse=_refuse),),
)
triangular_solve = Operation(
    "small_triangular_solve",
    solve_definition,
    implementations=(native(_solve_value, _solve_adjoint, refuse=_refuse),),
    merge=_merge_columns,
)


def small_cholesky(a: Any, *, check: bool = True) -> jax.Array:
    """Lower Cholesky factors of a batch of small matrices, [..., n, n].

    The mean of `a` and its transpose is factored, as `jnp.linalg.cholesky` does; derivatives are
    symmetric. Fast for n up to 64; larger matrices go to XLA.

    Args:
        a: [..., n, n], symmetric and positive definite.
        check: raise for matrices that are known (not under `jit`) not to be; this waits for the
            result. Otherwise, and under `jit`, their factors are NaN.

    Raises:
        KernelShapeError: `a` is not square.
        KernelDtypeError: `a` is not real.
        NotPositiveDefiniteError: naming the matrix, its leading minor, and the jitter that will
            do.
    """
    (a,), dtype = arguments.floats(a)
    definite.square("a", a)
    one = a if a.ndim == 2 else a.reshape(math.prod(a.shape[:-2]), *a.shape[-2:])
    (l,) = cholesky(one) if a.ndim == 2 else jax.vmap(cholesky)(one)
    l = l.reshape(a.shape)
    if check and not _jax.is_traced(l) and l.size:
        _refuse_indefinite(a, l)
    return l.astype(dtype)


def _refuse_indefinite(a: jax.Array, l: jax.Array) -> None:
    failed = np.isnan(np.asarray(l[..., -1, -1]))
    for index in zip(*np.nonzero(np.atleast_1d(failed)), strict=True):
        matrix = np.asarray(a[tuple(int(i) for i in index)] if a.ndim > 2 else a)
        if np.isfinite(matrix).all():
            where = f"a[{', '.join(map(str, index))}]" if a.ndim > 2 else "a"
            raise definite.not_definite(matrix, where, "use `safe_cholesky`")


def small_triangular_solve(l: Any, b: Any, *, transpose: bool = False) -> jax.Array:
    """Solve l x = b, or l' x = b, for a batch of small lower-triangular matrices.

    Args:
        l: [..., n, n]; what is above the diagonal is not read.
        b: [..., n] if it has one axis less than `l`, else [..., n, k]; leading axes broadcast.
        transpose: solve with the transpose of `l`.

    Returns:
        x, of the shape of `b` (with `l`'s leading axes).

    Raises:
        KernelShapeError: shapes that do not fit.
        KernelDtypeError: operands that are not real.
    """
    return _solve_public(l, b, "transposed" if transpose else "lower")


def small_cholesky_solve(l: Any, b: Any) -> jax.Array:
    """Solve l l' x = b from factors of `small_cholesky`; see `small_triangular_solve`."""
    return _solve_public(l, b, "both")


def _solve_public(l: Any, b: Any, mode: str) -> jax.Array:
    (l, b), dtype = arguments.floats(l, b)
    definite.square("l", l)
    vector = b.ndim == l.ndim - 1
    columns = b[..., None] if vector else b
    try:
        if columns.shape[-2] != l.shape[-1]:
            raise ValueError
        front = jnp.broadcast_shapes(l.shape[:-2], columns.shape[:-2])
    except (ValueError, IndexError):
        raise KernelShapeError(
            "The right-hand sides do not fit the matrices.",
            expected=f"[..., {l.shape[-1]}] or [..., {l.shape[-1]}, k] for l {list(l.shape)}",
            got=list(b.shape),
            fix="b[None] if these are matrices for the whole batch" if vector else None,
        ) from None
    f: Any = lambda l, b: triangular_solve(l, b, mode=mode)[0]  # noqa: E731
    for i in range(1, len(front) + 1):  # from the innermost; an axis of length 1 is shared
        axes = [_axis(z.shape[:-2], i) for z in (l, columns)]
        if axes != [None, None]:
            f = jax.vmap(f, axes)
    l, columns = (_squeezed(z) for z in (l, columns))
    x = f(l, columns).reshape(*front, *columns.shape[-2:])
    return (x[..., 0] if vector else x).astype(dtype)


def _axis(front: tuple[int, ...], i: int) -> int | None:
    return 0 if i <= len(front) and front[-i] != 1 else None


def _squeezed(z: jax.Array) -> jax.Array:
    return z.reshape(*(s for s in z.shape[:-2] if s != 1), *z.shape[-2:])
