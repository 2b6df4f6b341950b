"""Objectives by parameter group, wake and sleep, divergences: against quadrature."""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from gradient_checks import QUICKLY, check_biased, check_mean, estimates, exactly
from linear_gaussian import DATA, GUIDE, MODEL, THETA, X, guide, log_mean_exp, model, of

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import objectives as ob

KEY = jax.random.key(0)


@vx.model
def encoder(t, data):
    """The guide as a function of data; at x = X it is `guide`."""
    vx.sample("z", d.Normal(t[2] * data["x"] / X, jnp.exp(t[3])))


def in_group(name, objective, *args):
    return lambda t: of(objective, *args)(t)[name]


def iwelbo(t):
    return lg.mean_of_pairs(lambda z: log_mean_exp(lg.log_w(t, z)), t)


def constant(t):
    return jax.lax.stop_gradient(t)


def at_constant_draws(f, t):
    """E[f(z)] of two draws of the guide that do not depend on t."""
    return lg.mean_of_pairs(f, constant(t))


def wake_guide(t):
    def pair(z):
        return (jax.nn.softmax(lg.log_w(constant(t), z)) * lg.log_guide(t, z)).sum()

    return at_constant_draws(pair, t)


def wake_model(t):
    return at_constant_draws(
        lambda z: log_mean_exp(lg.log_joint(t, z) - lg.log_guide(constant(t), z)), t
    )


def forward_chi2(t):
    def pair(z):
        other = lg.log_joint(t, z) - lg.log_guide(constant(t), z)
        return log_mean_exp(lg.log_w(t, z) + other)

    return at_constant_draws(pair, t)


def sleep(t):
    """E_{p(x, z)}[log q(z | x)]: z - c x has mean m and variance v, c = t[2] / X."""
    c, s2 = t[2] / X, jnp.exp(2 * constant(t[1]))
    m, v = (1 - c) * constant(t[0]), (1 - c) ** 2 + c**2 * s2
    return -jnp.log(2 * jnp.pi) / 2 - t[3] - (m**2 + v) / (2 * jnp.exp(2 * t[3]))


def pwake(t):
    return at_constant_draws(lambda z: lg.log_joint(t, z[0]), t)


def qwake(t):
    return at_constant_draws(lambda z: lg.log_guide(t, z[0]), t)


def wake_sleep(name):
    return lambda t: ob.wake_sleep(model(t), functools.partial(encoder, t), DATA, 3)[name]


# name -> (program, expectation, the columns that belong to it)
EVERY = slice(0, 5)
CASES = {
    "piwae model": (in_group("model", ob.piwae, 1, 2), iwelbo, EVERY),
    "piwae guide": (in_group("guide", ob.piwae, 2, 2), iwelbo, EVERY),
    "wake_model": (of(ob.wake_model, 2), wake_model, EVERY),
    "wake_guide": (of(ob.wake_guide, 2), wake_guide, EVERY),
    "wake_wake model": (in_group("model", ob.wake_wake, 2), wake_model, EVERY),
    "wake_wake guide": (in_group("guide", ob.wake_wake, 2), wake_guide, EVERY),
    "sleep_guide": (
        lambda t: ob.sleep_guide(model(t), functools.partial(encoder, t), "x", 3),
        sleep,
        EVERY,
    ),
    "wake_sleep guide": (wake_sleep("guide"), sleep, EVERY),
    "wake_sleep model": (wake_sleep("model"), pwake, EVERY),
    "pwake": (lambda t: ob.pwake(model(t), guide(t), DATA), pwake, EVERY),
    "qwake": (lambda t: ob.qwake(guide(t), guide(t)), qwake, EVERY),
    "forward_chi2": (of(ob.forward_chi2, 2), forward_chi2, EVERY),
    "vis model": (in_group("model", ob.vis, 2), wake_model, MODEL),
    "vis guide": (in_group("guide", ob.vis, 2), lambda t: -forward_chi2(t), GUIDE),
}


@functools.cache
def draws_of(x64):
    found = estimates([program for program, _, _ in CASES.values()], THETA, draws=20_000)
    return dict(zip(CASES, found, strict=True))


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_a_group(name, x64):
    _, expectation, columns = CASES[name]
    exact = exactly(expectation, THETA)
    check_mean(draws_of(x64)[name][:, columns], exact[columns])


def test_the_model_learns_what_the_importance_weighted_bound_teaches():
    exact = exactly(iwelbo, THETA)
    check_mean(draws_of(False)["wake_model"][:, MODEL], exact[MODEL])
    check_biased(draws_of(False)["wake_model"][:, GUIDE], exact[GUIDE])


def live_weights(p, q, data, k):
    """A twin: the weights are differentiated."""
    trace = jax.vmap(lambda _: q.detach().simulate())(jnp.arange(k))
    log_q = jax.vmap(lambda z: q.log_density(z))(trace.choices)
    log_p = jax.vmap(lambda z: p.log_density(z | data))(trace.choices)
    return (jax.nn.softmax(log_p - log_q) * log_q).sum()


def live_draws(p, q, data, k):
    """A twin: the draws are differentiated."""
    traces = jax.vmap(lambda _: q.simulate())(jnp.arange(k))
    log_w = jax.vmap(lambda trace: ob.log_weight(p, trace, data))(traces)
    return (jax.nn.softmax(jax.lax.stop_gradient(log_w)) * traces.log_density).sum()


def test_twins_that_detach_too_little_are_found():
    for draws in estimates([of(live_weights, 2), of(live_draws, 2)], THETA, draws=20_000):
        check_biased(draws, exactly(wake_guide, THETA))


def mean_log_guide(t, mean, log_sd):
    """E[log q(z)] at z ~ Normal(mean, exp log_sd)."""
    away = (mean - t[2]) ** 2 + jnp.exp(2 * log_sd)
    return -jnp.log(2 * jnp.pi) / 2 - t[3] - away / (2 * jnp.exp(2 * t[3]))


def test_wake_guide_reaches_the_forward_divergence():
    """E_{p(z | x)}[grad log q] with many draws."""
    t = jnp.array(THETA)
    (draws,) = estimates([of(ob.wake_guide, 500)], THETA, draws=2_000)
    exact = jax.grad(mean_log_guide)(t, *lg.at_posterior(t)[2:])
    np.testing.assert_allclose(draws.mean(0)[GUIDE], exact[2:], atol=0.01)


def test_an_approximate_posterior_from_elsewhere():
    """pwake and qwake with the exact posterior."""
    t = jnp.array(THETA)
    posterior = guide(lg.at_posterior(t))

    def program(t):
        return ob.pwake(model(t), posterior, DATA) + ob.qwake(guide(t), posterior)

    (draws,) = estimates([program], THETA)
    check_mean(draws[:, MODEL], jax.grad(lg.log_evidence)(t)[:2])  # Fisher's identity
    check_mean(draws[:, GUIDE], jax.grad(mean_log_guide)(t, *lg.at_posterior(t)[2:])[2:])


def test_an_approximate_posterior_by_resampling():
    """One of two draws, chosen by its weight, teaches what both do with their weights."""

    def program(t):
        target = model(t).condition(DATA)
        posterior = vx.normalize(target, using=vx.importance(2, guide(t)))
        return ob.qwake(guide(t), posterior)

    (draws,) = estimates([program], THETA)
    check_mean(draws, exactly(wake_guide, THETA))


def test_discrete_guides_learn_without_a_path(x64):
    """wake_guide's gradient by enumeration of both draws."""

    @vx.model
    def coin_model():
        b = vx.sample("b", d.Bernoulli(0.3))
        vx.sample("x", d.Normal(1.5 * b, 1.0))

    @vx.model
    def coin_guide(t):
        vx.sample("b", d.Bernoulli(logits=t[0]), estimator=est.Score())

    def program(t):
        return ob.wake_guide(coin_model(), coin_guide(t), DATA, 2)

    def expected(t):
        p = jnp.array([0.7, 0.3]) * jnp.exp(-((X - 1.5 * jnp.arange(2)) ** 2) / 2)
        q = jnp.stack([1 - jax.nn.sigmoid(t[0]), jax.nn.sigmoid(t[0])])
        frozen = constant(q)
        w = p / frozen
        share = w[:, None] / (w[:, None] + w)  # of the first draw
        each = share * jnp.log(q)[:, None] + (1 - share) * jnp.log(q)
        return (jnp.outer(frozen, frozen) * each).sum()

    (draws,) = estimates([program], (0.4,), draws=20_000)
    check_mean(draws, exactly(expected, (0.4,)))


# ---- forward KL on simulations


@vx.model
def local_model(t):
    vx.sample("local", model(t))
    vx.sample("u", d.Normal(0.0, 1.0))


@vx.model
def local_guide(t, data):
    vx.sample("u", d.Normal(0.0, 1.0))
    vx.sample("local", encoder(t, data["local"]))


def test_forward_kl_of_nested_addresses():
    t = jnp.array(THETA)

    def program(t):
        return ob.forward_kl(
            local_model(constant(t)), functools.partial(local_guide, t), ["local/x"], 4
        )

    (draws,) = estimates([program], THETA, draws=20_000)
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    check_mean(draws, exactly(lambda t: entropy - sleep(t), THETA))
    run = vx.seed(lambda: ob.forward_kl(model(t), guide, ["y"], 2))
    with pytest.raises(vx.errors.UnknownAddressError, match="no such address to observe"):
        run(KEY)


def test_forward_kl_is_least_at_the_posterior():
    """In expectation: t[2] and t[3] of the exact amortised posterior have no gradient."""
    t = jnp.array([0.0, THETA[1], 0.0, 0.0])
    precision = 1 + jnp.exp(-2 * t[1])
    best = t.at[2].set(X * jnp.exp(-2 * t[1]) / precision).at[3].set(-jnp.log(precision) / 2)
    np.testing.assert_allclose(jax.grad(sleep)(best)[2:], 0.0, atol=1e-6)


# ---- f-divergences


def by_quadrature(f):
    """D_f(p(z | x) || q) on a grid."""

    def divergence(t):
        z = jnp.linspace(-9.0, 9.0, 4001)
        log_p = lg.log_joint(t, z) - lg.log_evidence(t)
        log_q = lg.log_guide(t, z)
        return jnp.trapezoid(f(log_p, log_q), z)

    return divergence


def js(log_p, log_q):
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    middle = jnp.log((p + q) / 2 + 1e-300)
    return (jnp.where(p > 0, p * (log_p - middle), 0) + q * (log_q - middle)) / 2


DIVERGENCES = {
    "forward_kl": by_quadrature(lambda p, q: jnp.exp(p) * (p - q)),
    "reverse_kl": by_quadrature(lambda p, q: jnp.exp(q) * (q - p)),
    "chi2": lambda t: jnp.exp(lg.log_integral(t, 2.0, 2.0, -1.0) - 2 * lg.log_evidence(t)) - 1,
    "hellinger": by_quadrature(lambda p, q: (jnp.exp(p / 2) - jnp.exp(q / 2)) ** 2 / 2),
    "jensen_shannon": by_quadrature(js),
    "total_variation": by_quadrature(lambda p, q: jnp.abs(jnp.exp(p) - jnp.exp(q)) / 2),
}


@vx.model
def wide():
    vx.sample("z", d.Normal(0.7, 1.0))


def divergence(name, proposal=None):
    """With the evidence known: unbiased."""

    def program(t):
        log_z = lg.log_evidence(t)
        return ob.f_divergence(
            model(t), guide(t), DATA, 4, name, proposal=proposal, log_evidence=log_z
        )

    return program


@functools.cache
def divergence_draws(third):
    proposal = wide() if third else None
    with jax.enable_x64(True):
        found = estimates([divergence(n, proposal) for n in DIVERGENCES], THETA, draws=20_000)
    return dict(zip(DIVERGENCES, found, strict=True))


@pytest.mark.thin(5)
@pytest.mark.parametrize("third", [False, True], ids=["guide", "proposal"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_against_quadrature(name, third):
    check_mean(divergence_draws(third)[name], exactly(DIVERGENCES[name], THETA))
    twin = divergence_draws(third)["chi2" if name != "chi2" else "hellinger"]
    check_biased(twin, exactly(DIVERGENCES[name], THETA))


@pytest.mark.slow
def test_self_normalised_divergences_converge():
    t = jnp.array(THETA)

    @functools.partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
    def means(keys, k):
        def program():
            f = functools.partial(ob.f_divergence, model(t), guide(t), DATA, k)
            return jnp.array([[f(n, proposal=s) for n in DIVERGENCES] for s in (None, wide())])

        return jax.vmap(vx.seed(program))(keys).mean(0)

    exact = np.array([f(t) for f in DIVERGENCES.values()])
    few, many = (means(jax.random.split(KEY, 200_000 // k), k) for k in (10, 1000))
    np.testing.assert_allclose(many, [exact, exact], atol=0.004)
    assert (np.abs(many - exact).sum(1) < np.abs(few - exact).sum(1)).all()


def test_divergences_vanish_at_the_posterior():
    t = lg.at_posterior(jnp.array(THETA))
    f = functools.partial(ob.f_divergence, model(t), guide(t), DATA, 3)
    values = vx.seed(lambda: [f(name) for name in DIVERGENCES])(KEY)
    np.testing.assert_allclose(values, 0.0, atol=1e-6)


def test_a_divergence_of_ones_own_and_an_unknown_one():
    t = jnp.array(THETA)
    own = vx.seed(lambda: ob.f_divergence(model(t), guide(t), DATA, 5, lambda log_r: -log_r))
    named = vx.seed(lambda: ob.f_divergence(model(t), guide(t), DATA, 5, "reverse_kl"))
    assert own(KEY) == named(KEY)
    with pytest.raises(vx.errors.DivergenceError, match="forward_kl, reverse_kl, chi2"):
        vx.seed(lambda: ob.f_divergence(model(t), guide(t), DATA, 5, "kl"))(KEY)


# ---- chi-square


@vx.model
def two_modes():
    z = vx.sample("z", d.Normal(0.0, 2.0))
    mixture = d.Categorical(probs=jnp.array([0.6, 0.4]))
    near = d.Normal(jnp.stack([z, -z]) + 0.3, 0.5)
    vx.sample("x", d.MixtureSameFamily(mixture, near))


@pytest.mark.slow
def test_chi_square_fits_the_better_proposal():
    """The posterior has two modes; the ELBO's guide covers one, the chi-square's both."""
    import optax

    z = jnp.linspace(-12.0, 12.0, 20_001)
    log_joint = jax.vmap(lambda z: two_modes().log_density({"z": z, "x": X}))(z)
    log_z = jax.nn.logsumexp(log_joint) + jnp.log(z[1] - z[0])

    def q(phi):
        return guide(jnp.stack([0.0, 0.0, phi["m"], phi["s"]]))

    def mean_elbo(phi):
        return jax.vmap(lambda _: ob.elbo(two_modes(), q(phi), DATA))(jnp.arange(20)).mean()

    def chi2(phi):
        return -ob.forward_chi2(two_modes(), q(phi), DATA, 100)

    def fitted(objective):
        start = {"m": jnp.asarray(0.5), "s": jnp.asarray(0.5)}
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 600))
        return vx.fit(objective, start, optimizer, 600, KEY, progress=False).params

    def estimate(phi):
        run = vx.seed(lambda: ob.wake_model(two_modes(), q(phi), DATA, 1000))
        return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, 200)))

    by_elbo, by_chi2 = estimate(fitted(mean_elbo)), estimate(fitted(chi2))
    assert np.exp(by_chi2).var() < np.exp(by_elbo).var()
    assert abs(by_chi2.mean() - log_z) < 0.01
