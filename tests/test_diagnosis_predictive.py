"""Posterior prediction: closed forms, every kind of site, other inputs, checks of statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import FALSE_ALARM, check_biased, check_mean
from posterior_cases import (
    POST_MEAN,
    POST_SD,
    SD,
    Y,
    exact,
    exact_draws,
    fitted,
    normal,
    normal_guide,
)
from scipy.special import ndtr, ndtri

import varax as vx
from varax import diagnosis
from varax import dist as d
from varax import errors as e

KEY = jax.random.key(0)
Z = -ndtri(FALSE_ALARM / 2)
RESULT = fitted(normal(Y), normal_guide, exact())

# ---- closed forms


def test_predictions_have_the_posterior_predictive_law():
    n = 20_000
    y = np.asarray(RESULT.predict(KEY, n)["y"])  # [n, 8]
    assert y.shape == (n, len(Y))
    check_mean(y, np.full(len(Y), POST_MEAN))
    variance = POST_SD**2 + SD**2
    check_mean((y[:, :1] - POST_MEAN) ** 2, np.array([variance]))
    check_mean((y[:, :1] - POST_MEAN) * (y[:, 1:2] - POST_MEAN), np.array([POST_SD**2]))
    check_biased((y[:, :1] - POST_MEAN) ** 2, np.array([SD**2]))  # the guide's spread left out


def test_the_same_key_gives_the_same_predictions():
    again = RESULT.predict(KEY, 5)["y"]
    np.testing.assert_array_equal(RESULT.predict(KEY, 5)["y"], again)
    assert not np.allclose(RESULT.predict(jax.random.key(1), 5)["y"], again)


def test_predictions_at_new_inputs_and_without_observations():
    new = RESULT.predict(KEY, 5_000, normal(np.zeros(3)))["y"]
    assert new.shape == (5_000, 3)
    check_mean(np.asarray(new), np.full(3, POST_MEAN))

    @vx.model
    def generative(n):
        mu = vx.sample("mu", d.Normal(0.0, 2.0))
        vx.sample("y", d.Normal(mu, SD).expand([n]))

    drawn = RESULT.predict(KEY, 5_000, generative(2))
    assert drawn.keys() == {"y"}
    check_mean(np.asarray(drawn["y"]), np.full(2, POST_MEAN))


def test_predictions_at_chains():
    draws = exact_draws(KEY, 2, 50)
    assert diagnosis.predict(draws, KEY)["y"].shape == (2, 50, len(Y))


# ---- every kind of site


@vx.model
def inner(mu):
    z = vx.sample("z", d.Normal(mu, 1.0))
    vx.sample("x", d.Normal(z, 1.0))


@vx.model
def lanes(mu, y):
    jax.vmap(lambda y: vx.sample("y", d.Normal(mu, 1.0), obs=y))(y)


COUNTS, MASK = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])


@vx.model
def everything(y):
    mu = vx.sample("mu", d.Normal(0.0, 1.0))
    vx.sample("plate", lanes(mu, y))
    vx.sample("count", d.Poisson(jnp.exp(mu)).expand([3]), obs=COUNTS)
    vx.sample("gap", vx.masked(d.Normal(mu, 1.0).expand([3]), MASK), obs=np.zeros(3))

    def step(s, x):
        s = vx.sample("s", d.Normal(s + mu, 1.0))
        seen = vx.sample("o", vx.scaled(d.Normal(s, 0.1), 10.0), obs=x)
        return s + 0 * seen, None

    jax.lax.scan(step, 0.0, jnp.zeros(4))
    vx.sample("joint", d.MultivariateNormal(jnp.full(2, mu), jnp.eye(2)), obs=np.ones(2))
    vx.factor("f", -(mu**2))
    vx.sample("nested", vx.marginal(inner(mu), "x", vx.importance(3)), obs={"x": 1.0})
    vx.deterministic("twice", 2 * mu)


MEASURE = everything(np.array([0.5, 1.0]))
LATENT = {"mu": jnp.full((2, 5), 0.3), "s": jnp.ones((2, 5, 4))}


def test_every_observation_is_drawn_anew():
    found = diagnosis.predict_at(MEASURE, LATENT, KEY)
    shapes = jax.tree.map(lambda x: x.shape[2:], found)
    assert shapes == {
        "plate": {"y": (2,)},
        "count": (3,),
        "gap": (3,),
        "o": (4,),
        "joint": (2,),
        "nested": {"x": ()},
    }
    assert jnp.issubdtype(found["count"].dtype, jnp.integer)  # although observed as floats
    assert np.ptp(found["gap"][..., 1]) == 0  # absent
    for name in ("count", "o", "joint"):
        assert len(np.unique(found[name])) > 3
    many = diagnosis.predict_at(MEASURE, {"mu": jnp.full(5000, 0.3), "s": jnp.ones((5000, 4))}, KEY)
    check_mean(np.asarray(many["o"]), np.ones(4))
    check_mean((np.asarray(many["o"][:, 0]) - 1.0) ** 2, 0.01)  # the scaled measure's own law
    check_mean(np.asarray(many["plate"]["y"]), np.full(2, 0.3))
    check_mean(np.asarray(many["count"], float), np.full(3, np.exp(0.3)))
    check_mean((np.asarray(many["nested"]["x"]) - 0.3) ** 2, 2.0)


def test_log_likelihood_is_that_of_each_observation():
    found = diagnosis.log_likelihood(MEASURE, LATENT, KEY)
    mu = 0.3
    expected = {
        "plate": {"y": d.Normal(mu, 1.0).log_prob(np.array([0.5, 1.0]))},
        "count": d.Poisson(np.exp(mu)).log_prob(COUNTS),
        "gap": np.where(MASK, d.Normal(mu, 1.0).log_prob(0.0), 0.0),
        "o": d.Normal(np.ones(4), 0.1).log_prob(0.0),
        "joint": d.MultivariateNormal(np.full(2, mu), np.eye(2)).log_prob(np.ones(2)),
    }
    for name, values in expected.items():
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(
                x, np.broadcast_to(y, np.shape(x)), rtol=1e-5, atol=1e-5
            ),
            found[name],
            values,
        )
    assert found["nested"]["x"].shape == (2, 5)


def test_log_likelihood_of_a_nested_estimate_is_unbiased():
    many = {"mu": jnp.full(20_000, 0.3), "s": jnp.ones((20_000, 4))}
    w = np.exp(np.asarray(diagnosis.log_likelihood(MEASURE, many, KEY)["nested"]["x"]))
    check_mean(w, float(jnp.exp(d.Normal(0.3, np.sqrt(2.0)).log_prob(1.0))))


def test_branches():
    @vx.model
    def branch():
        k = vx.sample("k", d.Normal(0.0, 1.0))

        def low():
            return vx.sample("x", d.Normal(-5.0, 0.1), obs=1.0)

        jax.lax.cond(k > 0, lambda: vx.sample("x", d.Normal(5.0, 0.1), obs=1.0), low)

    x = diagnosis.predict_at(branch(), {"k": jnp.array([-1.0, 1.0])}, KEY)["x"]
    np.testing.assert_allclose(x, [-5, 5], atol=1)
    found = diagnosis.log_likelihood(branch(), {"k": jnp.array([-1.0, 1.0])}, KEY)["x"]
    np.testing.assert_allclose(found, d.Normal(np.array([-5.0, 5.0]), 0.1).log_prob(1.0), rtol=1e-4)


def test_many_draws_in_chunks_are_the_same(monkeypatch):
    draws = {"mu": jnp.zeros((2, 5))}
    whole = diagnosis.predict_at(normal(Y), draws, KEY)
    monkeypatch.setattr("varax.ppl.diagnosis.draws.CHUNK", 30)  # 3 draws at a time
    parts = diagnosis.predict_at(normal(Y), draws, KEY)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), whole, parts)


# ---- other groups


@vx.model
def groups(y):
    mu = vx.sample("mu", d.Normal(0.0, 1.0))

    def one(y):
        b = vx.sample("b", d.Normal(mu, 0.1))
        vx.sample("y", d.Normal(b, 0.1), obs=y)

    jax.vmap(one)(y)


def test_groups_that_were_not_seen_are_drawn():
    draws = {"mu": jnp.full(4000, 2.0), "b": jnp.full((4000, 3), -7.0)}
    seen = diagnosis.predict_at(groups(np.zeros(3)), draws, KEY)
    check_mean(np.asarray(seen["y"]), np.full(3, -7.0))
    new = diagnosis.predict_at(groups(np.zeros(5)), draws, KEY, given="mu")
    assert new.keys() == {"b", "y"}
    check_mean(np.asarray(new["y"]), np.full(5, 2.0))
    prior = diagnosis.predict_at(groups(np.zeros(5)), draws, KEY, given=())
    check_mean(np.asarray(prior["mu"]), 0.0)


def test_choices_that_do_not_fit():
    draws = {"mu": jnp.zeros(4), "b": jnp.zeros((4, 3))}
    with pytest.raises(e.ShapeError, match="have not its shape") as caught:
        diagnosis.predict_at(groups(np.zeros(5)), draws, KEY)
    assert "given=" in str(caught.value) and caught.value.address == "b"
    with pytest.raises(e.UnknownAddressError, match="not an address that was fitted"):
        diagnosis.predict_at(normal(Y), draws, KEY)
    with pytest.raises(e.UnknownAddressError, match="no draws of an address"):
        diagnosis.predict_at(groups(np.zeros(3)), draws, KEY, given=("nu",))
    with pytest.raises(e.ShapeError, match="differ in number"):
        diagnosis.predict_at(groups(np.zeros(3)), draws | {"mu": jnp.zeros(7)}, KEY)
    with pytest.raises(e.CapabilityError, match="needs a measure"):
        RESULT.predict(KEY, 5, normal)


def test_nothing_to_predict():
    prior = vx.model(lambda: vx.sample("mu", d.Normal(0.0, 1.0)))
    with pytest.raises(e.CapabilityError, match="nothing to predict") as caught:
        RESULT.predict(KEY, 5, prior())
    assert "observes nothing" in str(caught.value)


# ---- checks


def test_p_value_of_a_check():
    """P(y_1 > its value) under the predictive normal."""
    n = 20_000
    check = vx.posterior_predictive_check(RESULT, lambda data: data["y"][0], KEY, n)
    p = 1 - ndtr((Y[0] - POST_MEAN) / np.hypot(POST_SD, SD))
    assert check.observed == pytest.approx(Y[0]) and check.replicated.shape == (n,)
    assert abs(check.p_value - p) < Z * np.sqrt(p * (1 - p) / n)


def test_a_misfit_is_seen_and_a_fit_is_not():
    outlier = np.append(Y, 40.0)
    phi = {"mean": jnp.asarray(POST_MEAN), "sd": jnp.asarray(POST_SD)}
    bad = fitted(normal(outlier), normal_guide, phi)
    assert vx.posterior_predictive_check(bad, lambda data: data["y"].max(), KEY).p_value < 0.01
    good = vx.posterior_predictive_check(RESULT, lambda data: data["y"].max(), KEY)
    assert 0.05 < good.p_value < 0.95 and "p_value=0." in repr(good)


def test_a_check_of_several_statistics_and_its_ties():
    check = vx.posterior_predictive_check(
        RESULT, lambda data: jnp.stack([data["y"].mean(), 0.0 * data["y"][0]]), KEY, 200
    )
    assert check.p_value.shape == (2,) and check.p_value[1] == 0.5
    assert "shape=(2,)" in repr(check)
    with pytest.raises(e.ShapeError, match="Only a scalar"):
        check.plot()


def test_plot_of_a_check():
    pytest.importorskip("matplotlib").use("agg")
    check = vx.posterior_predictive_check(RESULT, lambda data: data["y"].max(), KEY, 100)
    assert check.plot().get_xlabel() == "statistic"
