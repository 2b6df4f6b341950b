"""Estimators: one draw against its formula, variances, tuning, and the pieces of some of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from estimator_checks import law_of, surrogate
from gradient_checks import check_mean, tolerance
from jax.nn import sigmoid

from varax import dist as d
from varax import estimators as est
from varax.transforms.estimators.implicit import von_mises_slope
from varax.transforms.estimators.subset import leave_out

# ---- one draw against its formula, at the same noise


def drawn(make, parameters, estimator):
    """The law given parameters; its elements are coupled."""
    return law_of(make, parameters, estimator, (), None)


def close(found, expected):
    tol = 10 * tolerance(found.dtype) if found.dtype == np.float64 else 2e-5
    np.testing.assert_allclose(found, expected, rtol=tol, atol=tol)


KEY = jax.random.key(3)
LOGITS = np.array([0.4, -0.8, 1.3])


def quadratic(b):
    return (b.sum(keepdims=True) - 1.3) ** 2 + 0.3 * b[:1]


def test_one_draw_of_score_and_reparam(x64):
    def normal(p):
        return d.Normal(p[0], jnp.exp(p[1]))

    def slope_of(estimator):
        def estimate(p):
            return surrogate(drawn(normal, p, estimator), estimator, KEY, quadratic)

        return jax.jit(jax.grad(estimate))(p)

    p = jnp.array([LOGITS, [0.1, -0.3, 0.2]])
    x = drawn(normal, p, est.Reparam()).rsample(KEY)
    e = (x - p[0]) / jnp.exp(p[1])
    slope = jax.grad(lambda x: quadratic(x).sum())(x)
    close(slope_of(est.Reparam()), jnp.stack([slope, slope * e * jnp.exp(p[1])]))
    score = jnp.stack([e / jnp.exp(p[1]), e**2 - 1])
    close(slope_of(est.Score()), quadratic(x) * score)


def test_one_draw_of_measure_valued(x64):
    """c (k(x+) - k(x-)), one coupled element at a time."""
    estimator = est.MeasureValued()

    def law(p):
        return drawn(lambda p: d.Normal(p[0], jnp.exp(p[1])), p, estimator)

    p = jnp.array([LOGITS, [0.1, -0.3, 0.2]])
    values = estimator.branch(KEY, law(p)).values  # the draw; five changes of each element
    np.testing.assert_array_equal(np.asarray(values[1:] != values[0]), np.tile(np.eye(3), (5, 1)))
    base, wide, *pairs = jnp.split(values, [1, 4, 7, 10, 13])
    mirrored = [jnp.diag(x) for x in pairs]
    close(mirrored[0] + mirrored[1], 2 * p[0])
    close(mirrored[2] + mirrored[3], 2 * p[0])
    base, wide, up, down, up2, down2 = (jax.vmap(quadratic)(x)[:, 0] for x in (base, wide, *pairs))
    mean = (up - down + up2 - down2) / 2
    expected = [mean / (jnp.exp(p[1]) * np.sqrt(2 * np.pi)), wide - base]
    found = jax.jit(jax.grad(lambda p: surrogate(law(p), estimator, KEY, quadratic)))(p)
    close(found, jnp.stack(expected))


def test_one_draw_of_disarm(x64):
    estimator = est.DisARM()

    def law(l):
        return drawn(lambda l: d.Bernoulli(logits=l), l, estimator)

    l = jnp.asarray(LOGITS, float)
    b1, b2 = estimator.branch(KEY, law(l)).values.astype(float)
    expected = (quadratic(b1) - quadratic(b2)) * (b1 - b2) * sigmoid(jnp.abs(l)) / 2
    assert (expected != 0).any()
    close(jax.jit(jax.grad(lambda l: surrogate(law(l), estimator, KEY, quadratic)))(l), expected)


def test_one_draw_of_rebar(x64):
    """The paper's gradient, with its formulas for z and for z given b."""
    temperature, eta = 0.7, 0.8
    estimator = est.REBAR(temperature, eta)

    def law(l):
        return drawn(lambda l: d.Bernoulli(logits=l), l, estimator)

    l = jnp.asarray(LOGITS, float)
    b, r, r_given = estimator.branch(KEY, law(l)).values
    z = temperature * jnp.log(r / (1 - r))
    p = sigmoid(l)

    def given(v, l):
        odds = v / (1 - v)
        one = jnp.log(odds / (1 - sigmoid(l)) + 1)
        return jnp.where(b == 1, one, -jnp.log(odds / sigmoid(l) + 1))

    excess = jnp.expm1(jnp.abs(z)) * jnp.where(b == 1, 1 - p, p)
    v = excess / (1 + excess)
    np.testing.assert_array_equal(b, z > 0)
    close(r, r_given)
    close(given(v, l), z)

    def relaxed(z):
        return quadratic(sigmoid(z / temperature)).sum()

    u = sigmoid(z - l)
    path = jax.grad(lambda l: relaxed(l + jnp.log(u / (1 - u))))(l)
    given_path = jax.grad(lambda l: relaxed(given(v, l)))(l)
    score = (quadratic(b) - eta * relaxed(z)) * (b - p)
    found = jax.jit(jax.grad(lambda l: surrogate(law(l), estimator, KEY, quadratic)))(l)
    close(found, score + eta * (path - given_path))


# ---- variance


def toy(b):
    return ((b - 0.499) ** 2).sum(keepdims=True)


def gradients(estimator, cost, make, parameters, draws=20_000):
    def one(key, p):
        return jax.jit(
            jax.grad(lambda p: surrogate(drawn(make, p, estimator), estimator, key, cost))
        )(p)

    keys = jax.random.split(jax.random.key(0), draws)
    return np.asarray(jax.jit(jax.vmap(one, (0, None)))(keys, jnp.asarray(parameters, float)))


@pytest.mark.slow
def test_order_of_variances_of_coins():
    """E[sum (b - 0.499)^2] of three coins."""
    estimators = {
        "score": est.Score(),
        "arm": est.ARM(),
        "disarm": est.DisARM(),
        "rebar": est.REBAR(0.5),
        "relax": est.RELAX(lambda r: jnp.asarray(0.25 * r.size), 0.5),
        "mvd": est.MeasureValued(),
        "two": est.WithoutReplacement(2),
        "top": est.SumAndSample(2),
    }
    found = {
        name: gradients(e, toy, lambda l: d.Bernoulli(logits=l), [0.3, -0.2, 0.1])
        for name, e in estimators.items()
    }
    v = {name: x.var(0).sum() for name, x in found.items()}
    assert v["disarm"] <= v["arm"] <= v["score"], v
    assert v["rebar"] < v["score"] / 2, v
    assert max(v["relax"], v["two"], v["top"]) < v["score"] / 1000, v
    assert v["mvd"] < 1e-9, v  # the cost is a sum over coins, and each has two values
    (p,) = (sigmoid(np.array([0.3, -0.2, 0.1])),)
    for draws in found.values():
        check_mean(draws, np.asarray(p * (1 - p) * 0.002))


def test_coupled_noise_of_measure_valued_derivatives():
    """For smooth costs its standard deviation is at most 0.64 times that of separate noise."""

    def cost(x):  # of each element another one
        functions = (jnp.sin, jnp.cos, jnp.square, jax.nn.softplus, lambda x: jnp.exp(-(x**2)))
        return sum(f(x[i]) for i, f in enumerate(functions))[None]

    def make(p):
        return d.Normal(p[0], jnp.exp(p[1]))

    p = [[0.2, -0.5, 1.0, 0.3, 0.6], [-1.0, -0.4, 0.1, -1.0, 0.0]]
    sd = [gradients(est.MeasureValued(c), cost, make, p).std(0) for c in (True, False)]
    assert (sd[0] <= 0.64 * sd[1]).all(), sd[0] / sd[1]


def test_antithetic_pairs_are_worth_more_than_two_draws():
    def make(p):
        return d.Normal(p[0], jnp.exp(p[1]))

    pair, one = (
        gradients(e, lambda x: jnp.exp(x / 2).sum(keepdims=True), make, [[0.2], [0.1]]).var(0)
        for e in (est.Antithetic(), est.Reparam())
    )
    assert (pair[0] < 0.25 * one[0]).all()


@pytest.mark.slow
def test_more_boosts_leave_less_to_the_score():
    def weight(boosts):
        def log_weight(a, key):
            estimator = est.Rejection(boosts)
            return estimator.draw(key, drawn(lambda a: d.Gamma(a, 1.0), a, estimator)).log_weight

        keys = jax.random.split(KEY, 10_000)
        return jax.vmap(jax.grad(log_weight), (None, 0))(1.5, keys).std()

    assert weight(4) < weight(1) / 2 < weight(0) / 2


# ---- tuning


@pytest.mark.thin(2)
@pytest.mark.parametrize("family", ["rebar", "relax"])
def test_squared_gradient_tunes_the_control(family):
    """sum(gradient^2) is a parabola in what scales the control, and its derivative says so."""

    def estimator(scale):
        if family == "rebar":
            return est.REBAR(jnp.asarray(0.5), scale)
        return est.RELAX(jax.tree_util.Partial(lambda s, r: s * toy(r)[0], scale), 0.5)

    def gradient(scale, key):
        def estimate(l):
            law = drawn(lambda l: d.Bernoulli(logits=l), l, estimator(scale))
            held = law.estimator(law._held[0].estimator)
            return surrogate(law, held, key, toy)

        return jax.grad(estimate)(jnp.array([0.3, -0.2, 0.1]))

    def squared(scale):
        keys = jax.random.split(KEY, 2000)
        return (jax.vmap(gradient, (None, 0))(scale, keys) ** 2).sum(-1).mean()

    at = jnp.array([0.0, 0.5, 1.0])
    low, mid, high = jax.vmap(squared)(at)
    slope = jax.jit(jax.grad(squared))(0.3)
    second = 4 * (low - 2 * mid + high)
    close(slope, (high - low) + second * (0.3 - 0.5))
    assert slope < 0  # more control, less variance

    def objective(scale, key):
        law = drawn(lambda l: d.Bernoulli(logits=l), jnp.array([0.3, -0.2, 0.1]), estimator(scale))
        return surrogate(law, law.estimator(law._held[0].estimator), key, toy)

    assert abs(jax.grad(objective)(0.3, KEY)) < 1e-6  # the objective does not depend on it


# ---- pieces


def test_leave_out_ratios_by_permutations(x64):
    """P(S) as a sum over all orders of drawing its members."""
    p = np.array([0.1, 0.3, 0.05, 0.2])
    rest = 1 - p.sum()

    def probability(members, gone):
        return sum(
            np.prod([p[s] / (1 - gone - p[list(o[:i])].sum()) for i, s in enumerate(o)])
            for o in itertools.permutations(members)
        )

    members = range(4)
    first, second = map(np.asarray, jax.jit(leave_out)(jnp.log(p), jnp.log(rest)))
    whole = probability(members, 0.0)
    for s in members:
        without = [m for m in members if m != s]
        of_s = probability(without, p[s])
        close(first[s], of_s / whole)
        for t in without:
            left = [m for m in without if m != t]
            close(second[s, t], probability(left, p[s] + p[t]) / of_s)
        close(second[s, s], 1.0)
    close((p * first).sum().astype(first.dtype), 1.0)


@pytest.mark.parametrize("kappa", [1e-3, 0.5, 5.0, 200.0, 3000.0])
def test_slope_of_the_von_mises_law(kappa, x64):
    """Against adaptive quadrature, relative to its own size, from the mode to the far tail."""
    a = scipy.special.i1e(kappa) / scipy.special.i0e(kappa)
    sd = min(1 / np.sqrt(kappa), 1.0)
    y = sd * np.array([1e-3, 0.1, 0.7, 1.0, 1.3, 2.5])

    def integrand(t, y):
        rise = 2 * np.sin((y + t) / 2) * np.sin((y - t) / 2)
        return (np.cos(t) - a) * np.exp(kappa * rise)

    def integral(y):
        near = np.cos(y) > a
        ends = (0, y) if near else (y, min(np.pi, y + 12 * sd))
        found = scipy.integrate.quad(integrand, *ends, args=(y,), epsabs=0, epsrel=1e-12)[0]
        return -found if near else found

    expected = np.array([integral(x) for x in y])
    found = von_mises_slope(jnp.asarray(kappa, float), jnp.asarray(y, float))
    np.testing.assert_allclose(found, expected, rtol=1e-9 if x64 else 5e-6)
    np.testing.assert_allclose(von_mises_slope(kappa, -jnp.asarray(y, float)), -found, rtol=1e-6)


def test_rotation_trick(x64):
    """A rotation and a scale that take e to q; q in the forward pass; no derivative in q."""
    e, q = jax.random.normal(KEY, (2, 5, 4))

    def length(x):
        return np.linalg.norm(x, axis=-1)

    slopes = jax.jit(jax.vmap(jax.jacobian(est.rotation_trick, (0, 1))))
    np.testing.assert_array_equal(est.rotation_trick(e, q), q)
    e, q, (jacobian, of_q) = jax.tree.map(np.asarray, (e, q, slopes(e, q)))
    close(np.einsum("nij,nj->ni", jacobian, e), q)
    rotation = jacobian * (length(e) / length(q))[:, None, None]
    close(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(4), (5, 4, 4)))
    close(np.linalg.det(rotation), np.ones(5))
    assert not of_q.any()
    assert np.isfinite(slopes(np.stack([0 * q[0], -q[0], *e[2:]]), q)[0]).all()


def test_antithetic_uniforms_are_mirror_images(x64):
    law = drawn(lambda p: d.Exponential(p), jnp.ones(10_000), est.Antithetic())
    x, y = est.Antithetic().branch(KEY, law).values
    close(jnp.exp(-x) + jnp.exp(-y), jnp.ones(10_000))
    assert jnp.isfinite(x).all() and jnp.isfinite(y).all()
