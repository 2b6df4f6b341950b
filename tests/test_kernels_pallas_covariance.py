"""The Pallas forms of covariance_matmul, interpreted, by the rule that all implementations obey."""

import functools

import jax
import jax.numpy as jnp
import kernel_checks
import numpy as np
import pallas_forms
import pytest

from varax import kernels
from varax.kernels.gp import covariance_matmul
from varax.kernels.gp.profiles import KINDS
from varax.kernels.pallas import covariance, profiles


def case(name, kind, n, m, d, k, axes=None, offset=0.0, scale=1.0):
    extra = {"rational_quadratic": "alpha", "periodic": "period"}.get(kind)

    def function(x, y, v, length_scale, variance, e):
        more = {extra: e} if extra else {}
        return covariance_matmul(
            kind, x, y, v, length_scale=length_scale, variance=variance, **more
        )

    def arrays(rng):
        def draw(i, *shape):
            batch = () if axes is None or axes[i] is None else (3,)
            return rng.standard_normal((*batch, *shape))

        return (
            offset + scale * draw(0, n, d),
            offset + scale * draw(1, m, d),
            draw(2, m, k),
            scale * np.exp(0.3 * draw(3, d)),
            np.exp(draw(4)),
            np.exp(0.5 * draw(5)),
        )

    return kernel_checks.Case(f"{kind}-{name}", "covariance_matmul", function, arrays, axes)


CASES = [
    case("blocks", "rational_quadratic", 260, 520, 1, 1),
    case("shared-x", "periodic", 6, 5, 2, 2, axes=(None, 0, 0, None, None, 0)),
]
MORE = [
    *(case("small", kind, 5, 7, 2, 2) for kind in KINDS),
    case("blocks", "matern32", 300, 600, 3, 3),
    case("one", "matern32", 1, 1, 1, 1),
    case("batch", "matern52", 6, 5, 2, 2, axes=(0, 0, 0, 0, 0, None)),
    *(case("blocks", kind, 300, 600, 3, 3) for kind in KINDS if kind != "matern32"),
    case("far", "matern52", 40, 30, 2, 1, offset=1e4),
    case("wide", "rbf", 9, 130, 20, 130),
    case("tiny-scale", "rational_quadratic", 20, 20, 2, 1, scale=1e-6),
]


def check_on_tpu(case):
    with jax.enable_x64(True), pallas_forms.interpreted_tpu(covariance) as name:
        kernel_checks.check(case, name, jnp.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_tpu_kernel_equals_the_definition(case):
    check_on_tpu(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=str)
def test_the_tpu_kernel_equals_the_definition_in_more_cases(case):
    check_on_tpu(case)


def absolute_sums(kind, batched, operands, cotangent):
    """Sum over i, j of the absolute value of what entry K_ij adds to each result.

    K v adds K_ij v_jk; the cotangent of theta adds (dK_ij / dtheta) w_ij, w = c v^T. In float32 an
    entry and its slope are wrong by some units of rounding of their own size, and so is each sum.
    """

    def one(x, y, v, scale, variance, extra, c):
        def matrix(x, y, scale, variance, extra):
            unit = jnp.eye(y.shape[0])
            return covariance.operation.definition(x, y, unit, scale, variance, extra, kind=kind)[0]

        at = (x, y, scale, variance, extra)
        k, w = abs(matrix(*at)), abs(c) @ abs(v).T
        slopes = jax.jacobian(matrix, (0, 1, 2, 3, 4))(*at)
        of_x, of_y, *rest = (jnp.tensordot(w, abs(slope), 2) for slope in slopes)
        return k @ abs(v), of_x, of_y, k.T @ abs(c), *rest

    axes = [0 if has else None for has in batched] + [0 if any(batched) else None]
    f = jax.vmap(one, axes) if any(batched) else one
    return [np.asarray(x) for x in jax.jit(f)(*map(jnp.asarray, (*operands, cotangent)))]


def gpu(kind, n, m, d, k, batched=None):
    rng = np.random.default_rng(0)
    batched = batched or (False,) * 6
    shapes = ((n, d), (m, d), (m, k), (d,), (), ())
    operands = [
        rng.standard_normal((2,) * has + shape) for has, shape in zip(batched, shapes, strict=True)
    ]
    operands[3:] = [np.exp(0.3 * x) for x in operands[3:]]
    with jax.enable_x64(True):
        sizes = functools.partial(absolute_sums, kind, batched)
        pallas_forms.check_interpreted_gpu(covariance, operands, batched, sizes, kind=kind)


@pytest.mark.parametrize("kind", ["rational_quadratic"])
def test_the_gpu_kernel_equals_the_definition(kind):
    gpu(kind, 5, 7, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(5, 7, 2, 2), (70, 50, 3, 6), (1, 1, 1, 1)], ids=str)
def test_the_gpu_kernel_equals_the_definition_in_more_cases(kind, size):
    gpu(kind, *size)


@pytest.mark.slow
def test_the_gpu_kernel_takes_a_batch():
    gpu("matern52", 5, 7, 2, 2, (True, False, True, False, True, False))


def test_a_nan_stays_in_its_row():
    x, v = jnp.arange(6.0).reshape(6, 1).at[2].set(jnp.nan), jnp.ones((6, 1))
    f = functools.partial(covariance_matmul, "rbf", length_scale=1.0)
    with pallas_forms.interpreted_tpu(covariance) as n, kernels.using(covariance_matmul=n):
        out = f(x, jnp.ones((6, 1)), v)
    assert (np.isnan(np.asarray(out)[:, 0]) == (np.arange(6) == 2)).all()


@pytest.mark.slow_in_float64
@pytest.mark.parametrize("kind", KINDS)
def test_the_profiles_are_those_of_the_definition(kind, x64):
    from varax.kernels.gp.profiles import profile

    s = jnp.asarray([0.0, 1e-12, 1e-3, 0.5, 3.0, 80.0])
    alpha = jnp.asarray(1.7)
    resolution = float(jnp.finfo(s.dtype).eps)

    def value(s, alpha):
        return profile(kind, s, alpha)

    for sqrt in (jnp.sqrt, profiles.sqrt_by_rsqrt):
        got = profiles.profile(kind, s, alpha, sqrt)
        np.testing.assert_allclose(got, value(s, alpha), rtol=200 * resolution)
        slope = profiles.slope(kind, s, alpha, sqrt)
        expected = jax.vmap(jax.grad(value), (0, None))(s, alpha)
        np.testing.assert_allclose(slope, expected, rtol=200 * resolution)
    if kind == "rational_quadratic":
        expected = jax.vmap(jax.grad(value, 1), (0, None))(s, alpha)
        got = profiles.alpha_slope(s, alpha)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=8 * resolution)


@pytest.mark.parametrize("x", [0.0, 1.0, 2.0, 1e-36, 1e30, np.inf, np.nan])
def test_a_root_by_its_reciprocal(x):
    got = profiles.sqrt_by_rsqrt(jnp.float32(x))
    np.testing.assert_allclose(got, np.sqrt(np.float32(x)), rtol=3e-7, atol=1e-25)


def test_what_is_refused():
    def reasons(d=2, k=1, dtype=jnp.float32, n=5, platform="tpu"):
        x, y, v = (jax.ShapeDtypeStruct(s, dtype) for s in ((n, d), (7, d), (7, k)))
        scale = jnp.ones((), dtype)
        f = functools.partial(covariance_matmul, "rbf", length_scale=scale)
        (use,) = kernels.explain(f, x, y, v, platform=platform).uses
        return use.reasons[platform]["pallas"]

    assert reasons() is None
    assert "at most 32 dimensions, not 33" in reasons(d=33)
    assert "at most 512 vectors, not 513" in reasons(k=513)
    assert "has nothing to do" in reasons(n=0)
    with jax.enable_x64(True):
        assert "float32, not float64" in reasons(dtype=jnp.float64)
    assert "needs to know the GPU" in reasons(platform="cuda")
    with kernels.pallas.cuda_capability("9.0"):
        assert reasons(platform="cuda") is None
        assert "at most 16 dimensions" in reasons(d=17, platform="cuda")
    with kernels.pallas.cuda_capability("8.0"):
        assert "needs compute capability 9.0 (Hopper), not 8.0" in reasons(platform="cuda")
