"""Export to ArviZ of either generation."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

import varax as vx
from varax import diagnosis
from varax import dist as d
from varax import errors as e
from varax.ppl.diagnosis.arviz_export import require_arviz

arviz = require_arviz()
GENERATION = int(arviz.__version__.split(".")[0])
KEY = jax.random.key(0)


def groups(exported):
    """The names of the groups, without the root."""
    names = exported.groups() if callable(exported.groups) else exported.groups
    return {name.strip("/") for name in names} - {""}


ALL = {"posterior", "posterior_predictive", "log_likelihood", "observed_data", "sample_stats"}


def test_a_fit():
    result = fitted(normal(Y), normal_guide, exact())
    exported = result.to_arviz(draws=50)
    assert type(exported).__name__ == ("DataTree" if GENERATION else "InferenceData")
    assert groups(exported) == ALL
    assert dict(exported["posterior"].sizes) == {"chain": 1, "draw": 50}
    assert exported["posterior_predictive"]["y"].shape == (1, 50, len(Y))
    np.testing.assert_allclose(exported["observed_data"]["y"], Y, rtol=1e-6)
    mu = np.asarray(exported["posterior"]["mu"])[..., None]
    expected = d.Normal(mu, SD).log_prob(Y)
    np.testing.assert_allclose(exported["log_likelihood"]["y"], expected, rtol=1e-4)
    log_w = np.asarray(exported["sample_stats"]["log_weight"])
    assert np.ptp(log_w) < 1e-4  # the guide is the posterior
    assert groups(result.to_arviz(draws=5, predictive=False, likelihood=False)) == ALL - {
        "posterior_predictive",
        "log_likelihood",
    }


def test_chains():
    draws = exact_draws(KEY, 4, 100)
    draws.stats |= {"khat": 0.2, "elbo": np.zeros(4)}  # no number for each draw
    exported = diagnosis.to_arviz(draws)
    assert groups(exported) == ALL
    assert dict(exported["posterior"].sizes) == {"chain": 4, "draw": 100}
    assert set(exported["sample_stats"].data_vars) == {"diverging", "energy"}


def test_leave_one_out_as_in_closed_form():
    """elpd_loo of a normal mean: each point under the posterior of the others."""
    exported = diagnosis.to_arviz(exact_draws(KEY, 4, 2000))
    total = POST_SD**-2 - SD**-2
    means = (POST_MEAN / POST_SD**2 - Y / SD**2) / total
    elpd = d.Normal(means, np.sqrt(1 / total + SD**2)).log_prob(Y).sum()
    found = arviz.loo(exported)
    assert float(getattr(found, "elpd_loo", getattr(found, "elpd", None))) == pytest.approx(
        float(elpd), abs=0.1
    )


@vx.model
def local():
    z = vx.sample("z", d.Normal(jnp.zeros(3), 1.0))
    vx.sample("y", d.Normal(z.sum(), 1.0), obs=0.5)


@vx.model
def outer():
    vx.sample("local", local())


@vx.model
def outer_guide(m):
    vx.sample("local", vx.model(lambda: vx.sample("z", d.Normal(m * jnp.ones(3), 0.7)))())


def test_nested_addresses_have_dots():
    exported = fitted(outer(), outer_guide, 0.1).to_arviz(draws=20)
    assert exported["posterior"]["local.z"].shape == (1, 20, 3)
    assert exported["posterior_predictive"]["local.y"].shape == (1, 20)
    assert exported["log_likelihood"]["local.y"].shape == (1, 20)


def test_a_model_that_observes_nothing():
    prior = vx.model(lambda m: vx.sample("z", d.Normal(m, 1.0)))
    exported = fitted(prior(0.0), prior, 0.1).to_arviz(draws=20)
    assert groups(exported) == {"posterior", "sample_stats"}


def test_without_arviz(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    result = fitted(normal(Y), normal_guide, exact())
    with pytest.raises(e.MissingExtraError, match="needs ArviZ") as caught:
        result.to_arviz()
    assert "varax[arviz]" in str(caught.value)
