"""Gaussian-process kernels: all implementations over shared cases, and exact results."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_checks
import numpy as np
import pytest
from kernel_cases_gp import CASES, KINDS, MORE, matmul, operands, preceding

from varax import kernels
from varax.kernels import errors, gp, native
from varax.kernels.gp.profiles import covariance

needs_native = pytest.mark.skipif(native.missing() is not None, reason="no native library")


QUICK = """rational_quadratic periodic many_vectors vmap_of_y_and_length_scales vmap_of_all
    no_columns of_size_1 batch two_axes,_vmap both shared_factor matern52 vmap
    no_neighbours""".split()
VARIANTS = [
    pytest.param(
        case,
        dtype,
        marks=[] if quick and case.name.replace(" ", "_") in QUICK else [pytest.mark.slow],
        id=f"{case}-{dtype.__name__}",
    )
    for case in CASES
    for dtype, quick in ((jnp.float32, True), (jnp.float64, case.name in ("matern52", "both")))
]


@pytest.mark.thin(5)
@needs_native
@pytest.mark.parametrize(("case", "dtype"), VARIANTS)
def test_native_is_as_right_as_the_definition(case, dtype):
    with jax.enable_x64(True):
        kernel_checks.check(case, "native", dtype)


# The definitions against exact results.


def textbook(kind, x, y, l, e):
    """Covariances by the formulas of Rasmussen and Williams, in NumPy."""
    difference = x[:, None] - y[None]
    r = np.sqrt(((difference / l) ** 2).sum(-1))
    return {
        "rbf": np.exp(-(r**2) / 2),
        "matern12": np.exp(-r),
        "matern32": (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
        "matern52": (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r),
        "rational_quadratic": (1 + r**2 / (2 * e)) ** -e,
        "periodic": np.exp(-2 * ((np.sin(np.pi * difference / e) / l) ** 2).sum(-1)),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_dense_matrix(kind):
    with jax.enable_x64(True):
        x, y, v, l, s, e = operands(29, 31, 2, 3)(np.random.default_rng(0))
        exact = s * textbook(kind, x, y, l, e) @ v
        np.testing.assert_allclose(matmul(kind)(x, y, v, l, s, e), exact, rtol=1e-12, atol=1e-13)
        with kernels.using("xla"):
            found = matmul(kind)(np.tile(x, (9, 1)), y, v, l, s, e)  # several chunks
        np.testing.assert_allclose(found, np.tile(exact, (9, 1)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_right_where_points_coincide(kind):
    """k depends on x - x' smoothly (Matern-1/2: has a kink, where the derivative is taken as 0)."""
    with jax.enable_x64(True):
        x = jnp.zeros((1, 1))

        def k(t):
            more = {MORE[kind]: 1.5} if kind in MORE else {}
            return gp.covariance_matmul(kind, x + t, x, jnp.ones(1), length_scale=0.7, **more)[0]

        curvature = {
            "rbf": -1,
            "matern12": None,
            "matern32": -3,
            "matern52": -5 / 3,
            "rational_quadratic": -1,
            "periodic": -4 * np.pi**2 / 1.5**2,
        }[kind]
        assert jax.grad(k)(0.0) == 0
        if curvature is not None:
            second = jax.grad(jax.grad(k))(0.0)
            np.testing.assert_allclose(second, curvature / 0.7**2, rtol=1e-12)


@pytest.mark.thin(3)
@pytest.mark.parametrize("kind", ["periodic", "rational_quadratic", "matern32"])
def test_second_derivatives(kind):
    """Along a direction: forwards over reverse, and reverse over reverse."""
    with jax.enable_x64(True):
        x, y, v, l, s, e = map(jnp.asarray, operands(5, 4, 2, 1)(np.random.default_rng(0)))
        along = [jnp.cos(jnp.arange(a.size, dtype=a.dtype).reshape(a.shape)) for a in (x, l, e)]

        def f(x, l, e):
            return jnp.sum(jnp.sin(matmul(kind)(x, y, v, l, s, e)))

        def dense(x, l, e):
            return jnp.sum(jnp.sin(s * covariance(kind, x[:, None], y[None], l, e) @ v))

        @functools.partial(jax.jit, static_argnums=0)
        def twice(g, *at):
            slope = jax.grad(g, (0, 1, 2))
            _, pull = jax.vjp(slope, *at)
            return jax.jvp(slope, at, tuple(along))[1], pull(tuple(along))

        both = [jax.tree.leaves(twice(g, x, l, e)) for g in (f, dense)]
        for a, b in zip(*both, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_vmap_over_vectors_is_one_call():
    x = jnp.ones((4, 2))

    def f(v):
        return gp.covariance_matmul("rbf", x, x, v, length_scale=1.0)

    v = jnp.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(jax.vmap(f, 1, 1)(v), f(v))
    shown = str(kernels.explain(jax.vmap(f, 1, 1), v))
    assert "[4,6]" in shown and "batch of" not in shown


def test_factors_and_solves_are_exact():
    with jax.enable_x64(True):
        a = jnp.asarray([[4.0, 12, -16], [12, 37, -43], [-16, -43, 98]])
        l = gp.small_cholesky(a)
        np.testing.assert_allclose(l, [[2, 0, 0], [6, 1, 0], [-8, 5, 3]], rtol=1e-14)
        b = jnp.asarray([1.0, 2, 3])
        np.testing.assert_allclose(a @ gp.small_cholesky_solve(l, b), b, rtol=1e-10)
        np.testing.assert_allclose(l @ gp.small_triangular_solve(l, b), b, rtol=1e-12)
        found = gp.small_triangular_solve(l, b, transpose=True)
        np.testing.assert_allclose(l.T @ found, b, rtol=1e-12)


def test_what_is_not_definite_is_nan_alone_under_jit():
    a = np.stack([np.eye(3, dtype=np.float32)] * 20)
    a[7, 1, 1] = -1
    a[9, 0, 2] = a[9, 2, 0] = np.nan
    for l in (jax.jit(gp.small_cholesky)(a), gp.small_cholesky(a, check=False)):
        assert set(np.unique(np.argwhere(np.isnan(l))[:, 0])) == {7, 9}


def test_larger_matrices_go_to_xla():
    a = jnp.eye(65) * 4
    np.testing.assert_allclose(gp.small_cholesky(a), 2 * jnp.eye(65))
    if native.missing() is None:
        assert "up to 64 rows, not 65" in str(kernels.explain(gp.small_cholesky, a))


@pytest.mark.thin(2)
@pytest.mark.parametrize("kind", ["matern32", "rbf"])
def test_vecchia_is_exact_with_all_earlier_points(kind):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        n = 25
        x, y = jnp.asarray(rng.random((n, 2))), jnp.asarray(rng.standard_normal(n))
        neighbours = gp.ordered_neighbours(x, n - 1)

        def fast(x, l, s, noise, y):
            return gp.vecchia_log_likelihood(
                y, kind, x, neighbours, length_scale=l, variance=s, noise=noise
            )

        def dense(x, l, s, noise, y):
            k = s * covariance(kind, x[:, None], x[None], l, 1.0) + noise * jnp.eye(n)
            return jax.scipy.stats.multivariate_normal.logpdf(y, jnp.zeros(n), k)

        at = (x, jnp.asarray([0.3, 0.5]), jnp.asarray(1.3), jnp.asarray(0.05), y)
        found = [
            jax.tree.leaves(jax.jit(jax.value_and_grad(f, (0, 1, 2, 3, 4)))(*at))
            for f in (fast, dense)
        ]
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_ordered_neighbours_against_sorting():
    x = np.random.default_rng(0).standard_normal((300, 3))
    scale = np.array([1.0, 0.1, 10.0])
    found = np.asarray(gp.ordered_neighbours(x, 7, length_scale=scale))
    for i in range(300):
        r = (((x[:i] - x[i]) / scale) ** 2).sum(-1)
        want = np.argsort(r)[:7]
        assert (
            found[i, : len(want)].tolist() == want.tolist() and (found[i, len(want) :] == -1).all()
        )
    assert gp.ordered_neighbours(x[:0], 3).shape == (0, 3)
    assert gp.ordered_neighbours(x, 0).shape == (300, 0)


def test_vecchia_sums_stay_right_in_float32():
    n = 200_000
    x, neighbours = np.arange(n, dtype=np.float32)[:, None], np.arange(-1, n - 1)[:, None]
    y = np.full(n, 0.5, np.float32)

    def f(y):
        return gp.vecchia_log_likelihood(y, "matern12", x, neighbours, length_scale=2.0)

    r = np.exp(-0.5)
    s = np.array([1.0] + [1 - r**2] * (n - 1))
    left = 0.5 * np.array([1.0] + [1 - r] * (n - 1))
    exact = -0.5 * np.sum(left**2 / s + np.log(2 * np.pi * s))
    assert abs(float(f(y)) - exact) < 1e-6 * abs(exact)


# safe_cholesky


def test_safe_cholesky_reports_what_it_added():
    x = jnp.linspace(0, 1, 60)[:, None]
    k = covariance("rbf", x[:, None], x[None], 0.5, 1.0)
    assert jnp.isnan(jnp.linalg.cholesky(k)).any()
    compiled = jax.jit(gp.safe_cholesky)
    for f in (gp.safe_cholesky, compiled):
        l, jitter = f(k)
        assert jitter == np.float32(1e-5)
        np.testing.assert_allclose(l @ l.T, k + jitter * jnp.eye(60), atol=3e-6)
    batch = jnp.stack([k, jnp.eye(60), 1e6 * k])
    _, jitter = compiled(batch)
    np.testing.assert_allclose(jitter, [1e-5, 0, 10], rtol=1e-5)
    assert jnp.isnan(compiled(k.at[3, 3].set(jnp.nan))[1])
    assert gp.safe_cholesky(jnp.zeros((0, 0)))[0].shape == (0, 0)


def test_safe_cholesky_takes_the_least_rung():
    with jax.enable_x64(True):
        a = jnp.diag(jnp.asarray([2.0, 1.0, -1e-4]))
        _, jitter = gp.safe_cholesky(a)
        mean = (3 - 1e-4) / 3
        np.testing.assert_allclose(jitter, 1e-3 * mean, rtol=1e-6)  # 1e-4 of the mean is too little


def test_safe_cholesky_has_cholesky_s_derivatives():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        a = rng.standard_normal((5, 5))
        a, w = jnp.asarray(a @ a.T + np.eye(5)), jnp.asarray(rng.standard_normal((5, 5)))
        f = [
            lambda a, g=g: jnp.sum(w * g(a))
            for g in (lambda a: gp.safe_cholesky(a)[0], jnp.linalg.cholesky)
        ]
        twice = [jax.jit(lambda a, g=g: jax.jvp(jax.grad(g), (a,), (w + w.T,)))(a) for g in f]
        for found, exact in zip(*twice, strict=True):
            np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-10)
        singular = jnp.ones((3, 3))
        g = jax.grad(lambda s: jnp.sum(gp.safe_cholesky(s * singular)[0]))
        assert jnp.isfinite(g(1.0))


# dtypes, NaN, threads


def test_halves_are_computed_in_float32():
    x = jnp.arange(12.0, dtype=jnp.bfloat16).reshape(6, 2) / 8
    v = jnp.ones(6, jnp.bfloat16)
    out = gp.covariance_matmul("rbf", x, x, v, length_scale=jnp.bfloat16(0.5))
    wide = gp.covariance_matmul(
        "rbf", *(z.astype(jnp.float32) for z in (x, x, v)), length_scale=0.5
    )
    assert out.dtype == jnp.bfloat16 and (out == wide.astype(jnp.bfloat16)).all()
    w, s = gp.nearest_neighbour_weights(
        "rbf", x, preceding(6, 2), length_scale=jnp.bfloat16(0.5), noise=jnp.bfloat16(0.1)
    )
    assert w.dtype == s.dtype == jnp.bfloat16
    assert gp.small_cholesky(jnp.eye(3, dtype=jnp.bfloat16)).dtype == jnp.bfloat16
    assert gp.safe_cholesky(jnp.eye(3, dtype=jnp.float16))[0].dtype == jnp.float16


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_where_it_is(kind):
    x, y, v, l, s, e = operands(20, 30, 2, 2)(np.random.default_rng(0))
    x[3, 1] = np.nan
    out = np.asarray(matmul(kind)(x, y, v, l, s, e))
    assert np.isnan(out[3]).all() and np.isfinite(np.delete(out, 3, 0)).all()
    v[2, 1] = np.nan
    out = np.asarray(matmul(kind)(np.delete(x, 3, 0), y, v, l, s, e))
    assert np.isnan(out[:, 1]).all() and np.isfinite(out[:, 0]).all()
    assert np.isnan(np.asarray(matmul(kind)(y, y, v, l * np.nan, s, e))).all()


PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
import jax, numpy as np, hashlib
from kernel_cases_gp import matmul, operands, weights, preceding, field, definite, factor
rng = np.random.default_rng(0)
found = []
def note(f, *args):
    args = [np.asarray(a, np.float32) for a in args]
    out, pull = jax.vjp(jax.jit(f), *args)
    found.extend(map(np.asarray, jax.tree.leaves((out, pull(out)))))
note(matmul("matern52"), *operands(3000, 700, 2, 2)(rng))
note(weights("rational_quadratic", preceding(1500, 6)), *field(1500, 2)(rng))
note(factor, *definite(500, n=9)(rng))
print(hashlib.sha256(b"".join(f.tobytes() for f in found)).hexdigest())
np.savez({out!r}, *found)
"""


def run(tmp_path, name, *, cpus=None, **environment):
    out = str(tmp_path / f"{name}.npz")
    program = PROGRAM.format(tests=os.path.dirname(os.path.abspath(__file__)), out=out)
    command = [*(["taskset", "-c", cpus] if cpus else []), sys.executable, "-c", program]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip(), list(np.load(out).values())


@needs_native
def test_same_bits_for_any_number_of_threads(tmp_path):
    bits, _ = run(tmp_path, "all")
    assert run(tmp_path, "one", cpus=str(min(os.sched_getaffinity(0))))[0] == bits


@pytest.mark.slow
@needs_native
def test_close_ones_for_any_processor(tmp_path):
    _, exact = run(tmp_path, "all")
    for isa in ("portable", "avx2"):
        for a, b in zip(run(tmp_path, isa, VARAX_ISA=isa)[1], exact, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * abs(b).max())


# Errors, each before any native code runs.

X, V = np.ones((4, 2)), np.ones(4)
EARLIER = np.full((4, 3), -1)
BAD_INDEX = np.array([[-1, -1], [0, -1], [1, 2], [0, 1]])


def product(kind="rbf", x=X, y=X, v=V, length_scale=1.0, **more):
    return gp.covariance_matmul(kind, x, y, v, length_scale=length_scale, **more)


def nearest(kind="rbf", x=X, neighbours=EARLIER, length_scale=1.0, **more):
    return gp.nearest_neighbour_weights(kind, x, neighbours, length_scale=length_scale, **more)


SHAPE, VALUE, DTYPE = errors.KernelShapeError, errors.KernelValueError, errors.KernelDtypeError
WRONG = [
    (SHAPE, r"(?s)x must hold one point in each row.*x\[:, None\]", lambda: product(x=V)),
    (SHAPE, r"(?s)y must hold one point.*\[n, 2\].*\[4, 3\]", lambda: product(y=np.ones((4, 3)))),
    (SHAPE, "v must have a row for each point of y", lambda: product(v=np.ones(3))),
    (SHAPE, "one length scale, or one for each", lambda: product(length_scale=np.ones(3))),
    (SHAPE, "variance must be a scalar", lambda: product(variance=np.ones(2))),
    (SHAPE, "alpha must be a scalar", lambda: product("rational_quadratic", alpha=np.ones(2))),
    (VALUE, "(?s)no such covariance.*rbf, matern12.*cosine", lambda: product("cosine")),
    (VALUE, "length_scale must be positive", lambda: product(length_scale=[1.0, 0.0])),
    (VALUE, "variance must be zero or positive", lambda: product(variance=-1.0)),
    (VALUE, "period must be positive", lambda: product("periodic", period=-1.0)),
    (VALUE, "periodic covariance needs period", lambda: product("periodic")),
    (VALUE, "rbf covariance has no alpha", lambda: product(alpha=1.0)),
    (DTYPE, "must be real", lambda: product(v=V * 1j)),
    (SHAPE, "neighbours must have a row", lambda: nearest(neighbours=EARLIER[:3])),
    (DTYPE, "Indices are integers", lambda: nearest(neighbours=EARLIER * 1.0)),
    (VALUE, r"(?s)precede.*neighbours\[2, 1\] = 2", lambda: nearest(neighbours=BAD_INDEX)),
    (VALUE, "precede its point", lambda: nearest(neighbours=EARLIER - 1)),
    (SHAPE, "noise must be a scalar", lambda: nearest(noise=np.ones(4))),
    (VALUE, "noise must be zero or positive", lambda: nearest(noise=-1.0)),
    (
        SHAPE,
        "one value for each",
        lambda: gp.vecchia_log_likelihood(V[:2], "rbf", X, EARLIER, length_scale=1.0),
    ),
    (VALUE, "cannot be negative", lambda: gp.ordered_neighbours(X, -1)),
    (SHAPE, "a must be square", lambda: gp.small_cholesky(X)),
    (SHAPE, "right-hand sides do not fit", lambda: gp.small_cholesky_solve(np.eye(3), V)),
    (SHAPE, r"(?s)b\[None\]", lambda: gp.small_cholesky_solve(np.ones((2, 4, 4)), X)),
    (SHAPE, "a must be square", lambda: gp.safe_cholesky(X)),
    (VALUE, "ladder of jitters is empty", lambda: gp.safe_cholesky(np.eye(2), first=1.0)),
    (
        errors.NotPositiveDefiniteError,
        r"(?s)a\[1\] is not.*minor of order 2 of 3.*add 0\.\d to the diagonal, 0.\d of the mean",
        lambda: gp.small_cholesky(np.stack([np.eye(3), np.diag([1, -0.4, 1])])),
    ),
    (
        errors.NotPositiveDefiniteError,
        "(?s)even with 0.1 of its mean.*minor of order 1 of 2.*raise `last`",
        lambda: gp.safe_cholesky(np.diag([-1.0, 2.0])),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), WRONG, ids=[w[1][-25:] for w in WRONG])
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_the_jitter_that_would_do_does():
    with pytest.raises(errors.NotPositiveDefiniteError) as caught:
        gp.small_cholesky(np.ones((6, 6), np.float32) - 0.3 * np.eye(6, dtype=np.float32))
    told = float(str(caught.value).split("add ")[1].split()[0])
    a = np.ones((6, 6)) - 0.3 * np.eye(6) + told * np.eye(6)
    assert told <= 0.4 and np.isfinite(gp.small_cholesky(a)).all()
