"""Bounds in a linear-Gaussian model: closed forms, quadrature, directions, unbiased gradients."""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from gradient_checks import QUICKLY, check_biased, check_exact, check_mean, estimates, exactly
from linear_gaussian import DATA, THETA, guide, log_mean_exp, model, of

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import objectives as ob

C = -1.5  # a guess of log p(x)


def elbo(t):
    return lg.expected_log_likelihood(t) - lg.kl(t)


def iwelbo(t):
    return lg.mean_of_pairs(lambda z: log_mean_exp(lg.log_w(t, z)), t)


def renyi(t, power):
    return lg.mean_of_pairs(lambda z: log_mean_exp(power * lg.log_w(t, z)) / power, t)


def weighted(likelihood, kl):
    return lambda t: likelihood * lg.expected_log_likelihood(t) - kl * lg.kl(t)


# name -> (program, expectation, what it is a bound on from below)
CASES = {
    "elbo": (of(ob.elbo), elbo, lg.log_evidence),
    "elbo, analytic": (of(ob.elbo, analytic_kl=True), elbo, lg.log_evidence),
    "sticking_the_landing": (of(ob.sticking_the_landing), elbo, lg.log_evidence),
    "iwelbo": (of(ob.iwelbo, 2), iwelbo, lg.log_evidence),
    "dreg": (of(ob.dreg, 2), iwelbo, lg.log_evidence),
    "vimco": (of(ob.vimco, 2), iwelbo, lg.log_evidence),
    "miwae": (of(ob.miwae, 2, 3), iwelbo, lg.log_evidence),
    "ciwae": (of(ob.ciwae, 2, 0.3), lambda t: 0.3 * elbo(t) + 0.7 * iwelbo(t), lg.log_evidence),
    "renyi 0.5": (of(ob.renyi, 2, 0.5), lambda t: renyi(t, 0.5), lg.log_evidence),
    "renyi 2": (of(ob.renyi, 2, 2.0), lambda t: renyi(t, -1.0), lg.log_evidence),
    "renyi 0": (of(ob.renyi, 2, 0.0), iwelbo, lg.log_evidence),
    "renyi 1": (of(ob.renyi, 2, 1.0), elbo, lg.log_evidence),
    "cubo": (of(ob.cubo, 2), lambda t: renyi(t, 2.0), None),
    "exp_cubo": (
        of(ob.exp_cubo, 3, 2.0, C),
        lambda t: jnp.exp(lg.log_integral(t, 2.0, 2.0, -1.0) - 2 * C),
        None,
    ),
    "beta_elbo": (
        of(ob.beta_elbo, 1.7),
        weighted(1.0, 1.7),
        lambda t: 1.7 * lg.log_integral(t, 1.0, 1 / 1.7),
    ),
    "tempered_elbo": (
        of(ob.tempered_elbo, 2.5),
        weighted(0.4, 1.0),
        lambda t: lg.log_integral(t, 1.0, 0.4),
    ),
    "cold_elbo": (
        of(ob.cold_elbo, 0.5),
        lambda t: 2 * (elbo(t) - lg.entropy(t)) + lg.entropy(t),
        lambda t: lg.log_integral(t, 2.0, 2.0),
    ),
    "data_emphasised_elbo": (
        of(ob.data_emphasised_elbo, 4.0, analytic_kl=True),
        weighted(4.0, 1.0),
        lambda t: lg.log_integral(t, 1.0, 4.0),
    ),
    "autogen": (
        of(ob.autogen, 2),
        weighted(3.0, 1.0),
        lambda t: lg.log_integral(t, 1.0, 3.0),
    ),
}


@functools.cache
def draws_of(x64):
    found = estimates([program for program, _, _ in CASES.values()], THETA, draws=20_000)
    return dict(zip(CASES, found, strict=True))


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_unbiased(name, x64):
    check_mean(draws_of(x64)[name], exactly(CASES[name][1], THETA))


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[2]])
def test_the_expectation_is_on_its_side_of_the_exact_value(name):
    t = jnp.array(THETA)
    _, expectation, exact = CASES[name]
    assert expectation(t) < exact(t)


def test_bounds_are_ordered():
    """Also in k, which the draws show: ELBO < Renyi < IWELBO < log p(x) < CUBO."""
    t = jnp.array(THETA)
    cubo = lg.log_integral(t, 2.0, 2.0, -1.0) / 2
    values = [elbo(t), renyi(t, 0.5), iwelbo(t), lg.log_evidence(t), cubo]
    assert (np.diff(values) > 0.003).all()
    assert renyi(t, -1.0) < elbo(t)
    programs = [of(ob.elbo), of(ob.iwelbo, 4), of(ob.iwelbo, 16), of(ob.iwelbo, 64)]
    means = [x[:, 0].mean() for x in estimates(programs, THETA, draws=20_000)]
    assert (np.diff([*means, lg.log_evidence(t)]) > 0).all()


def test_the_mean_in_the_logarithm_is_unbiased(x64):
    """E[exp((1 - alpha) renyi)] and E[exp(n cubo)] are E_q[w^power], for every k."""
    powers = {0.5: ob.renyi, 1.5: ob.renyi, -0.5: ob.renyi, 2.0: ob.cubo, 1.3: ob.cubo}

    def program(objective, argument):
        power = 1 - argument if objective is ob.renyi else argument
        return lambda t: jnp.exp(power * of(objective, 4, argument)(t)), power

    programs = [program(objective, argument) for argument, objective in powers.items()]
    found = estimates([p for p, _ in programs], THETA, draws=20_000)
    for draws, (_, power) in zip(found, programs, strict=True):
        exact = exactly(moment(power), THETA)
        check_mean(draws[:, 0], exact[0])
        check_biased(draws[:, 0] * 1.1, exact[0])


@functools.cache
def moment(power):
    return lambda t: jnp.exp(lg.log_integral(t, power, power, 1 - power))


def test_few_draws_of_cubo_lie_below_it():
    t = jnp.array(THETA)
    assert renyi(t, 2.0) < lg.log_integral(t, 2.0, 2.0, -1.0) / 2


def test_renyi_is_continuous_at_its_limit(x64):
    t, key = jnp.array(THETA), jax.random.key(0)
    value = jax.jit(
        jax.vmap(
            lambda alpha: vx.value_and_grad(of(ob.renyi, 5, alpha))(key, t),
        )
    )
    values, slopes = value(jnp.array([0.99, 1.0, 1.01]))
    np.testing.assert_allclose(values, values[1], atol=0.01)
    np.testing.assert_allclose(slopes[0] + slopes[2], 2 * slopes[1], rtol=0.02, atol=2e-3)


TIGHT = ("elbo", "iwelbo", "dreg", "miwae", "ciwae", "renyi 0.5", "renyi 2", "cubo", "exp_cubo")


def test_all_are_exact_at_the_posterior(x64):
    """Every weight is p(x) there."""
    t = lg.at_posterior(jnp.array(THETA))
    programs = [CASES[name][0] for name in TIGHT]
    found = estimates(programs, t, of=lambda f, key, t: vx.expect(f)(key, t), draws=10)
    log_z = lg.log_evidence(t)
    for name, values in zip(TIGHT, found, strict=True):
        check_exact(values, jnp.exp(2 * (log_z - C)) if name == "exp_cubo" else log_z)


# ---- twins


def forgets_the_path(p, q, data):
    trace = jax.lax.stop_gradient(q.simulate())
    return ob.log_weight(p, trace, data, of=q.log_density(trace.choices))


def sum_of_weights(p, q, data):
    return jax.nn.logsumexp(ob.log_weights(p, q, data, 2))


def shared_draw(p, q, data):
    return ob.log_mean_exp(jnp.repeat(ob.log_weights(p, q, data, 1), 2))


def forgets_the_power(p, q, data):
    return ob.cubo(p, q, data, 2, 1.0)


TWINS = {
    "elbo": forgets_the_path,
    "iwelbo": sum_of_weights,
    "miwae": shared_draw,
    "renyi 0.5": shared_draw,
    "cubo": forgets_the_power,
    "beta_elbo": ob.elbo,
    "cold_elbo": lambda p, q, data: 2 * ob.elbo(p, q, data),
}


def test_a_broken_twin_is_found():
    found = estimates([of(twin) for twin in TWINS.values()], THETA, draws=20_000)
    for name, draws in zip(TWINS, found, strict=True):
        check_biased(draws, exactly(CASES[name][1], THETA))


# ---- closed-form divergences


@vx.model
def chain(t):
    """z -> w -> x."""
    z = vx.sample("z", d.Normal(0.3, 1.0))
    w = vx.sample("w", d.Normal(z, 1.0))
    vx.sample("x", d.Normal(w, 1.0))


@vx.model
def backwards(t):
    """w first, then z given w: at w the model's parent z comes later."""
    w = vx.sample("w", d.Normal(t[0], jnp.exp(t[1])))
    vx.sample("z", d.Normal(t[2] + t[3] * w, 0.8))


@vx.model
def forwards(t):
    z = vx.sample("z", d.Normal(t[0], jnp.exp(t[1])))
    vx.sample("w", d.Normal(t[2] + t[3] * z, 0.8))


CHAIN = (0.1, -0.2, 0.3, 0.6)


def normal_kl(m, s, mean, sd):
    return jnp.log(sd / s) + (s**2 + (m - mean) ** 2) / (2 * sd**2) - 0.5


def wrong_order(t):
    """A twin: the closed form at w too, whose mean given z is not the guide's."""
    q = backwards(t).simulate()
    z, w = q["z"], q["w"]
    kl = normal_kl(t[0], jnp.exp(t[1]), z, 1.0) + normal_kl(t[2] + t[3] * w, 0.8, 0.3, 1.0)
    return d.Normal(w, 1.0).log_prob(1.3) - kl


def test_closed_forms_keep_the_mean_in_either_order(x64):
    def program(g, analytic):
        return lambda t: ob.elbo(chain(t), g(t), DATA, analytic_kl=analytic)

    programs = [program(g, a) for g in (forwards, backwards) for a in (False, True)]
    plain, closed, plain_back, closed_back, twin = estimates(
        [*programs, wrong_order], CHAIN, draws=50_000
    )
    check_mean(plain - closed, np.zeros(5))
    check_mean(plain_back - closed_back, np.zeros(5))
    check_biased(plain_back - twin, np.zeros(5))
    assert (closed.var(0)[1:] < plain.var(0)[1:]).all()
    assert (closed_back.var(0)[3:] < plain_back.var(0)[3:] / 2).all()  # parameters of z


def terms(p, q, data=DATA, **options):
    run = vx.seed(lambda: ob.elbo_terms(p, q, data, **options))
    return jax.jit(run, compiler_options=QUICKLY)(jax.random.key(0))


@vx.model
def of_everything(size):
    """Addresses of several kinds, all but `scanned`, `cond` and `missing` with a closed form."""
    jax.vmap(lambda m: vx.sample("lanes", d.Normal(m, jnp.ones(2)).to_event(1)))(jnp.zeros((3, 2)))
    vx.sample("expanded", d.Normal(0.0, 1.0).expand([4]).to_event(1))
    vx.sample("batch", d.Normal(jnp.zeros(4), 1.0))
    vx.sample("gamma", vx.scaled(d.Gamma(2.0, 3.0), 1.5))
    vx.sample("beta", d.Beta(2.0, 3.0))
    vx.sample("nested", of_vector(0.0))
    jax.lax.scan(walk, 0.0, None, length=3)
    vx.sample("missing", vx.masked(d.Normal(jnp.zeros(2), 1.0), jnp.array([True, False])))
    vx.sample("x", d.Normal(0.0, 1.0))


def walk(c, _):
    return vx.sample("scanned", d.Normal(c, 1.0)), None


@vx.model
def of_vector(mean):
    vx.sample("v", d.MultivariateNormal(mean * jnp.ones(2), jnp.eye(2)))


@vx.model
def guide_of_everything():
    jax.vmap(lambda m: vx.sample("lanes", d.Normal(m, jnp.full(2, 0.5)).to_event(1)))(
        jnp.arange(6.0).reshape(3, 2) / 3
    )
    vx.sample("expanded", d.Normal(jnp.arange(4.0) / 4, 0.7).to_event(1))
    vx.sample("batch", d.Normal(jnp.arange(4.0) / 4, 0.7).to_event(1))
    vx.sample("gamma", vx.scaled(d.Gamma(3.0, 3.0), 1.5))
    vx.sample("beta", d.Beta(3.0, 3.0))
    vx.sample("nested", of_vector(1.0))
    jax.lax.scan(walk, 0.0, None, length=3)
    vx.sample("missing", vx.masked(d.Normal(jnp.zeros(2), 1.0), jnp.array([True, False])))


def test_every_kind_of_site_has_its_divergence(x64):
    """`scanned` and `missing` have the same density in guide and model: they add nothing."""
    found = terms(of_everything(4), guide_of_everything(), analytic_kl=True)
    by_hand = normal_kl(jnp.arange(6.0) / 3, 0.5, 0.0, 1.0).sum()
    by_hand += 2 * normal_kl(jnp.arange(4.0) / 4, 0.7, 0.0, 1.0).sum()
    by_hand += 1.5 * gamma_kl() + beta_kl() + 1.0
    np.testing.assert_allclose(found.kl, by_hand, rtol=1e-3)
    np.testing.assert_allclose(found.log_likelihood, d.Normal(0.0, 1.0).log_prob(1.3), rtol=1e-6)


def gamma_kl():
    grid = jnp.linspace(1e-4, 30.0, 400_000)
    log_q, log_p = d.Gamma(3.0, 3.0).log_prob(grid), d.Gamma(2.0, 3.0).log_prob(grid)
    return jnp.trapezoid(jnp.exp(log_q) * (log_q - log_p), grid)


def beta_kl():
    grid = jnp.linspace(1e-6, 1 - 1e-6, 100_000)
    log_q, log_p = d.Beta(3.0, 3.0).log_prob(grid), d.Beta(2.0, 3.0).log_prob(grid)
    return jnp.trapezoid(jnp.exp(log_q) * (log_q - log_p), grid)


def test_different_powers_keep_the_mean(x64):
    """E_q[b log q - a log p] = a KL + (b - a) E_q[log q]."""

    @vx.model
    def prior(t):
        vx.sample("z", vx.scaled(d.Normal(t[0], 1.0), 2.0))
        vx.sample("x", d.Normal(0.0, 1.0))

    @vx.model
    def q(t):
        vx.sample("z", vx.scaled(d.Normal(t[2], jnp.exp(t[3])), 0.5))

    def program(analytic):
        return lambda t: ob.elbo(prior(t), q(t), DATA, analytic_kl=analytic)

    plain, closed = estimates([program(False), program(True)], THETA)
    check_mean(plain - closed, np.zeros(5))
    assert closed.var(0)[1] < 1e-6 < plain.var(0)[1]


def test_a_prior_given_data_and_lanes_with_baselines():
    """p(z | x) p(y | z): x is data, so the divergence is known, and the same for every draw."""

    @vx.model
    def p(x):
        x = vx.sample("x", d.Normal(jnp.zeros(3), 1.0))
        z = jax.vmap(lambda x: vx.sample("z", d.Normal(x, 1.0)))(x)
        vx.sample("y", d.Normal(z, 1.0))

    @vx.model
    def q(means):
        def lane(mean):
            vx.sample("z", d.Normal(mean, 0.5), estimator=est.Score(baseline=mean))

        jax.vmap(lane)(means)

    x, means = jnp.arange(3.0), jnp.array([0.5, 0.1, -0.3])
    data = {"x": x, "y": x}
    run = vx.seed(lambda: ob.elbo_terms(p(x), q(means), data, exact=True).kl)
    values = jax.vmap(run)(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(values, normal_kl(means, 0.5, x, 1.0).sum(), rtol=1e-5)


def test_a_guide_with_an_estimated_density_keeps_its_side():
    """Its density comes from the draw, E[1 / w] = 1 / q, and not from scoring it again."""

    @vx.model
    def joint(t):
        u = vx.sample("u", d.Normal(0.0, 1.0))
        vx.sample("z", d.Normal(t[2] + u, jnp.exp(t[3])))

    t, key = jnp.array(THETA), jax.random.key(0)
    q = vx.marginal(joint(t), "z", vx.importance(2))
    plain, closed = (
        vx.seed(lambda a=a: ob.elbo(model(t), q, DATA, analytic_kl=a))(key) for a in (False, True)
    )
    np.testing.assert_allclose(closed, plain, rtol=1e-5)
    for objective, *args in (
        (ob.sticking_the_landing,),
        (ob.dreg, 2),
        (ob.f_divergence, 2, "chi2"),
        (ob.forward_chi2, 2),
    ):
        with pytest.raises(vx.errors.CapabilityError, match=f"{objective.__name__} needs an exact"):
            vx.seed(lambda o=objective, a=args: o(model(t), q, DATA, *a))(key)


def test_the_likelihood_counts_observations_and_factors():
    @vx.model
    def p():
        z = vx.sample("z", d.Normal(0.0, 1.0))
        vx.factor("f", jnp.asarray(0.7))
        vx.sample("y", d.Normal(0.0, 1.0), obs=jnp.asarray(0.4))
        vx.sample("x", d.Normal(0.0 * z, 1.0))

    found = terms(p(), guide(jnp.array(THETA)))
    normal = d.Normal(0.0, 1.0)
    by_hand = 0.7 + normal.log_prob(0.4) + normal.log_prob(1.3)
    np.testing.assert_allclose(found.log_likelihood, by_hand, rtol=1e-6)


def test_terms_add_up_to_the_elbo():
    t, key = jnp.array(THETA), jax.random.key(3)
    log_likelihood, kl = vx.seed(lambda: ob.elbo_terms(model(t), guide(t), DATA))(key)
    elbo = vx.seed(lambda: ob.elbo(model(t), guide(t), DATA))(key)
    np.testing.assert_allclose(log_likelihood - kl, elbo, rtol=1e-5)


def test_capacity_is_exact():
    t = jnp.array(THETA)
    program = of(ob.capacity, 3.0, 0.1)
    (draws,) = estimates([program], THETA, draws=20_000)
    exact = exactly(lambda t: lg.expected_log_likelihood(t) - 3 * jnp.abs(lg.kl(t) - 0.1), THETA)
    check_mean(draws, exact)
    (twin,) = estimates([estimated_capacity], THETA, draws=20_000)
    check_biased(twin, exact)
    with pytest.raises(vx.errors.ClosedFormError, match=r"address: +w\n(.|\n)*beta_elbo"):
        vx.seed(lambda: ob.capacity(chain(t), backwards(t), DATA, 1.0, 1.0))(jax.random.key(0))


def estimated_capacity(t):
    """A twin: the absolute value of an estimate."""
    log_likelihood, kl = ob.elbo_terms(model(t), guide(t), DATA)
    return log_likelihood - 3 * jnp.abs(kl - 0.1)


def test_schedules():
    steps = jnp.array([0, 5, 10, 20])
    np.testing.assert_allclose(ob.linear_annealing(steps, 10), [0, 0.5, 1, 1])
    np.testing.assert_allclose(ob.linear_annealing(steps, 10, 2.0, 6.0), [2, 4, 6, 6])
    np.testing.assert_allclose(ob.logistic_annealing(5, 5, 2.0), 0.5)
    assert ob.logistic_annealing(9, 5, 2.0) == jax.nn.sigmoid(2.0)
    np.testing.assert_allclose(ob.cyclical_annealing(steps, 20), [0, 0.5, 1, 0])
    np.testing.assert_allclose(ob.cyclical_annealing(jnp.arange(4), 4, 0.25), [0, 1, 1, 1])


# ---- errors


def test_a_guide_that_observes_cannot_be_drawn():
    t = jnp.array(THETA)
    with pytest.raises(vx.errors.CapabilityError, match="simulate needs a measure"):
        vx.seed(lambda: ob.beta_elbo(model(t), model(t).condition(DATA), DATA, 2.0))(
            jax.random.key(0)
        )


def test_a_guide_that_does_not_match():
    t = jnp.array(THETA)
    for objective in (ob.elbo, ob.beta_elbo, ob.dreg, ob.cold_elbo):
        args = () if objective is ob.elbo else (2,)
        with pytest.raises(vx.errors.GuideMismatchError, match=r"guide \{z\} and data \{x\}"):
            vx.seed(lambda o=objective, a=args: o(chain(t), guide(t), DATA, *a))(jax.random.key(0))


@pytest.mark.parametrize(
    ("program", "least"),
    [
        (of(ob.iwelbo, 0), 1),
        (of(ob.miwae, 2, 0), 1),
        (of(ob.dreg, 0), 1),
        (of(ob.vimco, 1), 2),
        (of(ob.cubo, 0), 1),
        (of(ob.piwae, 1, 0), 1),
        (of(ob.wake_wake, 0), 1),
        (of(ob.forward_chi2, 0), 1),
    ],
)
def test_too_few_draws(program, least):
    with pytest.raises(vx.errors.DrawCountError, match=f"at least {least}"):
        vx.seed(program)(jax.random.key(0), jnp.array(THETA))
