"""Pathfinder against posteriors in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import FALSE_ALARM
from scipy import stats

import varax as vx
from varax import dist as d
from varax import errors

KEY = jax.random.key(0)
COVARIANCE = ((2.0, 0.8), (0.8, 1.0))
M = (1.0, -2.0)


@vx.model
def gaussian():
    vx.sample("x", d.MultivariateNormal(jnp.array(M), jnp.array(COVARIANCE)))


@vx.model
def positive():
    """A Gamma(3, 1) posterior: skewed on R."""
    x = vx.sample("x", d.Gamma(3.0, 1.0))
    vx.deterministic("square", x**2)


def check_moments(draws, moments, effective):
    x = np.asarray(draws["x"][0], float).ravel()
    z = stats.norm.isf(FALSE_ALARM / 4)
    first = abs(x.mean() - moments[0]) / (x.std() / np.sqrt(effective))
    second = abs((x**2).mean() - moments[1]) / ((x**2).std() / np.sqrt(effective))
    return max(first, second) < z


@pytest.mark.slow
def test_pathfinder_resamples_towards_the_posterior():
    """The best normals of log x miss the mean of x ~ Gamma(3, 1); weights mend it."""
    m = positive()
    draws = vx.pathfinder(m, KEY, draws=4000)
    assert draws["x"].shape == (1, 4000) and draws.stats["elbo"].shape == (4,)
    assert draws.stats["khat"] < 0.7 and "khat=" in repr(draws)
    np.testing.assert_allclose(draws["square"], draws["x"] ** 2, rtol=1e-5)
    assert check_moments(draws, (3.0, 12.0), 1000)  # resampled with weights: fewer count
    plain = vx.pathfinder(m, KEY, draws=4000, importance_resample=False)
    assert not check_moments(plain, (3.0, 12.0), 4000)
    assert len(np.unique(plain.stats["path"])) == 4


@pytest.mark.optimized
def test_pathfinder_finds_a_gaussian():
    draws = vx.pathfinder(gaussian(), KEY, draws=4000)
    x = np.asarray(draws["x"][0])
    np.testing.assert_allclose(x.mean(0), M, atol=0.1)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, rtol=0.15)


def test_refusals(monkeypatch):
    def refuse(kind, match, make):
        with pytest.raises(kind, match=match):
            make()

    refuse(
        errors.SamplerError,
        r"(?s)Pathfinder cannot.*draws=0, paths=4",
        lambda: vx.pathfinder(gaussian(), KEY, draws=0),
    )

    @vx.model
    def nowhere():
        vx.factor("f", jnp.where(vx.sample("x", d.Normal(0.0, 1.0)) > 1e6, 0.0, jnp.nan))

    refuse(errors.InitialisationError, "finite density", lambda: vx.pathfinder(nowhere(), KEY))
    monkeypatch.setitem(__import__("sys").modules, "blackjax", None)
    refuse(errors.MissingExtraError, r"varax\[mcmc\]", lambda: vx.pathfinder(gaussian(), KEY))
