"""What a user sees of estimators: the report, the choice, the strategies of an expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import check_biased, check_mean, exactly, mean_coin, mean_normal

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import strategies

KEY = jax.random.key(0)
THETA = jnp.array([0.3, -0.2])
DEFAULT = est.Score(est.LeaveOneOut(2))


def coin(address, logits, estimator=None):
    return vx.sample(address, d.Bernoulli(logits=logits), estimator=estimator)


def mixed(t):
    x = vx.sample("x", d.Normal(t[0], 1.0))
    y = vx.sample("y", d.Normal(t[0], 1.0))

    def lane(c):
        z = coin("z", t[1] * c, est.Score())
        return (z - c) ** 2 + x * coin("e", c)

    def step(carry, u):
        s = coin("s", t[1] + carry)
        return 0.5 * s, (s - u) ** 2

    _, cost = jax.lax.scan(step, 0.0, jnp.linspace(0, 1, 4))
    lanes = jax.vmap(lane)(jnp.linspace(0.1, 1, 8))
    return lanes.sum() + jnp.where(y > 0, 1.0, 0.0) + cost.sum()


# ---- the report


def test_report_says_what_was_decided_and_why():
    report = vx.check(mixed, THETA)
    chosen = {site.address: site.estimator for site in report.sites}
    assert chosen == {
        "x": est.Reparam(),
        "y": DEFAULT,
        "z": est.Score(),
        "e": est.Enumerate(),
        "s": DEFAULT,
    }
    assert "comparison `>`" in report["y"].why
    assert "test_check.py" in report["y"].why
    assert report["z"].credit == "1 of 4 terms, 8 elements apart"
    assert report["s"].credit.endswith("not of earlier steps")
    assert report["e"].runs == 2
    assert report["y"].runs == report.runs == 2
    assert report.unbiased
    assert "gradient: unbiased, 2 runs of the program" in repr(report)


def test_variances_are_those_of_the_gradient():
    """A sum of independent parts: the shares are their parts of the variance, and add up to 1."""

    def f(t):
        x = vx.sample("x", d.Normal(t[0], 1.0))
        z = coin("z", t[1], est.Score())
        return x**2 + 3.0 * z + coin("e", t[1])

    report = vx.check(f, THETA, draws=20_000)
    p = jax.nn.sigmoid(THETA[1])
    exact = {"x": 4.0, "e": 0.0}
    exact["z"] = 9 * p * (1 - p) ** 2 - (3 * p * (1 - p)) ** 2  # 3 (1 - p) with probability p
    for address, variance in exact.items():
        np.testing.assert_allclose(report[address].variance, variance, rtol=0.1, atol=1e-6)
    np.testing.assert_allclose(sum(site.share for site in report.sites), 1, rtol=0.1)


def test_report_without_parameters_or_choices():
    report = vx.check(lambda: coin("z", 0.3))
    assert report.variance is None
    assert report["z"].share is None
    assert vx.check(lambda t: t, 1.0).sites == ()


def test_bias_is_reported_and_refused():
    def f(t):
        return coin("z", t, est.Biased(est.StraightThrough())) ** 2

    report = vx.check(f, 0.3)
    assert not report.unbiased
    assert "BIASED" in repr(report)
    assert "biased on purpose" in report["z"].why
    with pytest.raises(vx.errors.BiasedEstimatorError):
        vx.check(f, 0.3, strict=True)


# ---- estimators from outside


def test_estimators_by_address():
    @vx.model
    def local(u):
        return coin("z", u)

    def f(t):
        return vx.sample("one", local(t)) + coin("two", t)

    asked = {"one/z": est.Score(), ("two",): est.MeasureValued()}
    report = vx.check(f, 0.3, estimators=asked)
    assert [site.estimator for site in report.sites] == list(asked.values())
    gradients = jax.vmap(lambda k: vx.grad(f, estimators=asked)(k, 0.3))
    p = jax.nn.sigmoid(0.3)
    check_mean(np.asarray(gradients(jax.random.split(KEY, 20_000)))[:, None], 2 * p * (1 - p))


@pytest.mark.slow
def test_tuning_finds_what_is_best():
    """A site where enumeration is exact, and one where a path beats every score."""

    def f(t):
        z = coin("z", t[1], est.Score())
        return (vx.sample("x", d.Normal(t[0], 1.0), estimator=est.Score()) + z) ** 2

    tuning = vx.tune_estimators(f, THETA, KEY, budget=120, draws=256)
    assert not isinstance(tuning.estimators["x"], est.Score)
    assert tuning.complete
    assert "chosen" in repr(tuning)
    before, after = (vx.check(f, THETA, estimators=e) for e in (None, tuning.estimators))
    assert after.variance < before.variance / 2


def test_tuning_keeps_to_sound_candidates_and_to_its_budget():
    def f(t):
        return jnp.where(vx.sample("x", d.Normal(t, 1.0)) > 0, 1.0, 0.0)

    tuning = vx.tune_estimators(f, 0.3, KEY, budget=1e-9)
    assert not tuning.complete
    assert tuning.estimators == {"x": DEFAULT}
    tuning = vx.tune_estimators(f, 0.3, KEY, budget=60, draws=64)
    tried = {type(trial.estimator) for trial in tuning.trials}
    assert est.Reparam not in tried
    assert {est.Score, est.MeasureValued} <= tried


def test_fit_takes_estimators():
    import optax

    def f(t):
        return -((coin("z", t, est.Score()) - 0.2) ** 2)

    fit = vx.fit(f, 0.0, optax.sgd(0.1), 5, KEY, progress=False, estimators={"z": est.Enumerate()})
    p, expected = 0.0, []
    for _ in range(5):
        expected.append(-(mean_coin(lambda z: (z - 0.2) ** 2, p)))
        p -= 0.1 * jax.grad(lambda p: mean_coin(lambda z: (z - 0.2) ** 2, p))(p)
    np.testing.assert_allclose(fit.history, expected, rtol=1e-5)


# ---- strategies


def program(t):
    x = vx.sample("x", d.Normal(t[0], jnp.exp(t[1])))
    return jnp.sin(x) + x * coin("b", t[1] + x) + t[0] * x**2


def expectation(t):
    def given(x):
        return mean_coin(lambda b: jnp.sin(x) + x * b + t[0] * x**2, t[1] + x)

    return mean_normal(given, t[0], jnp.exp(t[1]), nodes=40)


def draws_of(using, n=4000, f=program):
    def one(key):
        value, slope = vx.value_and_grad(f, using=using)(key, THETA)
        return jnp.append(value, slope)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, n)))


SAMPLED = (strategies.MonteCarlo(4), strategies.Antithetic(4), strategies.QuasiMonteCarlo(4))


@pytest.mark.thin(2)
@pytest.mark.parametrize("using", [*SAMPLED, strategies.QuasiMonteCarlo(7)], ids=repr)
def test_sampled_strategies_are_unbiased(using):
    exact = exactly(expectation, tuple(THETA.tolist()))
    check_mean(draws_of(using), exact)
    check_biased(draws_of(using, f=lambda t: program(jax.lax.stop_gradient(t) + 0 * t)), exact)


@pytest.mark.parametrize("using", [strategies.Antithetic(64), strategies.QuasiMonteCarlo(64)])
def test_chosen_noise_has_less_variance(using):
    assert (draws_of(using, 500).var(0) < draws_of(strategies.MonteCarlo(64), 500).var(0)).all()


@pytest.mark.parametrize("using", SAMPLED, ids=repr)
def test_scores_are_unbiased_under_every_strategy(using):
    """Leave-one-out compares runs whose noise is chosen together."""

    def f(t):
        x = vx.sample("x", d.Normal(t[0], 1.0))
        z = coin("z", t[1] + x, DEFAULT)
        return (z - 0.3 + x) ** 2

    def mean(t):
        return mean_normal(
            lambda x: mean_coin(lambda z: (z - 0.3 + x) ** 2, t[1] + x), t[0], 1.0, nodes=40
        )

    check_mean(draws_of(using, 20_000, f), exactly(mean, tuple(THETA.tolist())))


def test_quadrature_and_enumeration_are_exact():
    exact = exactly(expectation, tuple(THETA.tolist()))
    np.testing.assert_allclose(
        draws_of(strategies.Quadrature(20), 2), [exact] * 2, rtol=1e-4, atol=1e-4
    )

    def coins(t):
        z = coin("z", t * jnp.ones(2)).sum()
        return (z - 0.3) ** 2 + coin("y", t[1] + z) * t[0]

    value, _ = vx.value_and_grad(coins, using=strategies.Enumeration())(KEY, THETA)
    drawn = vx.expect(coins, using=strategies.MonteCarlo(100_000))(KEY, THETA)
    np.testing.assert_allclose(value, drawn, atol=0.02)
    np.testing.assert_allclose(value, vx.expect(coins)(jax.random.key(1), THETA), rtol=1e-5)


def test_sigma_points_are_exact_for_cubics_of_coupled_normals():
    def f(t):
        x = vx.sample("x", d.Normal(t[0], 0.7).expand([2]))
        tril = jnp.array([[1.0, 0.0], [0.5, 0.8]])
        y = vx.sample("y", d.MultivariateNormal(jnp.zeros(2), scale_tril=tril))
        return (x[0] + y[1]) ** 3 + t[1] * x[1] * y[0] + x[1] ** 2

    def mean(t):  # E(m + e)^3 = m^3 + 3 m s^2
        s2 = 0.49 + 0.25 + 0.64
        return t[0] ** 3 + 3 * t[0] * s2 + t[0] ** 2 + 0.49

    exact = exactly(mean, tuple(THETA.tolist()))
    np.testing.assert_allclose(draws_of(strategies.SigmaPoints(), 2, f), [exact] * 2, rtol=1e-4)


def test_declared_bias_is_reported_and_refused():
    def quantised(t):
        e = vx.sample("e", d.Normal(t, 1.0).expand([3]))
        q = jax.lax.stop_gradient(2.0 * e)
        return (est.rotation_trick(e, q) ** 2).sum() + vx.declare_biased(e, "mine").sum()

    report = vx.check(quantised, 0.3)
    assert not report.unbiased
    assert [name for name, _ in report.declared] == ["rotation_trick", "mine"]
    assert "biased on purpose: rotation_trick at" in repr(report)
    with pytest.raises(vx.errors.BiasedEstimatorError, match="rotation_trick"):
        vx.grad(quantised, strict=True)(KEY, 0.3)
    e = jnp.array([1.0, 2.0, 2.0])
    np.testing.assert_array_equal(est.rotation_trick(e, 2 * e), 2 * e)
    np.testing.assert_allclose(jax.jacobian(est.rotation_trick)(e, 2 * e), 2 * np.eye(3), atol=1e-6)


def test_a_network_of_the_data_is_trained_as_a_baseline_in_every_lane():
    """The baseline's gradient is that of each lane's squared error; the program's is unbiased."""
    data = jnp.linspace(0.2, 1.0, 4)

    def f(p):
        def lane(c):
            baseline = jnp.tanh(p["w"] * c) + p["b"]  # known before the draw
            z = coin("z", p["t"] * c, est.Score(est.Learned(baseline)))
            return 3.0 * (z - c) ** 2

        return jax.vmap(lane)(data).sum()

    def mean(t):
        return sum(mean_coin(lambda z, c=c: 3.0 * (z - c) ** 2, t * c) for c in data)

    def squared_error(w, b):
        def lane(c):
            cost = mean_coin(lambda z: 3.0 * (z - c) ** 2, 0.4 * c)
            return -((cost - jnp.tanh(w * c) - b) ** 2) / 2  # its gradient is linear in the cost

        return jax.vmap(lane)(data).sum()

    params = {"t": 0.4, "w": 0.5, "b": 0.1}
    keys = jax.random.split(KEY, 50_000)
    grads = jax.jit(jax.vmap(lambda key: vx.grad(f)(key, params)))(keys)
    exact = {"t": jax.grad(mean)(0.4)}
    exact["w"], exact["b"] = jax.grad(squared_error, (0, 1))(0.5, 0.1)
    for name, value in exact.items():
        check_mean(np.asarray(grads[name])[:, None], np.asarray(value)[None])
    minimised = vx.grad(lambda p: -f(p), estimators={"z": est.Score()})
    assert minimised(KEY, params)["w"] == 0  # no baseline, no gradient


def test_a_temperature_may_be_traced_and_differ_by_lane():
    temperatures = jnp.array([0.3, 0.5, 1.0])

    def f(p):
        def lane(c, temperature):
            z = coin("z", p[0] * c, est.REBAR(temperature * p[1], 0.8))
            return (z - 0.3) ** 2 * c

        return jax.vmap(lane)(jnp.array([1.0, -1.0, 2.0]), temperatures).sum()

    def mean(t):
        return sum(mean_coin(lambda z, c=c: (z - 0.3) ** 2 * c, t * c) for c in (1.0, -1.0, 2.0))

    keys = jax.random.split(KEY, 50_000)
    draws = jax.jit(jax.vmap(lambda key: vx.grad(f)(key, jnp.array([0.4, 1.0]))))(keys)
    check_mean(np.asarray(draws), np.array([jax.grad(mean)(0.4), 0.0]))
