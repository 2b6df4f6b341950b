"""Calls of the Gaussian-process kernels that every implementation is tried on."""

import numpy as np
from kernel_checks import Case

from varax.kernels import gp

MORE = {"rational_quadratic": "alpha", "periodic": "period"}
KINDS = ("rbf", "matern12", "matern32", "matern52", "rational_quadratic", "periodic")


def matmul(kind):
    """Covariance product as a function of its six operands."""

    def f(x, y, v, length_scale, variance, extra):
        more = {MORE[kind]: extra} if kind in MORE else {}
        return gp.covariance_matmul(
            kind, x, y, v, length_scale=length_scale, variance=variance, **more
        )

    return f


def operands(n, m, d, k, *, scale=1.0, offset=0.0, length=0.8, shared=0, front=()):
    """Random points, vectors and parameters; `shared` points of y are points of x."""

    def arrays(rng):
        x = offset + scale * rng.standard_normal((*front, n, d))
        y = offset + scale * rng.standard_normal((*front, m, d))
        y[..., :shared, :] = x[..., :shared, :]
        v = rng.standard_normal((*front, m, *(() if k is None else (k,))))
        lengths = scale * length * np.exp(0.3 * rng.standard_normal((*front, d)))
        return x, y, v, lengths, np.full(front, 1.7), np.full(front, 2.3 * scale)

    return arrays


def some_batched(axes, size, **sizes):
    """`operands` where those with an axis in `axes` are mapped over `size`."""

    def arrays(rng):
        given = operands(**sizes)(rng)
        grown = [
            z if axis is None else np.stack([z * (1 + 0.1 * i) for i in range(size)], axis)
            for z, axis in zip(given, axes, strict=True)
        ]
        return tuple(grown)

    return arrays


def batched_case(name, kind, axes):
    arrays = some_batched(axes, 3, n=19, m=11, d=2, k=2)
    return Case(name, "covariance_matmul", matmul(kind), arrays, axes)


PRODUCTS = [
    *(
        Case(kind, "covariance_matmul", matmul(kind), operands(37, 71, 3, 2, shared=9))
        for kind in KINDS
    ),
    Case("one of each", "covariance_matmul", matmul("matern32"), operands(1, 1, 1, None)),
    Case("no rows", "covariance_matmul", matmul("rbf"), operands(0, 5, 2, 2)),
    Case("no columns", "covariance_matmul", matmul("rbf"), operands(5, 0, 2, 2)),
    Case("many vectors", "covariance_matmul", matmul("matern52"), operands(33, 65, 9, 15)),
    Case("many rows", "covariance_matmul", matmul("matern12"), operands(300, 130, 1, None)),
    Case("many columns", "covariance_matmul", matmul("rbf"), operands(3, 2051, 2, 1)),
    Case("tiny scales", "covariance_matmul", matmul("matern52"), operands(9, 8, 2, 1, scale=1e-15)),
    Case(
        "huge scales",
        "covariance_matmul",
        matmul("rational_quadratic"),
        operands(9, 8, 2, 1, scale=1e12),
    ),
    Case("far away", "covariance_matmul", matmul("matern32"), operands(9, 8, 2, 1, offset=300.0)),
    Case(
        "almost diagonal",
        "covariance_matmul",
        matmul("rbf"),
        operands(9, 8, 2, 1, length=1e-3, shared=8),
        draws=8,
    ),
    batched_case("vmap of v", "matern32", (None, None, 2, None, None, None)),
    batched_case("vmap of x", "matern52", (1, None, None, None, None, None)),
    batched_case("vmap of y and length scales", "rbf", (None, 0, None, 1, 0, None)),
    batched_case("vmap of alpha", "rational_quadratic", (None, None, 0, None, None, 0)),
    batched_case("vmap of all", "periodic", (0, 1, 2, 0, 0, 0)),
]


def definite(*front, n):
    def arrays(rng):
        a = rng.standard_normal((*front, n, n + 3))
        return (a @ np.swapaxes(a, -1, -2) / n + 0.1 * np.eye(n),)

    return arrays


def lower(front, n, *columns):
    def arrays(rng):
        l = np.linalg.cholesky(definite(*front, n=n)(rng)[0])
        return l, rng.standard_normal((*(front or (5,)), n, *columns))

    return arrays


def factor(a):
    return gp.small_cholesky(a, check=False)


def transposed(l, b):
    return gp.small_triangular_solve(l, b, transpose=True)


SMALL = [
    Case("one matrix", "small_cholesky", factor, definite(n=7)),
    Case("of size 1", "small_cholesky", factor, definite(5, n=1)),
    Case("of size 0", "small_cholesky", factor, definite(5, n=0)),
    Case("none", "small_cholesky", factor, definite(0, n=3)),
    Case("batch", "small_cholesky", factor, definite(67, n=20)),
    Case("largest", "small_cholesky", factor, definite(3, n=64)),
    Case("two axes, vmap", "small_cholesky", factor, definite(3, 2, 5, n=4), 1),
    Case("lower", "small_triangular_solve", gp.small_triangular_solve, lower((19,), 9, 2)),
    Case("transposed", "small_triangular_solve", transposed, lower((19,), 9)),
    Case("both", "small_triangular_solve", gp.small_cholesky_solve, lower((3, 7), 6, 5)),
    Case("both, one column", "small_triangular_solve", gp.small_cholesky_solve, lower((2,), 64)),
    Case(
        "shared factor",
        "small_triangular_solve",
        gp.small_cholesky_solve,
        lower((), 5, 3),
        (None, 0),
    ),
    Case(
        "of size 1", "small_triangular_solve", gp.small_cholesky_solve, lower((), 1, 1), (None, 0)
    ),
]


def weights(kind, neighbours):
    def f(x, length_scale, variance, noise, extra):
        more = {MORE[kind]: extra} if kind in MORE else {}
        return gp.nearest_neighbour_weights(
            kind, x, neighbours, length_scale=length_scale, variance=variance, noise=noise, **more
        )

    return f


def preceding(n, m):
    """Distinct earlier points in no order, fewer where there are not enough or by chance."""
    rng = np.random.default_rng(n)
    found = np.full((n, m), -1, np.int32)
    for i in range(n):
        count = min(i, int(rng.integers(m // 2, m + 1)))
        found[i, rng.permutation(m)[:count]] = rng.permutation(i)[:count]
    return found


def field(n, d, front=()):
    def arrays(rng):
        lengths = 0.6 * np.exp(0.3 * rng.standard_normal(d))
        x = rng.random((*front, n, d))
        return x, lengths, np.full(front, 1.7), np.full(front, 0.2), np.full((), 2.3)

    return arrays


def weights_case(name, kind, n, m, d, axes=None, draws=1):
    front, f = () if axes is None else (3,), weights(kind, preceding(n, m))
    return Case(name, "nearest_neighbour_weights", f, field(n, d, front), axes, draws)


NEAREST = [
    *(weights_case(kind, kind, 41, 6, 2, draws=8) for kind in KINDS),
    weights_case("one point", "rbf", 1, 3, 2),
    weights_case("no neighbours", "rbf", 5, 0, 2),
    weights_case("no points", "rbf", 0, 3, 2),
    weights_case("many points", "matern32", 600, 3, 1),
    weights_case("vmap", "matern32", 23, 5, 3, (0, None, 0, 0, None)),
]

CASES = [*PRODUCTS, *SMALL, *NEAREST]
