"""The Inference Gym's targets: densities in SciPy, exact moments where they are known, NUTS."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_runs import run
from scipy import stats

from varax.models import inference_gym
from varax.models.inference_gym.brownian_motion import exact_posterior
from varax.models.inference_gym.compare import compare
from varax.models.inference_gym.data import Truth

NAMES = list(inference_gym.TARGETS)
normal = stats.norm.logpdf


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def seen(y, loc, scale):
    at = ~np.isnan(y)
    return normal(y[at], loc[at], scale).sum()


# ---- densities by hand: of the choices, and of what the model records


def brownian(c, innovation=None, observation=None):
    data = inference_gym.load("brownian_motion")
    prior = 0.0
    if "innovation_noise_scale" in c:
        innovation, observation = c["innovation_noise_scale"], c["observation_noise_scale"]
        prior = stats.lognorm.logpdf([innovation, observation], 2).sum()
    else:
        innovation, observation = data["innovation_noise_scale"], data["observation_noise_scale"]
    steps = np.diff(c["locs"], prepend=0.0)
    return (
        prior
        + normal(steps, 0, innovation).sum()
        + seen(data["observed_locs"], c["locs"], observation)
    )


def lorenz(c):
    data = inference_gym.load("lorenz")
    h, prior = data["step_size"], 0.0
    innovation, observation = data["innovation_scale"], data["observation_scale"]
    if "innovation_scale" in c:
        innovation, observation = c["innovation_scale"], c["observation_scale"]
        prior = stats.lognorm.logpdf([innovation, observation], 1, scale=np.exp(-1)).sum()
    path = c["latents"]
    found = prior + normal(path[0]).sum()
    for (x, y, z), after in itertools.pairwise(path):
        drift = np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])
        found += normal(after, [x, y, z] + h * drift, np.sqrt(h) * innovation).sum()
    return found + seen(data["observed_values"], path[:, 0], observation)


def schools(c):
    data = inference_gym.load("eight_schools")
    effects = c["school_effects"]
    found = normal(c["avg_effect"], 0, 10) + normal(c["log_stddev"], 5, 1)
    found += normal(effects, c["avg_effect"], np.exp(c["log_stddev"])).sum()
    return found + normal(data["treatment_effects"], effects, data["treatment_stddevs"]).sum()


def credit():
    data = inference_gym.load("german_credit")
    x = stats.zscore(data["features"].astype(float))
    return np.hstack([x, np.ones((len(x), 1))]), data["labels"]


def logistic(c):
    x, y = credit()
    return (
        normal(c["weights"]).sum()
        + stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-x @ c["weights"]))).sum()
    )


def probit(c):
    x, y = credit()
    return normal(c["weights"]).sum() + stats.norm.logcdf((2 * y - 1) * (x @ c["weights"])).sum()


def sparse(c):
    x, y = credit()
    gamma = stats.gamma(0.5, scale=2).logpdf
    weights = c["unscaled_weights"] * c["local_scales"] * c["global_scale"]
    found = gamma(c["global_scale"]) + gamma(c["local_scales"]).sum()
    likelihood = stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-x @ weights))).sum()
    return found + normal(c["unscaled_weights"]).sum() + likelihood


def volatility(c, y):
    phi, sigma, mu = (
        c[name]
        for name in ("persistence_of_volatility", "white_noise_shock_scale", "mean_log_volatility")
    )
    found = stats.beta.logpdf((phi + 1) / 2, 20, 1.5) - np.log(2)
    found += stats.cauchy.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(sigma, 0, 2)
    h, wide = c["log_volatility"] - mu, sigma / np.sqrt(1 - phi**2)
    found += normal(h[0], 0, wide) + normal(h[1:], phi * h[:-1], sigma).sum()
    volume = np.log(wide) + (len(h) - 1) * np.log(sigma)
    return found + volume + normal(y, 0, np.exp(c["log_volatility"] / 2)).sum()


def changes(days=None, logarithms=False):
    prices = inference_gym.load("sp500")["closing_prices"]
    change = np.diff(np.log(prices) if logarithms else prices)
    change = change if days is None else change[len(change) - days :]
    return change - change.mean()


def responses(c):
    data = inference_gym.load("item_response")
    i, j = data["student_ids"], data["question_ids"]
    logits = (
        c["mean_student_ability"] + c["centered_student_ability"][i] - c["question_difficulty"][j]
    )
    found = normal(c["mean_student_ability"], 0.75) + normal(c["centered_student_ability"]).sum()
    found += normal(c["question_difficulty"]).sum()
    return found + stats.bernoulli.logpmf(data["correct"], 1 / (1 + np.exp(-logits))).sum()


def cox(c):
    data = inference_gym.load("cox_process")
    apart = np.sqrt(((data["locations"][:, None] - data["locations"]) ** 2).sum(-1))
    r = np.sqrt(3) * apart / (c["length_scale"] + 0.001)
    cov = (c["amplitude"] + 0.001) ** 2 * (1 + r) * np.exp(-r) + 1e-6 * np.eye(100)
    mean = np.full(100, np.log(data["counts"] / data["extents"]).mean())
    found = stats.lognorm.logpdf(c["amplitude"], 0.5, scale=np.exp(-1))
    found += stats.lognorm.logpdf(c["length_scale"], 1, scale=np.exp(-1))
    found += stats.multivariate_normal.logpdf(c["log_intensity"], mean, cov)
    rate = data["extents"] * np.exp(c["log_intensity"])
    return found + stats.poisson.logpmf(data["counts"], rate).sum()


BY_HAND = {
    "brownian_motion_missing_middle_observations": brownian,
    "brownian_motion_unknown_scales_missing_middle_observations": brownian,
    "convection_lorenz_bridge": lorenz,
    "convection_lorenz_bridge_unknown_scales": lorenz,
    "eight_schools": schools,
    "german_credit_numeric_logistic_regression": logistic,
    "german_credit_numeric_probit_regression": probit,
    "german_credit_numeric_sparse_logistic_regression": sparse,
    "stochastic_volatility_log_sp500": lambda c: volatility(c, changes(logarithms=True)),
    "stochastic_volatility_log_sp500_small": lambda c: volatility(c, changes(100, True)),
    "stochastic_volatility_sp500": lambda c: volatility(c, changes()),
    "stochastic_volatility_sp500_small": lambda c: volatility(c, changes(100)),
    "synthetic_item_response_theory": responses,
    "synthetic_log_gaussian_cox_process": cox,
}


@pytest.mark.parametrize("name", NAMES)
def test_density_is_that_of_the_target(name):
    measure = inference_gym.target(name)
    potential = measure.potential()

    @jax.jit
    @jax.vmap
    def at(vector):
        u = potential.unravel(vector)
        choices = potential.constrain(u)
        return choices | potential.recorded(u), measure.log_density(choices)

    points = 0.3 * np.random.default_rng(0).normal(size=(4, potential.size))
    values, found = jax.tree.map(np.asarray, at(points))
    exact = np.array(
        [BY_HAND[name]({k: v[i] for k, v in values.items()}) for i in range(len(points))]
    )
    assert np.ptp(exact) > 1
    np.testing.assert_allclose(found - found[0], exact - exact[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_the_truth_is_in_the_model(name):
    measure, truth = inference_gym.target(name), inference_gym.truth(name)
    potential = measure.potential()
    u = potential.unravel(jnp.zeros(potential.size))
    values = jax.eval_shape(lambda: potential.constrain(u) | potential.recorded(u))
    for part, exact in truth.items():
        assert values[part].shape == exact.mean.shape == exact.sd.shape == exact.mcse_mean.shape


def test_ground_truth_of_brownian_motion_is_its_exact_posterior():
    """The one target with a closed form: checks data, model and truth against each other."""
    data = inference_gym.load("brownian_motion")
    y, times = data["observed_locs"], np.arange(1, 31)
    at = ~np.isnan(y)
    prior = data["innovation_noise_scale"] ** 2 * np.minimum.outer(times, times)
    precision = np.linalg.inv(prior) + np.diag(at / data["observation_noise_scale"] ** 2)
    cov = np.linalg.inv(precision)
    mean = cov @ np.where(at, y, 0.0) / data["observation_noise_scale"] ** 2
    truth = inference_gym.truth("brownian_motion_missing_middle_observations")["locs"]
    assert (abs(mean - truth.mean) < 5 * truth.mcse_mean).all()
    np.testing.assert_allclose(np.sqrt(np.diag(cov)), truth.sd, rtol=0.02)
    potential = inference_gym.target("brownian_motion_missing_middle_observations").potential()
    hessian = jax.hessian(lambda x: potential({"locs": x}))(jnp.asarray(mean))
    np.testing.assert_allclose(hessian, precision, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(jax.grad(potential)({"locs": mean})["locs"], 0, atol=1e-9)


def test_exact_moments_with_unknown_scales_are_those_of_a_brute_force_sum():
    """And the gym's own are not: its standard errors are too small."""
    y = inference_gym.load("brownian_motion")["observed_locs"]
    at, times = ~np.isnan(y), np.arange(1, 31)
    cov = np.minimum.outer(times, times)
    grid = [(a, b) for a in np.linspace(-4, 0, 33) for b in np.linspace(-7, 0, 57)]
    log_p, means = [], []
    for a, b in grid:
        noisy = np.exp(2 * a) * cov[np.ix_(at, at)] + np.exp(2 * b) * np.eye(20)
        density = stats.multivariate_normal.logpdf(y[at], np.zeros(20), noisy)
        log_p.append(density + normal(a, 0, 2) + normal(b, 0, 2))
        means.append(np.exp(2 * a) * cov[:, at] @ np.linalg.solve(noisy, y[at]))
    p = np.exp(np.array(log_p) - max(log_p))
    p = p / p.sum()
    exact = exact_posterior(y)
    np.testing.assert_allclose(exact["locs"].mean, p @ np.array(means), atol=1e-3)
    for i, part in enumerate(("innovation_noise_scale", "observation_noise_scale")):
        scale = np.exp(np.array(grid)[:, i])
        np.testing.assert_allclose(exact[part].mean, p @ scale, rtol=2e-3)
        spread = np.sqrt(p @ (scale - p @ scale) ** 2)
        np.testing.assert_allclose(exact[part].sd, spread, rtol=1e-2)
    theirs = inference_gym.truth("brownian_motion_unknown_scales_missing_middle_observations")
    part = theirs["observation_noise_scale"]
    assert abs(part.mean - exact["observation_noise_scale"].mean) > 15 * part.mcse_mean


# ---- the rule


def test_the_rule_accepts_draws_of_the_truth_and_refuses_others():
    rng = np.random.default_rng(1)
    truth = {"x": Truth(np.array([1.0, -2.0]), np.array([0.001, 0.01]), np.array([1.0, 3.0]))}
    draws = truth["x"].mean + truth["x"].sd * rng.normal(size=(4, 2000, 2))
    good = compare(truth, {"x": draws})["x"]
    assert good.right and good.error.max() < 0.1 and abs(good.ratio - 1).max() < 0.1
    assert not compare(truth, {"x": draws + np.array([0.0, 0.3])})["x"].right
    wide = compare(truth, {"x": truth["x"].mean + 1.1 * (draws - truth["x"].mean)})["x"]
    assert (wide.z_mean < 5).all() and (wide.z_variance > 5).any() and not wide.right


@pytest.mark.parametrize("call", [inference_gym.target, inference_gym.load, inference_gym.truth])
def test_an_unknown_name_is_answered_with_those_near(call):
    with pytest.raises(
        inference_gym.UnknownTargetError,
        match=r"no (target|data|truth).*'eight_scools'(?s:.*)eight_schools",
    ):
        call("eight_scools")


@pytest.mark.slow
def test_nuts_finds_the_ground_truth(tmp_path, capsys):
    found = run(inference_gym, tmp_path, "--target", "eight_schools", "--draws", "500")
    assert found["z_mean"] < 5 and found["z_variance"] < 5
    assert "log_stddev" in capsys.readouterr().out
