"""Linear-Gaussian chains: every implementation, against dense Gaussians, and what is refused."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases_kalman import CASES, NAMES, chain
from kernel_checks import check, evaluated, implementations_of
from scipy.special import ndtri

from varax import kernels
from varax.kernels import errors, mp, native

NATIVE = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
FALSE_ALARM = 1e-6

OTHERS = ("parallel", "square_root")  # other algorithms, other rounding
OTHERS_TRY = (
    *("4-3", "3-2-varying-mask", "one step", "2-1-mask", "batch-mask"),
    *("4-2-varying-mask", "batch"),  # of the smoother
)
# What `make test` runs, one of each kind: each takes seconds, in which the plain form is compiled.
QUICK = {
    *(f"kalman_filter-{name}-native-float32" for name in ("3-1-filter", "large", "batch-y")),
    "kalman_filter-batch-shared-many-observed-native-float32",
    *(f"kalman_filter-{name}-native-float32" for name in ("no step", "batch-of-none")),
    *(
        f"kalman_filter-{name}-native-float64"
        for name in ("3-2-varying-mask", "batch-varying-mask", "batch-shared")
    ),
    "kalman_filter-8-1-filter-native-float32",
    *(f"kalman_filter-integrator-{name}-native-float32" for name in ("3-diffuse", "lanes")),
    "kalman_filter-9-1: no loops of this size-native-float32",
    "kalman_filter-3-2-varying-mask-parallel",
    "kalman_filter-4-3-square_root",
    "kalman_filter-one step-native-float64",
    "kalman_smoother-3-1-native-float64",
    "kalman_sample-3-1-native-float32",
    "kalman_sample-batch-native-float64",
    *(f"matern_log_likelihood-{name}-native-float32" for name in ("5:2-one", "3:2-none")),
    *(f"matern_log_likelihood-3:2-{name}-native-float64" for name in ("each noise", "batch")),
}


def variants():
    for case in CASES:
        for name in implementations_of(case.operation):
            if name in OTHERS and case.name not in OTHERS_TRY:
                continue
            for dtype in ("float64",) if name in OTHERS else ("float32", "float64"):
                id = f"{case}-{name}" if name in OTHERS else f"{case}-{name}-{dtype}"
                marks = [] if name in OTHERS else [NATIVE]
                marks += [] if id in QUICK else [pytest.mark.slow]
                yield pytest.param(case, name, dtype, marks=marks, id=id)


@pytest.mark.parametrize(("case", "implementation", "dtype"), list(variants()))
def test_every_implementation_is_the_definition(case, implementation, dtype):
    with jax.enable_x64(True):
        if implementation in OTHERS:
            both = evaluated(case, implementation, dtype), evaluated(case, "xla", dtype)
            for a, b in zip(*map(jax.tree.leaves, both), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * abs(b).max(initial=0))
        elif "9-1" in case.name:
            with pytest.raises(errors.ImplementationRefusedError, match="at most 8 states, not 9"):
                evaluated(case, implementation, dtype)
        else:
            check(case, implementation, jnp.dtype(dtype))


def joint(model, mask):
    """Mean and covariance of all states, and of all seen observations given and with them."""
    y, A, Q, H, R, m0, P0, b, d = model
    steps, n = len(y), len(m0)
    at = lambda x, core, t: x[t] if x.ndim > core else x  # noqa: E731
    mean, cov = np.zeros((steps, n)), np.zeros((steps, n, steps, n))
    mean[0], cov[0, :, 0] = m0, P0
    for t in range(1, steps):
        move = at(A, 2, t - 1)
        mean[t] = move @ mean[t - 1] + at(b, 1, t - 1)
        for s in range(t):
            cov[t, :, s] = move @ cov[t - 1, :, s]
            cov[s, :, t] = cov[t, :, s].T
        cov[t, :, t] = move @ cov[t - 1, :, t - 1] @ move.T + at(Q, 2, t - 1)
    big = np.zeros((steps, y.shape[1], steps, n))
    noise = np.zeros((steps, y.shape[1], steps, y.shape[1]))
    offset = np.zeros(y.shape)
    for t in range(steps):
        big[t, :, t], noise[t, :, t], offset[t] = at(H, 2, t), at(R, 2, t), at(d, 1, t)
    k = np.ravel(mask)
    big = big.reshape(-1, steps * n)[k]
    noise = noise.reshape(y.size, y.size)[np.ix_(k, k)]
    return mean.ravel(), cov.reshape(steps * n, -1), big, noise, y.ravel()[k] - offset.ravel()[k]


def posterior(model, mask):
    """Log-likelihood, mean and covariance of all states given all seen observations."""
    mean, cov, big, noise, y = joint(model, mask)
    S, v = big @ cov @ big.T + noise, y - big @ mean
    gain = np.linalg.solve(S, big @ cov).T
    ll = -0.5 * (v @ np.linalg.solve(S, v) + np.linalg.slogdet(2 * np.pi * S)[1])
    return ll, mean + gain @ v, cov - gain @ big @ cov


@pytest.mark.parametrize("implementation", ["native", "xla", "parallel", "square_root"])
def test_it_is_the_dense_gaussian(implementation):
    if implementation == "native" and native.missing():
        pytest.skip(native.missing())
    rng = np.random.default_rng(0)
    n, steps = 3, 6
    model = chain(rng, n, 2, steps, varying=True)
    mask = rng.random((steps, 2)) < 0.7
    with jax.enable_x64(True), kernels.using(implementation):
        used = kernels.explain(lambda y: mp.kalman_smoother(y, *model[1:7]), model[0]).uses
        assert [use.chosen["cpu"] for use in used] == [implementation]
        found = mp.kalman_filter(*model[:7], b=model[7], d=model[8], mask=mask)
        smooth = mp.kalman_smoother(*model[:7], b=model[7], d=model[8], mask=mask)
    ll, mean, cov = posterior(model, mask)
    np.testing.assert_allclose(found.log_likelihood, ll, rtol=1e-10)
    np.testing.assert_allclose(smooth.log_likelihood, ll, rtol=1e-10)
    np.testing.assert_allclose(smooth.means.ravel(), mean, rtol=1e-8, atol=1e-9)
    blocks = np.stack([cov.reshape(steps, n, steps, n)[t, :, t] for t in range(steps)])
    np.testing.assert_allclose(smooth.covariances, blocks, rtol=1e-7, atol=1e-9)
    for t in range(steps):
        past = np.where(np.arange(steps)[:, None] <= t, mask, False)
        _, mean, cov = posterior(model, past)
        np.testing.assert_allclose(found.means[t], mean.reshape(steps, n)[t], rtol=1e-8, atol=1e-9)
        block = cov.reshape(steps, n, steps, n)[t, :, t]
        np.testing.assert_allclose(found.covariances[t], block, rtol=1e-7, atol=1e-9)


def scalar_model(steps, dtype=jnp.float32):
    rng = np.random.default_rng(1)
    A = np.array([[0.99, 0.1], [-0.1, 0.95]])
    arrays = (
        rng.standard_normal(steps),
        A,
        0.1 * np.eye(2),
        np.ones(2),
        0.5,
        np.zeros(2),
        np.eye(2),
    )
    return tuple(jnp.asarray(a, dtype) for a in arrays)


@pytest.mark.parametrize("implementation", ["native", "xla"])
def test_float32_is_right_at_a_million_steps(implementation):
    if implementation == "native" and native.missing():
        pytest.skip(native.missing())
    f = jax.jit(jax.value_and_grad(lambda *m: mp.kalman_log_likelihood(*m), argnums=(1, 2, 4)))
    steps = 1_000_000 if implementation == "native" else 100_000
    with jax.enable_x64(True), kernels.using(kalman_filter=implementation):
        model = scalar_model(steps)
        low, low_grad = f(*model)
        exact, grad = f(*(x.astype(jnp.float64) for x in model))
    assert abs(float(low) - float(exact)) < 1e-6 * steps  # a plain running sum: tens of nats
    for a, b in zip(low_grad, grad, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=1e-3, atol=1e-4 * steps**0.5)


def test_scalar_observations_may_be_written_without_axes():
    y, A, Q, H, R, m0, P0 = scalar_model(7)
    short = mp.kalman_filter(y, A, Q, H, R, m0, P0, mask=jnp.arange(7) != 3)
    full = mp.kalman_filter(
        y[:, None], A, Q, H[None], R[None, None], m0, P0, mask=(jnp.arange(7) != 3)[:, None]
    )
    for a, b in zip(short, full, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_masked_may_be_anything():
    y, *model = scalar_model(7)
    seen = jnp.arange(7) != 3
    f = lambda y: mp.kalman_log_likelihood(y, *model, mask=seen)  # noqa: E731
    ll, dy = jax.value_and_grad(f)(y.at[3].set(jnp.nan))
    assert float(ll) == float(f(y)) and dy[3] == 0 and jnp.isfinite(dy).all()


@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("batch", [None, 5])
def test_nan_propagates(implementation, batch):
    if implementation == "native" and native.missing():
        pytest.skip(native.missing())
    y, *model = scalar_model(70)
    y = y.at[3].set(jnp.nan)
    f = jax.grad(lambda y: mp.kalman_log_likelihood(y, *model))
    with kernels.using(kalman_filter=implementation):
        if batch is None:
            assert jnp.isnan(mp.kalman_log_likelihood(y, *model)) and jnp.isnan(f(y)[0])
        else:
            g = jax.vmap(lambda y: mp.kalman_log_likelihood(y, *model))
            out = g(jnp.stack([y, *[jnp.nan_to_num(y)] * (batch - 1)]))
            assert jnp.isnan(out[0]) and jnp.isfinite(out[1:]).all()
        bad = mp.kalman_log_likelihood(jnp.nan_to_num(y), *model[:-1], jnp.full((2, 2), jnp.nan))
        assert jnp.isnan(bad)


@NATIVE
def test_residuals_of_lanes_are_not_taken_for_others():
    def likelihood(y):
        return mp.kalman_log_likelihood(y, *scalar_model(20)[1:])

    def pulled(pullback, cotangent):
        return pullback(cotangent)[0]

    ys, ones = jnp.stack([scalar_model(20)[0]] * 3), jnp.ones(3)
    failed = ValueError, jax.errors.JaxRuntimeError  # by version of JAX
    with jax.enable_x64(False), kernels.using(kalman_filter="native"):
        together = jax.vmap(lambda y: jax.vjp(likelihood, y)[1])(ys)
        apart = jax.lax.map(lambda y: jax.vjp(likelihood, y)[1], ys)
        right = jax.vmap(pulled)(together, ones)
        np.testing.assert_array_equal(right[0], right[2])
        np.testing.assert_allclose(jax.grad(likelihood)(ys[0]), right[0], rtol=1e-5, atol=1e-6)
        of_cotangents = jax.vmap(jax.vjp(likelihood, ys[0])[1])(ones)[0]
        np.testing.assert_array_equal(of_cotangents[1], jax.grad(likelihood)(ys[0]))
        with pytest.raises(failed, match="filtered one by one"):
            jax.block_until_ready(jax.vmap(pulled)(apart, ones))
        with pytest.raises(failed, match=r"inside the same jax\.vmap"):
            jax.block_until_ready(pulled(jax.tree.map(lambda x: x[0], together), 1.0))
    with kernels.using(kalman_filter="xla"):  # a pullback keeps the implementation of its value
        np.testing.assert_array_equal(jax.vmap(pulled)(together, ones), right)


@NATIVE
def test_series_of_one_model_have_their_covariances_computed_once():
    y, *model = scalar_model(40)
    ys = jnp.stack([y, 2 * y, -y])

    def likelihoods(ys, *model):
        return jax.vmap(mp.kalman_log_likelihood, (0,) + (None,) * 6)(ys, *model)

    def total(ys, *model):
        return likelihoods(ys, *model) @ jnp.arange(3.0)

    def calls(f):
        text = jax.jit(f).lower(ys, *model).compile().as_text()
        return sorted(re.findall(r'custom_call_target="varax_(\w+)"', text))

    gradient = jax.grad(total, range(7))
    both = ["kalman_means_f32", "kalman_value_f32"]
    assert calls(likelihoods) == both
    back = ["kalman_adjoint_f32", "kalman_means_adjoint_f32"]
    assert calls(jax.value_and_grad(total, range(7))) == sorted(both + back)
    # the gradient of each series is that of lanes, and of their batch's sum the sum of those
    of_each = jax.vmap(jax.grad(mp.kalman_log_likelihood, range(7)), (0,) + (None,) * 6)
    assert calls(of_each) == ["kalman_adjoint_f32", *both]
    each = jax.jit(of_each)(ys, *model)
    for a, b in zip(jax.jit(gradient)(ys, *model)[1:], each[1:], strict=True):
        np.testing.assert_allclose(a, b[1] + 2 * b[2], rtol=2e-4, atol=1e-4 * abs(a).max())


def test_bfloat16_goes_in_and_comes_out():
    model = [x.astype(jnp.bfloat16) for x in scalar_model(20)]
    found = mp.kalman_filter(*model)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    exact = mp.kalman_filter(*(x.astype(jnp.float32) for x in model))
    np.testing.assert_allclose(found.means.astype(jnp.float32), exact.means, rtol=1e-2, atol=1e-2)


@NATIVE
def test_second_derivatives_are_the_definition_s():
    with jax.enable_x64(True):
        model = scalar_model(12, jnp.float64)
        f = lambda R, A: mp.kalman_log_likelihood(*model[:1], A, *model[2:4], R, *model[5:])  # noqa: E731
        both = []
        at, along = (model[4], model[1]), (1.0, jnp.array([[0.3, -1.0], [0.7, 0.2]]))
        for name in ("native", "xla"):
            with kernels.using(kalman_filter=name):
                both.append(jax.jit(partial(jax.jvp, jax.grad(f, (0, 1))))(at, along)[1])
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_square_root_form_stands_where_the_covariance_form_falls():
    # a vague prior and a precise sensor: a condition number of 1e10 in float32
    A = np.array([[1, 1, 0.5], [0, 1, 1], [0, 0, 1]])
    y = np.array([1.0, 2.5, 4.7, 7.4, 11.0, 15.2, 19.9, 25.6])
    model = (y, A, 1e-4 * np.eye(3), np.array([1.0, 0, 0]), 1e-4, np.zeros(3), 1e6 * np.eye(3))
    with jax.enable_x64(True):
        exact = mp.kalman_filter(*(jnp.asarray(x, jnp.float64) for x in model))
        errors_of = {}
        for name in ("square_root", "xla"):
            with kernels.using(kalman_filter=name):
                low = mp.kalman_filter(*(jnp.asarray(x, jnp.float32) for x in model))
            size = abs(np.asarray(exact.covariances))[2:].max()
            gap = abs(np.asarray(low.covariances, np.float64) - exact.covariances)[2:].max() / size
            errors_of[name] = gap
            if name == "square_root":
                values = np.linalg.eigvalsh(np.asarray(low.covariances, np.float64))
                rounding = 3 * np.finfo(np.float32).eps * values.max(-1)  # of L L' itself
                assert (values.min(-1) > -rounding).all()
    assert errors_of["square_root"] < 0.05
    assert not errors_of["xla"] < 0.05


def test_draws_are_from_the_posterior():
    rng = np.random.default_rng(3)
    model = chain(rng, 2, 1, 4, varying=True)
    n = 50_000
    with jax.enable_x64(True):
        noise = jax.random.normal(jax.random.key(0), (n, 4, 2))
        draw = jax.jit(lambda e: mp.kalman_sample(e, *model[:7], b=model[7], d=model[8]))
        draws = draw(noise).reshape(n, -1)
    _, mean, cov = posterior(model, np.ones((4, 1), bool))
    centred = np.asarray(draws) - mean
    bound = ndtri(1 - FALSE_ALARM / (2 * 8))
    assert (abs(centred.mean(0)) < bound * np.sqrt(np.diag(cov) / n)).all()
    biased = centred + 0.05 * np.sqrt(np.diag(cov))
    assert not (abs(biased.mean(0)) < bound * np.sqrt(np.diag(cov) / n)).all()
    products = centred[:, :, None] * centred[:, None, :]
    z = (products.mean(0) - cov) / (products.std(0) / np.sqrt(n))
    assert (abs(z) < ndtri(1 - FALSE_ALARM / 128)).all()


@pytest.mark.thin(2)
@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
def test_a_draw_is_affine_in_its_noise_with_the_posterior_s_covariance(mask):
    model, mask = chain(np.random.default_rng(4), 2, 1, 4), np.array(mask, bool)[:, None]

    def f(noise):
        return mp.kalman_sample(noise, *model[:7], b=model[7], d=model[8], mask=mask).ravel()

    with jax.enable_x64(True):
        at_zero, root = jax.jit(lambda e: (f(e), jax.jacfwd(f)(e)))(jnp.zeros((4, 2)))
        root = root.reshape(8, 8)
        _, mean, cov = posterior(model, mask)
        np.testing.assert_allclose(at_zero, mean, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(root @ root.T, cov, rtol=1e-8, atol=1e-9)


KIND = {
    "1/2": lambda r: np.exp(-r),
    "3/2": lambda r: (1 + r) * np.exp(-r),
    "5/2": lambda r: (1 + r + r * r / 3) * np.exp(-r),
}


@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("kind", list(KIND))
def test_matern_is_the_dense_process(implementation, kind):
    if implementation == "native" and native.missing():
        pytest.skip(native.missing())
    rng = np.random.default_rng(5)
    t = np.cumsum(rng.exponential(size=30) * rng.choice([0, 1e-6, 0.1, 3], 30))
    y = rng.standard_normal(30)
    rate = {"1/2": 1, "3/2": 3, "5/2": 5}[kind] ** 0.5
    S = 1.7 * KIND[kind](rate * abs(t[:, None] - t) / 0.8) + 0.09 * np.eye(30)
    exact = -0.5 * (y @ np.linalg.solve(S, y) + np.linalg.slogdet(2 * np.pi * S)[1])
    with jax.enable_x64(True), kernels.using(matern_log_likelihood=implementation):
        found = mp.matern_log_likelihood(t, y, kind, 1.7, 0.8, 0.3)
    np.testing.assert_allclose(found, exact, rtol=1e-11)


def test_matern_times_that_decrease_under_jit_are_nan():
    t = jnp.array([0.0, 2.0, 1.0])
    for name in ("native", "xla") if not native.missing() else ("xla",):
        with kernels.using(matern_log_likelihood=name):
            f = jax.jit(lambda t: mp.matern_log_likelihood(t, t, "3/2", 1.0, 1.0, 0.1))
            assert jnp.isnan(f(t)), name


SHAPE = errors.KernelShapeError
GOOD = dict(zip(NAMES, chain(np.random.default_rng(0), 2, 1, 4), strict=True))
WRONG = [
    ({"A": np.eye(3)}, SHAPE, r"A does not fit.*\n.*A\[n, n\] or A\[t - 1, n, n\], n = 2"),
    ({"H": np.ones((2, 2))}, SHAPE, "H does not fit"),
    ({"Q": np.ones((4, 2, 2))}, SHAPE, r"Q does not fit(.*\n)*.*t - 1 = 3"),
    ({"m0": np.eye(2)}, SHAPE, "initial mean is not a vector"),
    ({"y": np.ones((2, 2, 2))}, SHAPE, "not a series"),
    ({"mask": np.ones(5, bool)}, SHAPE, "mask does not fit"),
    ({"mask": np.ones(4)}, errors.KernelDtypeError, "no truth values"),
    ({"y": np.ones((4, 1), complex)}, errors.KernelDtypeError, "y is not an array of real"),
    ({"P0": np.diag([1.0, -1.0])}, errors.NotPositiveDefiniteError, "-1 in its leading 2 x 2"),
    ({"R": -np.ones((1, 1))}, errors.NotPositiveDefiniteError, "R is not positive semi-definite"),
    ({"Q": np.array([[1, 0.5], [0, 1]])}, errors.NotPositiveDefiniteError, "Q is not symmetric"),
    (
        {"Q": np.stack([np.eye(2), -np.eye(2), np.eye(2)])},
        errors.NotPositiveDefiniteError,
        r"Q\[1\] is not positive",
    ),
]


@pytest.mark.parametrize(("change", "error", "match"), WRONG)
@pytest.mark.parametrize("function", [mp.kalman_filter, mp.kalman_smoother])
def test_wrong_arguments_are_refused(change, error, match, function):
    with pytest.raises(error, match=match):
        function(**(GOOD | change))


def test_wrong_noise_is_refused():
    with pytest.raises(SHAPE, match="noise does not fit"):
        mp.kalman_sample(np.ones((3, 2)), **GOOD)
    with pytest.raises(SHAPE, match=r"of key[\s\S]*jax.random.normal\(key, "):
        mp.kalman_sample(jax.random.key(0), **GOOD)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"kind": "7/2"}, errors.KernelValueError, "No such Matern"),
        (
            {"times": np.array([0.0, 2, 1])},
            errors.KernelValueError,
            r"times\[2\] - times\[1\] = -1",
        ),
        ({"length_scale": 0.0}, errors.KernelValueError, "length_scale is not positive"),
        ({"noise_sd": -1.0}, errors.KernelValueError, "noise_sd is not positive"),
        ({"y": np.ones(4)}, SHAPE, "do not fit one another"),
        ({"noise_sd": np.ones(2)}, SHAPE, "do not fit one another"),
    ],
)
def test_wrong_matern_arguments_are_refused(change, error, match):
    good = {"times": np.arange(3.0), "y": np.ones(3), "kind": "3/2"}
    with pytest.raises(error, match=match):
        mp.matern_log_likelihood(
            **(good | {"variance": 1.0, "length_scale": 1.0, "noise_sd": 0.1} | change)
        )


PROGRAM = """
import jax, numpy as np
from varax.kernels import mp
from kernel_cases_kalman import chain
from jax import numpy as jnp
model = [jnp.asarray(x, jnp.float32) for x in chain(np.random.default_rng(0), 3, 1, 50)]
ys = jnp.asarray(np.random.default_rng(1).standard_normal((37, 50, 1)), jnp.float32)
def f(y, *rest):
    return mp.kalman_log_likelihood(y, *rest[:6], b=rest[6], d=rest[7])
g = jax.vmap(jax.value_and_grad(f, argnums=(0, 1, 2)), (0,) + (None,) * 8)
own = jax.vmap(jax.value_and_grad(f, argnums=(0, 1, 2)), (0, 0) + (None,) * 7)
together = jax.value_and_grad(lambda *model: g(*model)[0].sum(), argnums=(0, 1, 2, 3, 4))
t = jnp.arange(99.0)
@jax.jit
def all_of(ys, *model):
    matern = mp.matern_log_likelihood(t, jnp.sin(t), "5/2", 1.0, 3.0, 0.1)
    A = model[1] * jnp.linspace(0.9, 1, len(ys))[:, None, None]
    series = g(ys, *model[1:]), own(ys, A, *model[2:]), together(ys, *model[1:])
    return jax.tree.leaves((series, jax.value_and_grad(f)(*model), matern))
np.savez({!r}, *map(np.asarray, all_of(ys, *model)))
"""


@NATIVE
def test_threads_and_instruction_sets(tmp_path):
    """The same bits for one thread and several; the same numbers for other instruction sets."""
    results = {}
    root = os.path.dirname(os.path.abspath(__file__))
    for name, change in {
        "all": {},
        "one": {"NPROC": "1"},
        "portable": {"VARAX_ISA": "portable"},
        "avx2": {"VARAX_ISA": "avx2"},
    }.items():
        file = str(tmp_path / f"{name}.npz")
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        env = os.environ | change | {"PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", PROGRAM.format(file)], check=True, env=env)
        with np.load(file) as saved:
            results[name] = [saved[k] for k in saved.files]
    for a, b in zip(results["all"], results["one"], strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("portable", "avx2"):
        for a, b in zip(results["all"], results[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * abs(a).max())


@NATIVE
@pytest.mark.parametrize("noise", [(), (150,)])
def test_a_matern_gradient_is_the_same_whatever_else_is_wanted(noise):
    rng = np.random.default_rng(0)
    times, y = np.cumsum(rng.exponential(size=150)), rng.standard_normal(150)
    given = [times, y, 1.3, 2.0, 0.3 + rng.random(noise)]

    def likelihood(times, y, variance, length_scale, noise_sd):
        return mp.matern_log_likelihood(times, y, "5/2", variance, length_scale, noise_sd)

    with jax.enable_x64(True), kernels.using("native"):
        whole = jax.jit(jax.grad(likelihood, (0, 1, 2, 3, 4)))(*given)
        for i, of_all in enumerate(whole):
            np.testing.assert_array_equal(jax.jit(jax.grad(likelihood, i))(*given), of_all)
