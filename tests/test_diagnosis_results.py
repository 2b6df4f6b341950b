"""What `vx.fit` and the samplers return answers the same questions."""

import jax
import numpy as np
import optax
import pytest
from posterior_cases import POST_MEAN, POST_SD, Y, normal

import varax as vx

KEY = jax.random.key(0)


@pytest.mark.thin(2)
@pytest.mark.parametrize("kind", ["mean_field", "full_rank"])
def test_a_fit_of_an_automatic_guide(kind):
    guide = vx.autoguide(normal(Y), kind)
    result = vx.fit(
        guide.elbo, guide.init(KEY), optax.adam(0.01), steps=200, key=KEY, progress=False
    )
    summary = result.summary()
    row = summary["mu"]
    assert summary.trusted and summary.facts["khat"] == result.khat
    assert abs(row["mean"] - POST_MEAN) < 0.1 * POST_SD and row["sd"] == pytest.approx(
        POST_SD, rel=0.1
    )
    assert row["snr"] >= 0
    assert result.predict(KEY, 10)["y"].shape == (10, len(Y))


def test_draws_of_a_sampler():
    draws = vx.nuts(normal(Y), KEY, draws=300, warmup=200, progress=False)
    summary = draws.summary()
    assert abs(summary["mu"]["mean"] - POST_MEAN) < 6 * summary["mu"]["mcse"]
    assert summary["mu"]["sd"] == pytest.approx(POST_SD, rel=0.25)
    assert {"r_hat", "divergences", "e_bfmi"} <= summary.facts.keys()
    assert draws.predict(jax.random.key(1))["y"].shape == (4, 300, len(Y))
    check = vx.posterior_predictive_check(draws, lambda data: data["y"].mean(), jax.random.key(2))
    assert 0.1 < check.p_value < 0.9
    exported = draws.to_arviz()
    assert {"diverging", "energy"} <= set(exported["sample_stats"].data_vars)
    assert np.asarray(exported["posterior"]["mu"]).shape == (4, 300)
