"""Summaries: moments against closed forms, verdicts that speak up where they should."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import FALSE_ALARM
from posterior_cases import (
    POST_MEAN,
    POST_SD,
    SETTLED,
    Chains,
    Y,
    exact,
    exact_draws,
    fitted,
    normal,
    normal_guide,
)
from scipy.special import ndtri

import varax as vx
from varax import diagnosis
from varax import dist as d
from varax import errors as e
from varax.ppl.diagnosis import mixing
from varax.ppl.diagnosis.arviz_export import require_arviz
from varax.ppl.diagnosis.signal import reach

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = -ndtri(FALSE_ALARM / 2)

# ---- fits


def test_moments_are_those_of_the_guide():
    summary = fitted(normal(Y), normal_guide, exact()).summary()
    row = summary["mu"]
    n = summary.facts["draws"]
    assert row["mcse"] == pytest.approx(POST_SD / np.sqrt(n), rel=0.1)
    assert abs(row["mean"] - POST_MEAN) < Z * row["mcse"]
    assert abs(row["sd"] - POST_SD) < Z * POST_SD / np.sqrt(2 * n)
    for name, q in (("q5", 0.05), ("median", 0.5), ("q95", 0.95)):
        x = ndtri(q)
        density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
        error = POST_SD * np.sqrt(q * (1 - q) / n) / density
        assert abs(row[name] - (POST_MEAN + POST_SD * x)) < Z * error
    assert summary.trusted and "Nothing speaks against" in summary.verdict.line
    evidence = d.MultivariateNormal(  # y is normal with covariance sd^2 I + prior_sd^2
        np.zeros(len(Y)), 1.5**2 * np.eye(len(Y)) + 2.0**2
    ).log_prob(Y)
    assert summary.facts["elbo"] == pytest.approx(float(evidence), abs=1e-4)
    assert summary.facts["log_evidence"] == pytest.approx(float(evidence), abs=1e-4)


@pytest.mark.parametrize(
    ("shift", "scale", "says"),
    [
        (0.0, 0.35, r"k-hat \d\.\d\d is above 0\.70, the guide misses part"),
        (6.0, 1.0, r"k-hat \d\.\d\d is above 0\.70"),
        (0.3, 1.1, r"reweighting moves the mean of mu by 0\.3\d* sd \(importance=True"),
        (0.0, 1.4, r"the sd of mu is 1\.4\d* times that of the reweighted draws"),
    ],
)
def test_a_wrong_guide_is_not_trusted(shift, scale, says):
    result = fitted(normal(Y), normal_guide, exact(shift, scale))
    summary = result.summary(gradients=0)
    assert summary.trusted is False
    assert re.search(f"Do not trust this: .*{says}", summary.verdict.line)


def test_reweighting_mends_a_guide_that_is_near():
    result = fitted(normal(Y), normal_guide, exact(0.3, 1.1))
    plain = result.summary(gradients=0)["mu"]
    again = result.summary(gradients=0, importance=True)
    assert again.trusted
    assert abs(plain["mean"] - POST_MEAN) > Z * plain["mcse"]
    assert abs(again["mu"]["mean"] - POST_MEAN) < Z * again["mu"]["mcse"]
    assert again["mu"]["sd"] == pytest.approx(POST_SD, rel=0.05)
    assert again["mu"]["q95"] == pytest.approx(POST_MEAN + 1.645 * POST_SD, rel=0.05)


def test_an_objective_that_still_moves_is_not_trusted():
    rising = SETTLED + np.linspace(-3, 0, len(SETTLED))
    summary = fitted(normal(Y), normal_guide, exact(), rising).summary(gradients=0)
    assert summary.trusted is False and "the objective still changes: by" in summary.verdict.line
    tolerant = fitted(normal(Y), normal_guide, exact(), rising).summary(gradients=0, tolerance=9.0)
    assert tolerant.trusted


def test_a_guide_that_leaves_the_support():
    @vx.model
    def waiting():
        vx.sample("t", d.Exponential(1.0))

    guide = vx.model(lambda sd: vx.sample("t", d.Normal(1.0, sd)))
    line = fitted(waiting(), guide, 0.7).summary(gradients=0).verdict.line
    assert re.search(r"\d\.\d% of the guide is outside the model's support", line)
    far = vx.model(lambda sd: vx.sample("t", d.Normal(-30.0, sd)))
    summary = fitted(waiting(), far, 1.0).summary(gradients=0)
    assert summary.trusted is False
    assert "weights are unusable, all 10000 weights are zero" in summary.verdict.line
    with pytest.raises(e.WeightsError):
        fitted(waiting(), far, 1.0).summary(importance=True)


@vx.model
def many_supports(_=None):
    vx.sample("u", d.Uniform(-1.0, jnp.ones(2)))
    vx.sample("p", d.Dirichlet(jnp.ones(3)))
    vx.sample("l", d.LKJCholesky(3, 1.0))
    vx.sample("v", d.Normal(0.0, 1.0).expand([2]).to_event(1))
    vx.sample("k", d.Poisson(2.0))
    vx.sample("m", vx.masked(d.Gamma(jnp.ones(2), 1.0), jnp.array([True, False])))
    jax.vmap(lambda a: vx.sample("b", d.Beta(a, 1.0)))(jnp.arange(1.0, 4.0))


@pytest.mark.slow
def test_draws_inside_every_kind_of_support_count():
    """The model is its own guide: every weight is one."""
    result = fitted(many_supports(), many_supports, None)
    summary = result.summary(gradients=0, draws=2000)
    assert summary.trusted and summary.facts["elbo"] == pytest.approx(0.0, abs=1e-5)
    assert {"u[1]", "p[2]", "l[2,0]", "v[0]", "k", "m[1]", "b[2]"} <= set(summary.names)


def test_model_that_depends_on_the_params_and_groups():
    params = {"model": jnp.asarray(2.0), "guide": exact()}

    @vx.model
    def model(p):
        mu = vx.sample("mu", d.Normal(0.0, p["model"]))
        vx.sample("y", d.Normal(mu, 1.5).expand([len(Y)]), obs=Y)

    history = {"model": SETTLED, "guide": SETTLED}
    result = fitted(lambda p: model(p), lambda p: normal_guide(p["guide"]), params, history)
    assert result.summary().trusted


def test_forms_of_a_summary():
    summary = fitted(normal(Y), normal_guide, exact()).summary(draws=100, gradients=0)
    assert summary.to_dict()["name"] == ["mu"]
    assert summary.rows[0]["name"] == "mu" and summary.rows[0] == {"name": "mu"} | summary["mu"]
    assert list(summary.to_pandas().index) == ["mu"]
    text, page = repr(summary), summary._repr_html_()
    for part in ("mean", "mcse", "mu", summary.verdict.line):
        assert part in text
    assert page.count("<tr>") == 2 and "<b>" in page
    with pytest.raises(e.UnknownAddressError, match="no such row"):
        summary["nu"]


def test_a_long_summary_is_cut_in_print_alone():
    @vx.model
    def wide(_=None):
        vx.sample("z", d.Normal(0.0, 1.0).expand([100]))

    summary = fitted(wide(), wide, None).summary(draws=50, gradients=0)
    assert "... and 60 more rows" in repr(summary) and len(summary.rows) == 100
    assert "60 more rows" in summary._repr_html_()


# ---- gradients


def test_signal_to_noise_of_a_known_gradient():
    """d/dp of p . x with x ~ N(m, s^2) is x itself."""
    m, s = np.array([1.0, 0.0, -2.0]), np.array([0.5, 1.0, 4.0])

    def objective(params):
        return params["p"] @ vx.sample("x", d.Normal(m, s)) + params["fixed"]

    n = 20_000
    found = diagnosis.signal_to_noise(objective, {"p": jnp.ones(3), "fixed": 0.0}, KEY, n)
    error = np.sqrt((1 + (m / s) ** 2 / 2) / n)  # of |mean| / sd, to first order
    np.testing.assert_array_less(np.abs(found.ratio["p"] - np.abs(m) / s), Z * error)
    joint = np.sqrt((m**2).sum() / (s**2).sum())
    assert found.parts["p"] == pytest.approx(joint, rel=0.1)
    assert found.ratio["fixed"] == np.inf and "p: 0.5" in repr(found)
    mask = {"p": np.array([True, False, False]), "fixed": np.array(False)}
    assert found.of(mask) == pytest.approx(2.0, rel=0.1)


@vx.model
def pair(phi):
    a = vx.sample("a", d.Normal(phi["a"], 1.0))
    vx.sample("b", d.Normal(phi["slope"] * a, jnp.exp(phi["both"])[0]))
    vx.sample("c", d.Normal(phi["both"][1], 1.0))


@vx.model
def coin(phi):
    k = vx.sample("k", d.Bernoulli(logits=phi["logit"]))
    vx.sample("x", d.Normal(phi["mean"][k], 1.0))


def test_which_parameters_reach_a_choice():
    phi = {"a": jnp.asarray(0.3), "slope": jnp.asarray(0.5), "both": jnp.array([0.1, 0.2])}
    found = reach(pair, phi, KEY)
    as_lists = {a: [m["a"], m["slope"], *m["both"]] for a, m in found.items()}
    assert as_lists == {"a": [1, 0, 0, 0], "b": [1, 1, 1, 0], "c": [0, 0, 0, 1]}
    found = reach(coin, {"logit": jnp.asarray(0.0), "mean": jnp.array([0.0, 1.0])}, KEY)
    assert found["k"]["logit"] and not found["k"]["mean"].any()
    assert not found["x"]["logit"] and found["x"]["mean"].sum() == 1


def test_signal_of_a_summary_grows_with_the_distance():
    """At the optimum the mean gradient is zero; five sd away it stands out."""
    near, far = (fitted(normal(Y), normal_guide, exact(s)).summary(draws=100) for s in (0.0, 5.0))
    assert near["mu"]["snr"] < 0.4 < 0.7 < far["mu"]["snr"]


def test_no_signal_where_no_gradient_is_unbiased():
    """A pathwise choice that jumps has no unbiased gradient here: a dash, not an error."""

    @vx.model
    def step(y):
        mu = vx.sample("mu", d.Normal(0.0, 2.0))
        vx.sample("y", d.Normal(jnp.where(mu > 0, 1.0, -1.0), 1.5), obs=y)

    @vx.model
    def pathwise(phi):
        vx.sample("mu", d.Normal(phi["mean"], phi["sd"]), estimator=vx.estimators.Reparam())

    summary = fitted(step(1.0), pathwise, exact()).summary(draws=100)
    assert np.isnan(summary["mu"]["snr"]) and " -\n" in repr(summary)


# ---- convergence


def autoregressive(n, rho, size=1):
    noise = RNG.normal(size=(size, n)) * np.sqrt(1 - rho**2)
    x = np.zeros((size, n))
    x[:, 0] = RNG.normal(size=size)
    for t in range(1, n):
        x[:, t] = rho * x[:, t - 1] + noise[:, t]
    return x


def test_settled_series_are_seldom_called_moving():
    """Three errors, Student's t with 18 degrees: 0.8 % of independent series, or some more."""
    for rho, most in ((0.0, 0.03), (0.9, 0.08)):
        found = [
            diagnosis.convergence(x, tolerance=0.0).settled for x in autoregressive(4000, rho, 300)
        ]
        assert 1 - np.mean(found) < most


def test_a_drift_is_seen():
    for x in autoregressive(4000, 0.9, 20):
        found = diagnosis.convergence(x + np.linspace(0, 20, 4000))
        assert found.settled is False and found.change == pytest.approx(5, abs=2)
        assert found.r_hat > 1.1
    assert diagnosis.convergence(np.zeros(400)).settled


def test_a_short_or_empty_history_says_so():
    assert diagnosis.convergence(RNG.normal(size=30)).settled is None
    assert "too few to tell" in str(diagnosis.convergence([]))
    gaps = np.where(np.arange(400) % 2, np.nan, 1.0)
    assert diagnosis.convergence(gaps).steps == 50


def test_plot_of_a_history_has_an_error_band():
    pytest.importorskip("matplotlib").use("agg")
    ax = fitted(None, None, None).plot()
    (band,) = ax.collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert low < SETTLED.mean() < high


# ---- chains


def test_mixing_as_arviz_has_it():
    arviz = require_arviz()
    for rho in (0.0, 0.6, -0.5, 0.95):
        x = autoregressive(500, rho, 4)
        x[3] += 0.3
        ours = {f.__name__: f(x[..., None])[0] for f in (mixing.ess_bulk, mixing.ess_tail)}
        assert ours["ess_bulk"] == pytest.approx(float(arviz.ess(x, method="bulk")), rel=1e-6)
        tail = float(arviz.ess(x, method="tail", prob=(0.05, 0.95)))
        assert ours["ess_tail"] == pytest.approx(tail, rel=0.01)
        mean = float(arviz.ess(x, method="mean"))
        assert mixing.ess_mean(x[..., None])[0] == pytest.approx(mean, rel=1e-6)
        assert mixing.r_hat(x[..., None])[0] == pytest.approx(float(arviz.rhat(x)), rel=1e-6)


def test_effective_sample_size_of_an_autoregression():
    """(1 - rho) / (1 + rho) of the draws."""
    x = autoregressive(2000, 0.5, 4 * 60).reshape(4, 60, 2000).transpose(0, 2, 1)
    found = mixing.ess_bulk(x) / 8000
    assert abs(found.mean() - 1 / 3) < Z * found.std() / np.sqrt(60) + 0.01


def test_constant_and_short_quantities_have_no_diagnosis():
    x = np.zeros((4, 100, 1))
    assert np.isnan([mixing.r_hat(x), mixing.ess_bulk(x), mixing.ess_tail(x)]).all()
    assert np.isnan(mixing.r_hat(RNG.normal(size=(4, 6, 1))))


def test_independent_draws_are_trusted():
    draws = exact_draws(KEY)
    summary = diagnosis.summarize(draws)
    row = summary["mu"]
    assert summary.trusted and row["ess_bulk"] > 1000
    assert row["mcse"] == pytest.approx(POST_SD / np.sqrt(2000), rel=0.2)
    assert "no trajectory diverged" in summary.verdict.line and "R-hat" in summary.verdict.line


def chains(x=None, **stats):
    z = RNG.normal(size=(4, 500)) if x is None else x
    known = {"diverging": np.zeros(np.shape(z)[:2], bool)}
    return Chains({"mu": z}, known | stats, normal(Y))


@pytest.mark.parametrize(
    ("draws", "says"),
    [
        (
            chains(RNG.normal(size=(4, 500)) + np.arange(4)[:, None]),
            r"R-hat is \d\.\d+ at mu, above",
        ),
        (chains(autoregressive(500, 0.99, 4)), r"effective sample size of mu is \d+, below 100"),
        (chains(diverging=np.eye(4, 500, dtype=bool)), r"4 of 2000 trajectories diverged"),
        (chains(energy=np.cumsum(RNG.normal(size=(4, 500)), 1)), r"E-BFMI is 0\.\d+, below 0.3"),
        (chains(np.full((4, 500), np.nan)), "draws of mu are not finite"),
    ],
    ids=["apart", "slow", "divergent", "energy", "nan"],
)
def test_chains_that_are_not_trusted(draws, says):
    summary = diagnosis.summarize(draws)
    assert summary.trusted is False
    assert re.search(f"Do not trust this: .*{says}", summary.verdict.line)


@pytest.mark.parametrize(
    ("draws", "says"),
    [
        (chains(RNG.normal(size=(1, 500))), "one chain has no other"),
        (chains(RNG.normal(size=(4, 6))), "6 draws a chain are too few to judge"),
        (Chains({"mu": RNG.normal(size=(1, 500))}, {}, normal(Y)), "nothing is known of how near"),
    ],
    ids=["one chain", "short", "particles"],
)
def test_draws_of_which_too_little_is_known(draws, says):
    summary = diagnosis.summarize(draws)
    assert summary.trusted is None and says in summary.verdict.line


@pytest.mark.parametrize(("khat", "trusted"), [(0.3, True), (0.9, False), (np.inf, False)])
def test_weighted_draws_are_judged_by_khat(khat, trusted):
    draws = Chains({"mu": RNG.normal(size=(1, 1000))}, {"khat": khat, "elbo": np.zeros(4)}, None)
    draws.model = normal(Y)
    summary = diagnosis.summarize(draws)
    assert summary.trusted is trusted and "k-hat" in summary.verdict.line


def test_plot_of_draws():
    pytest.importorskip("matplotlib").use("agg")
    assert diagnosis.plot(chains(RNG.normal(size=(4, 50, 3)))).shape == (3, 2)
    assert diagnosis.plot(chains(RNG.normal(size=(4, 50, 3))), names=["mu[1]"]).shape == (1, 2)
