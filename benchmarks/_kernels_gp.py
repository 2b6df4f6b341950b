"""Gaussian-process kernels: covariance products, small Cholesky factors, nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kernel_entries import Entry

from varax.kernels import gp

CHUNK = 100


def matern52_in_chunks(x: Any, v: Any, length_scale: Any, variance: Any) -> Any:
    """Chunks of rows, distances by a matrix product: the best plain form (inexact near 0)."""
    scaled = x / length_scale
    squares = jnp.sum(scaled**2, -1)

    def one(rows: Any) -> Any:
        r2 = jnp.sum(rows**2, -1)[:, None] + squares - 2 * rows @ scaled.T
        s = jnp.sqrt(5 * jnp.maximum(r2, 1e-12))
        return (1 + s + s**2 / 3) * jnp.exp(-s) @ v

    chunks = scaled.reshape(-1, CHUNK, x.shape[1])
    return variance * jax.lax.map(one, chunks).reshape(len(x), -1)


def matern52_fused(x: Any, v: Any, length_scale: Any, variance: Any) -> Any:
    return gp.covariance_matmul("matern52", x, x, v, length_scale=length_scale, variance=variance)


def with_gradient(f: Callable[..., Any], arguments: tuple[int, ...]) -> Callable[..., Any]:
    """Value and gradient of the sum of squares of what `f` returns."""

    def total(*args: Any) -> Any:
        return sum(jnp.sum(out**2) for out in jax.tree.leaves(f(*args)))

    return jax.value_and_grad(total, arguments)


def candidates(functions: dict[str, Callable[..., Any]], args: tuple[Any, ...]) -> dict[str, Any]:
    compiled = {name: jax.jit(f) for name, f in functions.items()}
    return {name: (lambda f=f: f(*args)) for name, f in compiled.items()}


def product(n: int, d: int, k: int, gradient: bool) -> Entry:
    def make() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        x, v = rng.random((n, d)), rng.standard_normal((n, k))
        args = tuple(jnp.asarray(a, jnp.float32) for a in (x, v, np.full(d, 0.3), 1.5))
        functions = {"varax": matern52_fused, "plain XLA": matern52_in_chunks, **tinygp(n)}
        if gradient:
            functions = {name: with_gradient(f, (0, 1, 2, 3)) for name, f in functions.items()}
        return candidates(functions, args)

    # Differences and their squares, sqrt, exp with its polynomial, the profile, the product:
    # counted as 3 d + 20 + 2 k operations for a pair; the adjoint meets each pair twice more, with
    # its own products.
    pairs = float(n) ** 2
    return Entry(
        operation="covariance_matmul",
        what="value and gradient" if gradient else "value",
        size=f"Matern-5/2, N = {n:,}, D = {d}, {k} columns, float32",
        make=make,
        calls=1 if n > 20_000 else 3,
        flops=pairs * (3 * d + 20 + 2 * k) * (3 if gradient else 1),
    )


def tinygp(n: int) -> dict[str, Callable[..., Any]]:
    try:
        from tinygp import kernels, transforms
    except ImportError:
        return {}

    def f(x: Any, v: Any, length_scale: Any, variance: Any) -> Any:
        kernel = variance * transforms.Linear(
            1 / length_scale, kernels.Matern52(distance=_euclidean())
        )
        return kernel(x, x) @ v

    return {"tinygp": f} if n <= 10_000 else {}


def _euclidean() -> Any:
    from tinygp.kernels.distance import L2Distance

    return L2Distance()


def cholesky(count: int, n: int, dtype: str, gradient: bool) -> Entry:
    def make() -> dict[str, Any]:
        with jax.enable_x64(dtype == "float64"):
            z = np.random.default_rng(0).standard_normal((count, n, n)).astype(np.float32)
            a = jnp.asarray(z @ np.swapaxes(z, 1, 2) / n + np.eye(n), dtype)

        def fast(a: Any) -> Any:
            return gp.small_cholesky(a, check=False)

        functions = {"varax": fast, "plain XLA": jnp.linalg.cholesky}
        if gradient:
            functions = {name: with_gradient(f, (0,)) for name, f in functions.items()}

        def in_dtype(call: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                with jax.enable_x64(dtype == "float64"):
                    return call()

            return run

        return {name: in_dtype(call) for name, call in candidates(functions, (a,)).items()}

    size = count * n * n * np.dtype(dtype).itemsize
    return Entry(
        operation="small_cholesky",
        what="value and gradient" if gradient else "value",
        size=f"{count:,} x {n} x {n}, {dtype}",
        make=make,
        bytes=(5 if gradient else 2)
        * size,  # the adjoint reads factor and cotangent and writes one
        kind=dtype,
    )


def solves(count: int, n: int, operation: str, gradient: bool) -> Entry:
    """Many systems with known factors, one right-hand side each."""

    def make() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        l = np.tril(rng.standard_normal((count, n, n))) / n + np.eye(n)
        args = (
            jnp.asarray(l, jnp.float32),
            jnp.asarray(rng.standard_normal((count, n)), jnp.float32),
        )

        def plain(l: Any, b: Any) -> Any:
            columns = b[..., None]
            if operation == "small_cholesky_solve":
                return jax.scipy.linalg.cho_solve((l, True), columns)[..., 0]
            return jax.scipy.linalg.solve_triangular(l, columns, lower=True)[..., 0]

        functions = {"varax": getattr(gp, operation), "plain XLA": plain}
        if gradient:
            functions = {name: with_gradient(f, (0, 1)) for name, f in functions.items()}
        return candidates(functions, args)

    size = 4 * count * n * n / 2  # of the triangles
    return Entry(
        operation,
        "value and gradient" if gradient else "value",
        f"{count:,} x {n} x {n}, float32",
        make,
        bytes=size * (3 if gradient else 1),
    )


def safe(n: int, gradient: bool) -> Entry:
    """One covariance matrix that needs no jitter: what it costs to be sure."""

    def make() -> dict[str, Any]:
        x = np.sort(np.random.default_rng(0).random(n)) * n / 10
        r = abs(x[:, None] - x)
        a = jnp.asarray((1 + r) * np.exp(-r) + 0.1 * np.eye(n), jnp.float32)
        functions = {"varax": lambda a: gp.safe_cholesky(a)[0], "plain XLA": jnp.linalg.cholesky}
        if gradient:
            functions = {name: with_gradient(f, (0,)) for name, f in functions.items()}
        return candidates(functions, (a,))

    return Entry(
        "safe_cholesky",
        "value and gradient" if gradient else "value",
        f"{n} x {n}, float32",
        make,
        flops=n**3 / 3 * (4 if gradient else 1),
    )


def nearest(n: int, m: int, d: int, gradient: bool, likelihood: bool = False) -> Entry:
    """Weights of nearest neighbours, or the likelihood by them of values at all points."""

    def make() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        x = rng.random((n, d))  # in strips of a square, so that float32 holds the coordinates
        strip, along = np.divmod(np.sort(rng.random(n) * n), side := np.sqrt(n))
        x[:, 0] = np.where(strip % 2, side - along, along)
        x[:, 1] += strip
        back = np.arange(1, m + 1)
        neighbours = jnp.asarray(np.maximum(np.arange(n)[:, None] - back, -1).astype(np.int32))

        def fast(x: Any, length_scale: Any, variance: Any, noise: Any) -> Any:
            return gp.nearest_neighbour_weights(
                "matern32", x, neighbours, length_scale=length_scale, variance=variance, noise=noise
            )

        def plain(x: Any, length_scale: Any, variance: Any, noise: Any) -> Any:
            return gathered(x, neighbours, length_scale, variance, noise)

        values = jnp.asarray(rng.standard_normal(n), jnp.float32)

        def vecchia(x: Any, length_scale: Any, variance: Any, noise: Any) -> Any:
            parameters = {"length_scale": length_scale, "variance": variance, "noise": noise}
            return gp.vecchia_log_likelihood(values, "matern32", x, neighbours, **parameters)

        def plain_vecchia(*at: Any) -> Any:
            weights, variances = plain(*at)
            near = jnp.where(neighbours >= 0, values[jnp.maximum(neighbours, 0)], 0)
            left = values - (weights * near).sum(1)
            return -0.5 * (left**2 / variances + jnp.log(2 * jnp.pi * variances)).sum()

        functions = {"varax": fast, "plain XLA": plain}
        if likelihood:
            functions = {"varax": vecchia, "plain XLA": plain_vecchia}
        if gradient and likelihood:
            functions = {k: jax.value_and_grad(f, (1, 2, 3)) for k, f in functions.items()}
        elif gradient:
            functions = {name: with_gradient(f, (1, 2, 3)) for name, f in functions.items()}
        args = (
            jnp.asarray(x, jnp.float32),
            *(jnp.asarray(a, jnp.float32) for a in (3.0, 1.5, 0.1)),
        )
        return candidates(functions, args)

    pairs = m * (m + 1) / 2
    flops = n * (pairs * (3 * d + 18) + m**3 / 3 + 2 * m**2)
    return Entry(
        operation="vecchia_log_likelihood" if likelihood else "nearest_neighbour_weights",
        what="value and gradient" if gradient else "value",
        size=f"Matern-3/2, N = {n:,}, m = {m}, D = {d}, float32",
        make=make,
        flops=flops * (3 if gradient else 1),
        bytes=4.0 * n * (2 * m + d + 1) * (2 if gradient else 1),
    )


def gathered(x: Any, neighbours: Any, length_scale: Any, variance: Any, noise: Any) -> Any:
    """Gather, batched Cholesky factors, batched solves, of all points at once."""
    there = neighbours >= 0
    near = (x / length_scale)[jnp.maximum(neighbours, 0)]

    def k(a: Any, b: Any) -> Any:
        r2 = jnp.sum((a - b) ** 2, -1)
        s = jnp.sqrt(3 * jnp.where(r2 > 0, r2, 1.0)) * (r2 > 0)
        return variance * (1 + s) * jnp.exp(-s)

    c = jnp.where(there, k((x / length_scale)[:, None], near), 0)
    among = k(near[:, :, None], near[:, None])
    among = jnp.where(there[:, :, None] & there[:, None], among, 0)
    among += jnp.where(there, noise, 1)[:, :, None] * jnp.eye(near.shape[1])
    factor = jnp.linalg.cholesky(among)
    weights = jax.scipy.linalg.cho_solve((factor, True), c[..., None])[..., 0]
    return weights, variance + noise - jnp.sum(c * weights, 1)


def entries(quick: bool) -> list[Entry]:
    """The rows of this topic."""
    n = 3_000 if quick else 10_000
    count = 5_000 if quick else 100_000
    both = (False, True)
    rows = [product(n, d, k, g) for d, k in ((2, 1), (8, 1), (3, 16)) for g in both]
    if not quick:
        rows.append(product(100_000, 2, 1, False))
    rows += [cholesky(count, 20, dtype, g) for dtype in ("float32", "float64") for g in both]
    rows += [
        solves(count, 20, f"small_{kind}_solve", g)
        for kind in ("triangular", "cholesky")
        for g in both
    ]
    rows += [safe(1000, g) for g in both]
    rows += [nearest(count, 20, 2, g) for g in both]
    rows += [nearest(count, 20, 2, g, likelihood=True) for g in both]
    return rows
