"""Every estimator alone against exact values, over the laws that it serves.

`test_mean` is the main one: value and gradient are unbiased with elements that the objective
couples, that it treats apart, and mixed; without the derivative of its weights (or of its values)
the same test fails. The engine has no part in this file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
from gradient_checks import QUICKLY, check_biased, check_exact, check_mean, exactly, hessian
from jax.scipy.special import digamma

from varax import dist as d
from varax import estimators as est
from varax.ppl.onehot import OneHotCategorical
from varax.transforms.errors import EnumerationError, EstimatorError, NotReparameterizableError


def wave(r):
    """A surrogate of all entries together."""
    return (jnp.sin(3 * r) + r).sum()


def waves(r):
    """One of each entry apart."""
    return jnp.sin(3 * r) + r


RELAX, RELAXES = est.RELAX(wave, 0.5), est.RELAX(waves, 0.5)
MIXED = ("lanes",)  # lanes apart, the batch coupled
ALL = ("joint", "apart", "lanes")
MASKED = ("masked",)
W, V = "weights", "values"

MEANS = [  # estimator, law, what the broken twin has no derivative of, layouts
    (est.MeasureValued(), "normal", W, ALL),
    (est.MeasureValued(coupled_noise=False), "normal", W, MASKED),
    (est.MeasureValued(), "lognormal", W, MIXED),
    (est.MeasureValued(), "exponential", W, MIXED),
    (est.MeasureValued(), "gamma", W, MIXED),
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


LONG = ("Implicit", "Rejection", "WithoutReplacement")  # and all that is masked: in make test-all


def means():
    """`MEANS`, the long ones marked."""
    for case in MEANS:
        estimator, _, _, layouts = case
        slow = layouts == MASKED or type(estimator).__name__ in LONG
        yield pytest.param(*case, marks=[pytest.mark.slow] if slow else [])


def name_of(x):
    if isinstance(x, est.Estimator):
        return type(x).__name__
    return "-".join(x) if isinstance(x, tuple) else None


@pytest.mark.thin(6)
@pytest.mark.parametrize("estimator, law, broken, layouts", list(means()), ids=name_of)
def test_mean(estimator, law, broken, layouts):
    check_case(law, estimator, (broken,), layouts)


IN_FLOAT64 = [
    (est.MeasureValued(), "normal", W),
    (est.REBAR(0.5), "bernoulli-logits", W),
    (est.WithoutReplacement(2), "categorical", W),
    (est.Implicit(), "mixture", V),
]


@pytest.mark.slow
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
    pytest.param(est.SumAndSample(1), "categorical", W, marks=pytest.mark.slow),
    pytest.param(est.WithoutReplacement(2), "categorical-logits", W, marks=pytest.mark.slow),
    (est.Antithetic(), "gumbel", V),
    (est.Implicit(), "mixture", V),
    (est.Implicit(), "von-mises", V),
    (est.Rejection(), "gamma-log", V),
]


@pytest.mark.thin(3)
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


@pytest.mark.thin(2)
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


@pytest.mark.thin(2)
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


# ---- deterministic rules


@pytest.mark.thin(2)
@pytest.mark.parametrize("layout", ["joint", "apart", "lanes", "masked"])
@pytest.mark.parametrize(
    "estimator, law",
    [
        (est.GaussHermite(2), "normal-cubic"),
        (est.SigmaPoints(), "normal-cubic"),
        (est.SigmaPoints(0.5), "normal-cubic"),
        (est.GaussLegendre(2), "uniform-cubic"),
    ],
    ids=name_of,
)
def test_rules_are_exact_for_cubic_objectives(estimator, law, layout):
    right, twin = (program(law, layout, estimator, broken) for broken in ((), (V,)))
    found, wrong = estimates([right, twin], draws=2)
    check_exact(found, exact(law, layout))
    assert np.abs(wrong - exact(law, layout)).max() > 0.1
    assert estimator.approximate


@pytest.mark.parametrize(
    "few, many, law",
    [
        (est.GaussHermite(4), est.GaussHermite(16), "normal"),
        (est.GaussHermite(4), est.GaussHermite(16), "lognormal"),
        (est.GaussLegendre(4), est.GaussLegendre(16), "exponential"),
    ],
    ids=name_of,
)
def test_rules_converge(few, many, law):
    (a,), (b,) = estimates([program(law, "lanes", few), program(law, "lanes", many)], draws=1)
    expected = exact(law, "lanes")
    assert np.abs(b - expected).max() < 0.5 * np.abs(a - expected).max()


# ---- deliberately biased ones


def coins(t):
    return d.Bernoulli(logits=jnp.stack([t[0], t[1], 0.5 - t[0]]))


def letters(t):
    return OneHotCategorical(logits=jnp.stack([t[0], t[1], 0 * t[0]]))


def check_biased_estimator(make, estimator, cost, mean, agrees):
    """Value and gradient: which of the two have the right mean."""

    def estimate(key, t):
        law = law_of(make, t, estimator, (), None)
        return surrogate(law, estimator, key, cost)

    keys = jax.random.split(jax.random.key(0), 50_000)
    theta = (0.3, -0.7)
    found = np.asarray(jax.vmap(value_and_slope(estimate), (0, None))(keys, jnp.array(theta)))
    expected = exactly(mean, theta)
    value, slope = (found[:, :1], expected[:1]), (found[:, 1:], expected[1:])
    for part, right in zip((value, slope), agrees, strict=True):
        (check_mean if right else check_biased)(*part)


def square(x):
    return (x @ np.array([1.0, -2.0, 3.0])) ** 2


def mean_square(make):
    values = np.array(np.meshgrid(*[[0.0, 1.0]] * 3)).reshape(3, -1).T
    values = values if make is coins else np.eye(3)

    def mean(t):
        log_p = jax.vmap(make(t).log_prob)(values)
        return jnp.exp(log_p.sum(-1) if make is coins else log_p) @ jax.vmap(square)(values)

    return mean


@pytest.mark.parametrize("make", [coins, letters], ids=name_of)
def test_biased_estimators(make):
    concrete, hard = est.Concrete(jnp.asarray(0.5)), est.Concrete(0.5, hard=True)
    rows = [(hard, (True, False)), (concrete, (False, False)), (est.StopGradient(), (True, False))]
    if make is coins:  # straight-through is exact for a linear cost, and so for one-hot values
        rows.append((est.StraightThrough(), (True, False)))
    for inner, agrees in rows:
        if isinstance(inner, est.Concrete) and inner is concrete:
            inner = est.Concrete(0.5)
        check_biased_estimator(make, est.Biased(inner), square, mean_square(make), agrees)


def linear(x):
    return x @ np.array([1.0, -2.0, 3.0])


def test_straight_through_is_right_for_linear_objectives():
    def mean(t):
        return letters(t).probs @ np.array([1.0, -2.0, 3.0])

    check_biased_estimator(letters, est.Biased(est.StraightThrough()), linear, mean, (True, True))


def test_biased_says_what_it_is():
    assert est.Biased(est.StraightThrough()).biased and not est.Score().biased
    assert est.Biased(est.StraightThrough()).relaxes and est.Biased(est.StraightThrough()).pathwise
    assert not est.Biased(est.StopGradient()).relaxes
    arrays = law_of(coins, jnp.zeros(2), est.Biased(est.Concrete(jnp.asarray(0.5))), (), None)
    held = arrays.estimator(arrays._held[0].estimator)
    assert held.inner.temperature == 0.5  # the array inside is an operand of the site


# ---- refusals

CAUCHY, POISSON, NORMAL = d.Cauchy(0.0, 1.0), d.Poisson(2.0), d.Normal(0.0, 1.0)
MANY = d.Bernoulli(probs=jnp.full(17, 0.5))

REFUSALS = [  # estimator, distribution, kind of error, what it says
    (est.MeasureValued(), CAUCHY, EstimatorError, r"normal, log-normal.*got: +Cauchy.*Score\(\)"),
    (est.REBAR(0.5), POISSON, EstimatorError, "Bernoulli or a one-hot"),
    (est.REBAR(0.5), d.Categorical(np.ones(3) / 3), EstimatorError, "RELAX"),
    (RELAX, POISSON, EstimatorError, "finite support"),
    (est.ARM(), NORMAL, EstimatorError, "a Bernoulli law"),
    (est.DisARM(), d.Categorical(np.ones(3) / 3), EstimatorError, "WithoutReplacement"),
    (est.Antithetic(), d.Gamma(1.0, 1.0), NotReparameterizableError, "icdf"),
    (est.Antithetic(), POISSON, NotReparameterizableError, "symmetric about its loc"),
    (est.SumAndSample(1), POISSON, EnumerationError, "finite support"),
    (est.SumAndSample(1), MANY, EnumerationError, "65536 joint values"),
    (est.WithoutReplacement(2), NORMAL, EnumerationError, "finite support"),
    (est.WithoutReplacement(2), MANY, EnumerationError, "17 elements"),
    (est.StraightThrough(), d.Bernoulli(0.5), EstimatorError, r"Biased\(StraightThrough"),
    (est.Concrete(0.5), d.Bernoulli(0.5), EstimatorError, r"Biased\(Concrete"),
    (est.StopGradient(), NORMAL, EstimatorError, r"Biased\(StopGradient"),
    (est.Biased(est.StraightThrough()), POISSON, EstimatorError, "OneHotCategorical"),
    (est.Biased(est.Reparam()), POISSON, NotReparameterizableError, "rsample"),
    (est.Implicit(), POISSON, NotReparameterizableError, r"distribution function \(cdf\)"),
    (est.Rejection(), NORMAL, NotReparameterizableError, "gamma, beta or Dirichlet"),
    (est.GaussHermite(3), POISSON, NotReparameterizableError, "normal or log-normal"),
    (est.GaussHermite(2), d.Normal(jnp.zeros(17), 1.0), EnumerationError, "SigmaPoints"),
    (est.GaussLegendre(3), POISSON, NotReparameterizableError, "icdf"),
    (est.SigmaPoints(), CAUCHY, NotReparameterizableError, "multivariate normal"),
    (est.SigmaPoints(-1.0), NORMAL, EstimatorError, "kappa above"),
]


@pytest.mark.parametrize("estimator, distribution, kind, says", REFUSALS, ids=name_of)
def test_refusal(estimator, distribution, kind, says):
    law = law_of(lambda _: distribution, jnp.zeros(1), estimator, (), None)
    with pytest.raises(kind, match=f"(?s)cannot serve.*address: +x.*{says}|{says}"):
        estimator.serve(law)
        estimator.count(law)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: est.SumAndSample(0), "k >= 1"),
        (lambda: est.WithoutReplacement(0), "n >= 1"),
        (lambda: est.WithoutReplacement(9), "n <= 8"),
        (lambda: est.Rejection(-1), "boosts >= 0"),
        (lambda: est.GaussHermite(0), "n >= 1"),
        (lambda: est.Biased(est.Enumerate()), "one value"),
        (lambda: est.Biased(est.Biased(est.StopGradient())), "one value"),
    ],
)
def test_bad_settings(make, says):
    with pytest.raises(EstimatorError, match=says):
        make()


EXPANDED = [
    (est.MeasureValued(), d.Normal(0.1, 1.0)),
    (est.Antithetic(), d.LogNormal(0.1, 1.0)),
    (est.REBAR(0.5), d.Bernoulli(0.3)),
    (est.DisARM(), d.Bernoulli(logits=0.3)),
    (est.WithoutReplacement(2), d.Categorical(np.ones(3) / 3)),
    (est.Biased(est.Concrete(0.5)), d.Bernoulli(0.3)),
    (est.Implicit(), d.VonMises(0.2, 1.0)),
    (est.Rejection(), d.Gamma(0.7, 1.0)),
    (est.GaussHermite(2), d.Normal(0.1, 1.0)),
    (est.SigmaPoints(), d.Normal(0.1, 1.0)),
]


@pytest.mark.parametrize("estimator, distribution", EXPANDED, ids=name_of)
def test_expanded_and_independent_laws(estimator, distribution):
    """`expand` and `to_event` change nothing but the shape."""
    measure = distribution.expand([3]).to_event(1)

    def estimate(key):
        law = law_of(lambda _: measure, jnp.zeros(1), estimator, (), None)
        return surrogate(law, estimator, key, lambda x: x.astype(float).sum(keepdims=True))

    assert jnp.isfinite(jax.jit(estimate)(jax.random.key(0)))


def test_one_hot_categorical():
    """It is the categorical law, with vectors for values."""
    logits = jnp.array([[0.2, -0.4, 1.0], [0.0, 0.0, -200.0]])
    law = OneHotCategorical(logits=logits)
    x = law.sample(jax.random.key(0), (1000,))
    assert x.shape == (1000, 2, 3) and (x.sum(-1) == 1).all() and not x[:, 1, 2].any()
    np.testing.assert_allclose(
        law.log_prob(x), d.Categorical(logits=logits).log_prob(x.argmax(-1)), rtol=1e-5
    )
    assert law.enumerate_support().shape == (3, 2, 3)
    assert (law.log_prob(jnp.ones(3)) == -jnp.inf).all()
    np.testing.assert_allclose(OneHotCategorical(probs=law.probs).probs, law.probs, rtol=1e-5)
    with pytest.raises(ValueError, match="probs or logits"):
        OneHotCategorical()
