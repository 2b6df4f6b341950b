"""Gradients of expectations are unbiased: one site of each kind, and two sites that interact.

Means over 50,000 draws against enumeration and quadrature over densities written here by hand.
Each estimator has a broken twin that fails the same test.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import (
    DEFAULT_DISCRETE,
    DEFAULT_SMOOTH,
    ENUMERATE,
    REPARAM,
    SCORE,
    check,
    label,
    mean_coin,
    mean_normal,
)
from jax.nn import sigmoid, softmax, softplus
from jax.scipy.special import betaln, gammaln

import varax as vx
from varax import dist as d

THETA = (0.3, -0.4)

# ---- one site: (distribution of theta, log density by hand, nodes, estimators with their twins)

GRID = np.linspace(-30, 30, 6001)  # the trapezoid rule is exact to rounding for what decays
REAL = (GRID, np.full(GRID.shape, 0.01))
POSITIVE = (np.exp(GRID), 0.01 * np.exp(GRID))
UNIT = (1 / (1 + np.exp(-GRID)), 0.01 / (2 + np.exp(GRID) + np.exp(-GRID)))


def counts(n):
    return np.arange(float(n)), np.ones(n)


def normal(x, t):
    return -(((x - t[0]) / jnp.exp(t[1])) ** 2) / 2 - t[1] - np.log(2 * np.pi) / 2


def gamma(x, t):
    a, b = jnp.exp(t[0] + 0.5), jnp.exp(t[1])
    return a * jnp.log(b) + (a - 1) * jnp.log(x) - b * x - gammaln(a)


def beta(x, t):
    a, b = jnp.exp(t[0] + 0.5), jnp.exp(t[1] + 0.5)
    return (a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x) - betaln(a, b)


def bernoulli(x, t):
    return x * t[0] - softplus(t[0])


def three(t):
    return jnp.array([t[0], t[1], 0.0])


def categorical(x, t):
    return jnp.log(softmax(three(t)))[x.astype(int)]


def poisson(x, t):
    return x * t[0] - jnp.exp(t[0]) - gammaln(x + 1)


def binomial(x, t):
    choose = gammaln(6.0) - gammaln(x + 1) - gammaln(6 - x)
    return choose + x * t[0] - 5 * softplus(t[0])


def geometric(x, t):  # failures before the first success
    return jnp.log(sigmoid(t[0])) + x * jnp.log(sigmoid(-t[0]))


SMOOTH = (REPARAM, SCORE)
FINITE = (SCORE, ENUMERATE)
INFINITE = (SCORE,)

ONE_SITE = {
    "normal": (lambda t: d.Normal(t[0], jnp.exp(t[1])), normal, REAL, (*SMOOTH, DEFAULT_SMOOTH)),
    "lognormal": (
        lambda t: d.LogNormal(t[0], jnp.exp(t[1])),
        lambda x, t: normal(jnp.log(x), t) - jnp.log(x),
        POSITIVE,
        SMOOTH,
    ),
    "gamma": (lambda t: d.Gamma(jnp.exp(t[0] + 0.5), jnp.exp(t[1])), gamma, POSITIVE, SMOOTH),
    "beta": (lambda t: d.Beta(jnp.exp(t[0] + 0.5), jnp.exp(t[1] + 0.5)), beta, UNIT, SMOOTH),
    "bernoulli": (lambda t: d.Bernoulli(sigmoid(t[0])), bernoulli, counts(2), FINITE),
    "bernoulli-logits": (
        lambda t: d.Bernoulli(logits=t[0]),
        bernoulli,
        counts(2),
        (*FINITE, DEFAULT_DISCRETE),
    ),
    "categorical": (lambda t: d.Categorical(softmax(three(t))), categorical, counts(3), FINITE),
    "categorical-logits": (
        lambda t: d.Categorical(logits=three(t)),
        categorical,
        counts(3),
        FINITE,
    ),
    "poisson": (
        lambda t: d.Poisson(jnp.exp(t[0])),
        poisson,
        counts(60),
        (SCORE, DEFAULT_DISCRETE),
    ),
    "binomial": (lambda t: d.Binomial(5, sigmoid(t[0])), binomial, counts(6), FINITE),
    "binomial-logits": (lambda t: d.Binomial(5, logits=t[0]), binomial, counts(6), FINITE),
    "geometric": (lambda t: d.Geometric(sigmoid(t[0])), geometric, counts(200), INFINITE),
    "geometric-logits": (lambda t: d.Geometric(logits=t[0]), geometric, counts(200), INFINITE),
}
IN_FLOAT64 = ("normal", "gamma", "bernoulli-logits", "categorical", "geometric")


def one_site_cases():
    return [
        (name, pair, x64)
        for name, (*_, pairs) in ONE_SITE.items()
        for pair in pairs
        for x64 in ((False, True) if name in IN_FLOAT64 else (False,))
    ]


@pytest.mark.thin(3)
@pytest.mark.parametrize("name, estimators, x64", one_site_cases(), indirect=["x64"], ids=label)
def test_one_site(name, estimators, x64):
    distribution, log_density, (nodes, weights), _ = ONE_SITE[name]

    def cost(x, theta):
        return jnp.sin(x) / 2 + jnp.exp(theta[1]) * x

    def program(theta, estimator):
        return cost(vx.sample("x", distribution(theta), estimator=estimator), theta)

    def mean(theta):
        return weights @ (jnp.exp(log_density(nodes, theta)) * cost(nodes, theta))

    check(program, mean, THETA, *((e,) for e in estimators))


# ---- several elements in one site


def matrix(theta):
    return jnp.array([[jnp.exp(theta[2]), 0.0], [theta[3], 0.8]])


@pytest.mark.parametrize("estimators", [REPARAM, SCORE], ids=label)
@pytest.mark.parametrize("form", ["covariance_matrix", "scale_tril"])
def test_multivariate_normal(form, estimators, x64):
    a, b = np.array([[1.0, 0.6], [0.6, -0.5]]), np.array([0.7, -0.4])

    def program(theta, estimator):
        tril = matrix(theta)
        scale = tril if form == "scale_tril" else tril @ tril.T
        law = d.MultivariateNormal(theta[:2], **{form: scale})
        x = vx.sample("x", law, estimator=estimator)
        return x @ a @ x + jnp.cos(x @ b)

    def mean(theta):
        m, cov = theta[:2], matrix(theta) @ matrix(theta).T
        return m @ a @ m + jnp.trace(a @ cov) + jnp.cos(m @ b) * jnp.exp(-b @ cov @ b / 2)

    check(program, mean, (0.3, -0.4, 0.1, 0.5), *((e,) for e in estimators))


@pytest.mark.parametrize("estimators", [SCORE, ENUMERATE, DEFAULT_DISCRETE], ids=label)
@pytest.mark.parametrize("event", [0, 1])
def test_batch_of_coins_that_the_objective_couples(event, estimators):
    def program(theta, estimator):
        coins = d.Bernoulli(logits=theta * jnp.array([1.0, 2.0, -1.0]))
        x = vx.sample("x", coins.to_event(event), estimator=estimator)
        return x.sum() ** 2 + x[0] * theta[0]

    def mean(theta):
        def total(x, y, z):
            return (x + y + z) ** 2 + x * theta[0]

        def given(x, y):
            return mean_coin(lambda z: total(x, y, z), -theta[0])

        return mean_coin(lambda x: mean_coin(lambda y: given(x, y), 2 * theta[0]), theta[0])

    check(program, mean, (0.3,), *((e,) for e in estimators))


# ---- two sites: each kind feeds each kind, each estimator meets each

KINDS = {
    "normal": (lambda u: d.Normal(u, 0.7), lambda g, u: mean_normal(g, u, 0.7)),
    "coin": (lambda u: d.Bernoulli(logits=u), mean_coin),
}
HALVES = [("normal", REPARAM), ("normal", SCORE), ("coin", SCORE), ("coin", ENUMERATE)]


def pair_cases():
    pairs = [(*a, *b, False) for a in HALVES for b in HALVES]
    mixed = [(*a, *b, True) for a, b in zip(HALVES, HALVES[::-1], strict=True)]
    return [*pairs, *mixed]


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "first, e_first, second, e_second, x64", pair_cases(), indirect=["x64"], ids=label
)
def test_pair_of_estimators(first, e_first, second, e_second, x64):
    """The second site's parameter depends on the first's value; the cost couples them."""
    (law_x, mean_x), (law_y, mean_y) = KINDS[first], KINDS[second]

    def cost(x, y, theta):
        return jnp.sin(x + y) + x * y + theta[0] * y

    def program(theta, of_x, of_y):
        x = vx.sample("x", law_x(theta[0]), estimator=of_x)
        y = vx.sample("y", law_y(theta[1] + 0.9 * x), estimator=of_y)
        return cost(x, y, theta)

    def mean(theta):
        def given(x):
            return mean_y(lambda y: cost(x, y, theta), theta[1] + 0.9 * x)

        return mean_x(given, theta[0])

    right = (e_first[0], e_second[0])
    check(program, mean, THETA, right, (e_first[1], right[1]), (right[0], e_second[1]))
