"""Every estimator alone against exact values, over the laws that it serves.

`test_mean` is the main one: value and gradient are unbiased with elements that the objective
couples, that it treats apart, and mixed; without the derivative of its weights (or of its values)
the same test fails. The engine has no part in this file.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from estimator_cases import CASES
from estimator_checks import (
    check_case,
    estimates,
    exact,
    exact_mean,
    law_of,
    program,
    surrogate,
    value_and_slope,
)
from gradient_checks import (
    QUICKLY,
    check_biased,
    check_exact,
    check_mean,
    exactly,
    hessian,
    tolerance,
)
from jax.nn import sigmoid, softplus
from jax.scipy.special import digamma

from varax import dist as d
from varax import estimators as est
from varax.ppl.onehot import OneHotCategorical
from varax.transforms.errors import EnumerationError, EstimatorError, NotReparameterizableError
from varax.transforms.estimators.implicit import von_mises_slope
from varax.transforms.estimators.subset import leave_out


def wave(r):
    """A surrogate of all entries together."""
    return (jnp.sin(3 * r) + r).sum()


def waves(r):
    """One of each entry apart."""
    return jnp.sin(3 * r) + r


RELAX, RELAXES = est.RELAX(wave, 0.5), est.RELAX(waves, 0.5)
MIXED = ("joint", "lanes")
ALL = ("joint", "apart", "lanes")
MASKED = ("masked",)
W, V = "weights", "values"

MEANS = [  # estimator, law, what the broken twin has no derivative of, layouts
    (est.MeasureValued(), "normal", W, ALL),
    (est.MeasureValued(coupled_noise=False), "normal", W, MASKED),
    (est.MeasureValued(), "lognormal", W, MIXED),
    (est.MeasureValued(), "exponential", W, MIXED),
    (est.MeasureValued(), "gamma", W, MIXED),
    (est.MeasureValued(coupled_noise=False), "gamma", W, MASKED),
    (est.MeasureValued(), "poisson", W, MIXED),
    (est.MeasureValued(), "bernoulli", W, MIXED),
    (est.MeasureValued(), "bernoulli-logits", W, MASKED),
    (est.MeasureValued(), "categorical", W, ALL),
    (est.MeasureValued(), "categorical-logits", W, MASKED),
    (est.MeasureValued(), "binomial", W, MIXED),
    (est.REBAR(0.5, 0.9), "bernoulli", W, MIXED),
    (est.REBAR(0.5), "bernoulli-logits", V, ALL),
    (est.REBAR(0.6, 0.8), "one-hot", W, MIXED),
    (est.REBAR(0.6), "one-hot", W, MASKED),
    (RELAX, "bernoulli-logits", W, MIXED),
    (RELAXES, "bernoulli-logits", W, MASKED),
    (RELAXES, "bernoulli", W, ("apart",)),
    (RELAX, "categorical", W, MIXED),
    (RELAX, "one-hot", W, MASKED),
    (est.ARM(), "bernoulli", W, MIXED),
    (est.ARM(), "bernoulli-logits", W, MASKED),
    (est.DisARM(), "bernoulli", W, MASKED),
    (est.DisARM(), "bernoulli-logits", W, ALL),
    (est.Antithetic(), "normal", V, MIXED),
    (est.Antithetic(), "lognormal", V, MASKED),
    (est.Antithetic(), "exponential", V, MIXED),
    (est.Antithetic(), "gumbel", V, MASKED),
    (est.Antithetic(), "logistic", V, ("joint",)),
    (est.Antithetic(), "laplace", V, ("joint",)),
    (est.Antithetic(), "uniform", V, ("joint",)),
    (est.SumAndSample(1), "bernoulli-logits", W, MIXED),
    (est.SumAndSample(2), "categorical", W, ALL),
    (est.SumAndSample(2, baseline=False), "one-hot", W, MASKED),
    (est.SumAndSample(3), "binomial", W, ("lanes",)),
    (est.WithoutReplacement(2), "bernoulli", W, ("lanes",)),
    (est.WithoutReplacement(2), "categorical-logits", W, ALL),
    (est.WithoutReplacement(4), "categorical", W, MASKED),
    (est.WithoutReplacement(3, baseline=False), "one-hot", W, ("lanes",)),
    (est.Implicit(), "von-mises", V, ("lanes",)),
    (est.Implicit(), "mixture", V, MIXED),
    (est.Implicit(), "mixture-of-families", V, MASKED),
    (est.Rejection(), "gamma-log", W, ("joint",)),
    (est.Rejection(2), "gamma", V, ("lanes",)),
    (est.Rejection(), "beta", V, MASKED),
]


def name_of(x):
    if isinstance(x, est.Estimator):
        return type(x).__name__
    return "-".join(x) if isinstance(x, tuple) else None


@pytest.mark.parametrize("estimator, law, broken, layouts", MEANS, ids=name_of)
def test_mean(estimator, law, broken, layouts):
    check_case(law, estimator, (broken,), layouts)


IN_FLOAT64 = [
    (est.MeasureValued(), "normal", W),
    (est.REBAR(0.5), "bernoulli-logits", W),
    (est.WithoutReplacement(2), "categorical", W),
    (est.Implicit(), "mixture", V),
]


@pytest.mark.parametrize("estimator, law, broken", IN_FLOAT64, ids=name_of)
def test_mean_in_float64(estimator, law, broken):
    with jax.enable_x64(True):
        check_case(law, estimator, (broken,), ("lanes",))


@pytest.mark.parametrize("law", ["one-hot", "categorical", "bernoulli-logits"])
@pytest.mark.parametrize(
    "estimator", [est.SumAndSample(27), est.WithoutReplacement(8)], ids=name_of
)
def test_subset_of_all_values_is_exact(estimator, law):
    layout = "joint" if law == "bernoulli-logits" else "apart"
    (draws,) = estimates([program(law, layout, estimator)], draws=100)
    check_exact(draws, exact(law, layout))


# ---- derivatives of the second order

SECOND = [
    (est.REBAR(0.5), "bernoulli-logits", W),
    (RELAX, "bernoulli-logits", W),
    (est.SumAndSample(1), "categorical", W),
    (est.WithoutReplacement(2), "categorical-logits", W),
    (est.Antithetic(), "gumbel", V),
    (est.Implicit(), "mixture", V),
    (est.Implicit(), "von-mises", V),
    (est.Rejection(), "gamma-log", V),
]


@pytest.mark.parametrize("estimator, law, broken", SECOND, ids=name_of)
def test_second_derivatives(estimator, law, broken):
    """Where the order allows it; on the objective with apart elements, which is the cheapest."""
    right, twin = (program(law, "apart", estimator, b) for b in ((), (broken,)))
    theta = (0.3, -0.4)
    draws = 10_000 if law == "von-mises" else 50_000

    def one(key, t):
        return [jax.hessian(p, 1)(key, t) for p in (right, twin)]

    run = jax.jit(jax.vmap(one, in_axes=(0, None)), compiler_options=QUICKLY)
    keys = jax.random.split(jax.random.key(1), draws)
    found, wrong = (np.asarray(x) for x in run(keys, jnp.array(theta)))
    expected = exactly(lambda t: exact_mean(law, "apart", t), theta, hessian)
    check_mean(found, expected)
    check_biased(wrong, expected)


def test_those_of_the_first_order_say_so():
    assert all(e.order == 1 for e in (est.MeasureValued(), est.ARM(), est.DisARM()))


# ---- one draw against its formula, at the same noise


def drawn(make, parameters, estimator, coupled=True):
    """The law of elements given parameters, as a function of them."""
    n = len(jnp.shape(jax.tree.leaves(parameters)[0]))
    return law_of(make, parameters, estimator, (), (coupled,) * n)


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

    def estimate(p, estimator):
        return surrogate(drawn(normal, p, estimator), estimator, KEY, quadratic)

    p = jnp.array([LOGITS, [0.1, -0.3, 0.2]])
    x = drawn(normal, p, est.Reparam()).rsample(KEY)
    e = (x - p[0]) / jnp.exp(p[1])
    slope = jax.grad(lambda x: quadratic(x).sum())(x)
    close(jax.grad(estimate)(p, est.Reparam()), jnp.stack([slope, slope * e * jnp.exp(p[1])]))
    score = jnp.stack([e / jnp.exp(p[1]), e**2 - 1])
    close(jax.grad(estimate)(p, est.Score()), quadratic(x) * score)


def test_one_draw_of_measure_valued(x64):
    """c (k(x+) - k(x-)), one coupled element at a time."""
    estimator = est.MeasureValued()

    def law(p):
        return drawn(lambda p: d.Normal(p[0], jnp.exp(p[1])), p, estimator)

    p = jnp.array([LOGITS, [0.1, -0.3, 0.2]])
    values = estimator.branch(KEY, law(p)).values  # base, up of each, down of each, wide of each
    k = jax.vmap(quadratic)(values)[:, 0]
    base, up, down, wide = k[0], k[1:4], k[4:7], k[7:10]
    np.testing.assert_array_equal(np.asarray(values[1:] != values[0]), np.tile(np.eye(3), (3, 1)))
    close(jnp.diag(values[1:4] + values[4:7]), 2 * p[0])  # the two sides mirror each other
    expected = [(up - down) / (jnp.exp(p[1]) * np.sqrt(2 * np.pi)), wide - base]
    found = jax.grad(lambda p: surrogate(law(p), estimator, KEY, quadratic))(p)
    close(found, jnp.stack(expected))


def test_one_draw_of_disarm(x64):
    estimator = est.DisARM()

    def law(l):
        return drawn(lambda l: d.Bernoulli(logits=l), l, estimator)

    l = jnp.asarray(LOGITS, float)
    b1, b2 = estimator.branch(KEY, law(l)).values.astype(float)
    expected = (quadratic(b1) - quadratic(b2)) * (b1 - b2) * sigmoid(jnp.abs(l)) / 2
    assert (expected != 0).any()
    close(jax.grad(lambda l: surrogate(law(l), estimator, KEY, quadratic))(l), expected)


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
    found = jax.grad(lambda l: surrogate(law(l), estimator, KEY, quadratic))(l)
    close(found, score + eta * (path - given_path))


# ---- variance


def toy(b):
    return ((b - 0.499) ** 2).sum(keepdims=True)


def gradients(estimator, cost, make, parameters, draws=20_000):
    def one(key, p):
        law = drawn(make, p, estimator)
        return jax.grad(lambda p: surrogate(drawn(make, p, estimator), estimator, key, cost))(p)

    keys = jax.random.split(jax.random.key(0), draws)
    return np.asarray(jax.jit(jax.vmap(one, (0, None)))(keys, jnp.asarray(parameters, float)))


def test_order_of_variances_of_coins():
    """E[sum (b - 0.499)^2] of three coins."""
    estimators = {
        "score": est.Score(),
        "arm": est.ARM(),
        "disarm": est.DisARM(),
        "rebar": est.REBAR(0.5),
        "relax": est.RELAX(lambda r: toy(r)[0], 0.5),
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
    assert max(v["rebar"], v["relax"]) < v["score"] / 10, v
    assert max(v["two"], v["top"]) < v["score"], v
    assert v["mvd"] < v["score"], v
    (p,) = (sigmoid(np.array([0.3, -0.2, 0.1])),)
    for draws in found.values():
        check_mean(draws, np.asarray(p * (1 - p) * 0.002))


def test_coupled_noise_of_measure_valued_derivatives():
    """For a smooth cost its standard deviation is at most 0.64 times that of separate noise."""

    def cost(x):
        return jnp.sin(x).sum(keepdims=True) + (x**2).sum(keepdims=True) / 4

    def make(p):
        return d.Normal(p[0], jnp.exp(p[1]))

    sd = [
        gradients(est.MeasureValued(coupled), cost, make, [[0.2, -0.5], [0.1, -0.4]]).std(0)
        for coupled in (True, False)
    ]
    assert (sd[0] <= 0.64 * sd[1]).all(), sd[0] / sd[1]


def test_antithetic_pairs_are_worth_more_than_two_draws():
    def make(p):
        return d.Normal(p[0], jnp.exp(p[1]))

    pair, one = (
        gradients(e, lambda x: jnp.exp(x / 2).sum(keepdims=True), make, [[0.2], [0.1]]).var(0)
        for e in (est.Antithetic(), est.Reparam())
    )
    assert (pair[0] < 0.25 * one[0]).all()


def test_more_boosts_leave_less_to_the_score():
    def weight(boosts):
        def log_weight(a, key):
            estimator = est.Rejection(boosts)
            return estimator.draw(key, drawn(lambda a: d.Gamma(a, 1.0), a, estimator)).log_weight

        keys = jax.random.split(KEY, 10_000)
        return jax.vmap(jax.grad(log_weight), (None, 0))(1.5, keys).std()

    assert weight(4) < weight(1) / 2 < weight(0) / 2


# ---- tuning


@pytest.mark.parametrize("family", ["rebar", "relax"])
def test_squared_gradient_tunes_the_control(family):
    """sum(gradient^2) is a parabola in what scales the control; its derivative is the parabola's."""

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


# ---- draws that are vectors


def check_vector(make, estimator, cost, mean, theta, broken, draws=50_000):
    def one(broken):
        def estimate(key, t):
            law = law_of(lambda t: make(t), t, estimator, (), (True,))
            return surrogate(law, estimator, key, lambda x: cost(x, t)[None], broken)

        return value_and_slope(estimate)

    keys = jax.random.split(jax.random.key(0), draws)
    run = jax.jit(jax.vmap(lambda k, t: [one(())(k, t), one(broken)(k, t)], (0, None)))
    right, wrong = (np.asarray(x) for x in run(keys, jnp.asarray(theta, float)))
    expected = exactly(mean, tuple(theta))
    check_mean(right, expected)
    check_biased(wrong, expected)
    return right, expected


def tril(t):
    return jnp.stack([jnp.stack([jnp.exp(t[0]), 0 * t[0]]), jnp.stack([t[1], 0.8 + 0 * t[0]])])


def two_normals(t):
    return d.MultivariateNormal(jnp.stack([t, -t[::-1]]), scale_tril=tril(t))


A = np.array([[1.0, 0.6], [0.6, -0.5]])


def form(x, t):
    return jnp.einsum("ni,ij,nj", x, A, x) + x[0, 0] * x[1, 1] ** 2


def mean_form(t):
    s, m = tril(t) @ tril(t).T, jnp.stack([t, -t[::-1]])
    return (
        2 * jnp.trace(A @ s) + jnp.einsum("ni,ij,nj", m, A, m) + m[0, 0] * (m[1, 1] ** 2 + s[1, 1])
    )


def test_multivariate_normal_pairs():
    check_vector(two_normals, est.Antithetic(), form, mean_form, (0.2, 0.5), (V,))


def test_multivariate_normal_sigma_points():
    found, expected = check_vector(
        two_normals, est.SigmaPoints(), form, mean_form, (0.2, 0.5), (V,), draws=10
    )
    check_exact(found, expected)


@pytest.mark.parametrize("boosts", [0, 2])
def test_dirichlet_by_rejection(boosts):
    def concentration(t):
        return jnp.exp(jnp.stack([t[0], t[1], 0.3 - t[0]]))

    def mean(t):  # E[log x] and E[x_1^2]
        a = concentration(t)
        n = a.sum()
        return (digamma(a) - digamma(n)) @ np.array([0.2, 0.1, 0.0]) + (
            3 * a[0] * (a[0] + 1) / (n * (n + 1))
        )

    def cost(x, t):
        return jnp.log(x[0]) @ np.array([0.2, 0.1, 0.0]) + 3 * x[0, 0] ** 2

    def make(t):
        return d.Dirichlet(concentration(t)[None])

    check_vector(make, est.Rejection(boosts), cost, mean, (0.8, 0.2), (V,))


@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_mixture_of_vectors(kind):
    def parts(t):
        loc = jnp.stack([t, jnp.array([0.5, -0.4])])
        return jax.nn.softmax(jnp.stack([t[0], t[1]])), loc, jnp.stack([tril(t), tril(-t)])

    def make(t):
        weights, loc, scale = parts(t)
        if kind == "independent":
            component = d.Normal(loc, jnp.abs(scale[:, 0, 0])[:, None]).to_event(1)
        else:
            component = d.MultivariateNormal(loc, scale_tril=scale)
        return d.MixtureSameFamily(d.Categorical(weights), component).expand([1])

    def cost(x, t):
        return x[0] @ A @ x[0] + jnp.cos(x[0] @ np.array([0.7, -0.4]))

    def mean(t):
        weights, loc, scale = parts(t)
        cov = jax.vmap(lambda l: l @ l.T)(scale)
        if kind == "independent":
            cov = jax.vmap(lambda l: jnp.eye(2) * l[0, 0] ** 2)(scale)
        b = np.array([0.7, -0.4])

        def one(m, c):
            return m @ A @ m + jnp.trace(A @ c) + jnp.cos(m @ b) * jnp.exp(-b @ c @ b / 2)

        return weights @ jax.vmap(one)(loc, cov)

    check_vector(make, est.Implicit(), cost, mean, (0.2, 0.5), (V,))
