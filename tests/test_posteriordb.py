"""The models of posteriordb: against densities in SciPy, and against the reference draws.

A density p on R^D has E_p[grad log p] = 0. Draws of the reference in the place of p's: the mean
gradient is zero within its Monte Carlo error only if the model is the one that they are from.

With VARAX_DATA naming a folder that has posteriordb's own files, the bundle is compared with them
and all 1,000 draws there are used.
"""

import functools
import gzip
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import check_biased, check_mean
from model_runs import run
from stan_densities import DENSITIES

import varax as vx
from varax import cli
from varax import dist as d
from varax.models import posteriordb
from varax.models.posteriordb import gp, kidiq, time_series

NAMES = list(posteriordb.POSTERIORS)
FULL = Path(os.environ.get("VARAX_DATA", "")) / "posteriordb"
POINTS = 6


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def reference_draws(name):
    """[n, P]: the bundled draws, or all that are at hand."""
    if not (FULL / "reference_draws_thin10.npz").exists():
        return posteriordb.reference_of(name).draws.astype(float)
    with np.load(FULL / "reference_draws_thin10.npz") as file:
        known = name if name in file.files else name.replace("_centered", "_noncentered")
        return file[known].astype(float)


@functools.cache
def choices_of(name):
    """The reference draws as choices of the model, [n, ...] each, in float64."""
    found = posteriordb.reference_of(name).choices(reference_draws(name))
    if name.endswith("noncentered"):
        theta = found.pop("theta")
        found["theta_trans"] = (theta - found["mu"][:, None]) / found["tau"][:, None]
    if name.endswith("gp_pois_regr"):
        x = np.asarray(posteriordb.data_of(name)["x"], float)
        square = (x[:, None] - x) ** 2 / found["rho"][:, None, None] ** 2
        cov = found["alpha"][:, None, None] ** 2 * np.exp(-square / 2) + 1e-10 * np.eye(len(x))
        found["f_tilde"] = np.linalg.solve(np.linalg.cholesky(cov), found.pop("f")[..., None])[
            ..., 0
        ]
    for key in found.keys() & {"theta1", "theta2"}:  # rounded to float32, they do not sum to one
        found[key] = found[key] / found[key].sum(-1, keepdims=True)
    return found


def gradients(measure, choices):
    """Of the log density on the unconstrained space, at each draw: [n, D]."""
    potential = measure.potential()

    def one(c):
        return potential.ravel(jax.grad(potential.log_density)(potential.unconstrain(c)))

    return np.asarray(jax.jit(lambda c: jax.lax.map(one, c))(choices))


# ---- the models


@pytest.mark.parametrize("name", NAMES)
def test_density_is_that_of_the_stan_program(name):
    measure, rng = posteriordb.posterior(name), np.random.default_rng(0)
    potential = measure.potential()

    @jax.jit
    @jax.vmap
    def around(choices, noise):
        shifted = potential.ravel(potential.unconstrain(choices)) + noise
        choices = potential.constrain(potential.unravel(shifted))
        return choices, measure.log_density(choices)

    near = {k: v[:POINTS] for k, v in choices_of(name).items()}
    noise = 0.05 * rng.normal(size=(POINTS, potential.size))
    choices, found = jax.tree.map(np.asarray, around(near, noise))
    data, model = posteriordb.POSTERIORS[name]
    by_hand = DENSITIES[model.__name__]
    exact = np.array(
        [
            by_hand(posteriordb.load(data), **{k: v[i] for k, v in choices.items()})
            for i in range(POINTS)
        ]
    )
    assert np.ptp(exact) > 1
    np.testing.assert_allclose(found - found[0], exact - exact[0], rtol=1e-6, atol=1e-6)


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", NAMES)
def test_reference_draws_are_from_this_posterior(name):
    found = gradients(posteriordb.posterior(name), choices_of(name))
    check_mean(found, np.zeros(found.shape[1]))


def with_amplitude(x, y):
    """alpha in the place of its square."""
    rho, alpha = gp.scales()
    sigma = vx.sample("sigma", d.HalfNormal(1.0))
    cov = gp.kernel(x, jnp.sqrt(alpha), rho) + sigma * jnp.eye(len(x))
    vx.sample("y", d.MultivariateNormal(jnp.zeros(len(x)), cov), obs=y)


def with_other_sign(T, y):
    """An ARMA model that subtracts theta's term, as other books do."""
    mu = vx.sample("mu", d.Normal(0.0, 10.0))
    phi = vx.sample("phi", d.Normal(0.0, 2.0))
    theta = vx.sample("theta", d.Normal(0.0, 2.0))
    sigma = vx.sample("sigma", d.HalfCauchy(2.5))

    def step(before, y_t):
        last, error = before
        nu = mu + phi * last - theta * error
        vx.sample("y", d.Normal(nu, sigma), obs=y_t)
        return (y_t, y_t - nu), None

    jax.lax.scan(step, (mu, jnp.zeros_like(mu)), y)


def with_one_sd(mom_hs, mom_iq, kid_score):
    """Predictors divided by one standard deviation."""
    beta = vx.sample("beta", d.Flat(4))
    sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
    hs, iq = 2 * kidiq.by_two_sds(mom_hs), 2 * kidiq.by_two_sds(mom_iq)
    mean = beta[0] + beta[1] * hs + beta[2] * iq + beta[3] * hs * iq
    vx.sample("kid_score", d.Normal(mean, sigma), obs=kid_score)


BROKEN = {
    "gp_pois_regr-gp_regr": with_amplitude,
    "arma-arma11": with_other_sign,
    "kidiq_with_mom_work-kidscore_interaction_z": with_one_sd,
}


@pytest.mark.parametrize("name", BROKEN)
def test_another_model_is_found_out(name):
    measure = vx.model(BROKEN[name])(**posteriordb.data_of(name))
    found = gradients(measure, choices_of(name))
    check_biased(found, np.zeros(found.shape[1]))


def test_models_without_data_generate_them():
    data = posteriordb.data_of("eight_schools-eight_schools_noncentered")
    model = posteriordb.model_of("eight_schools-eight_schools_noncentered")
    trace = model(data["sigma"]).simulate(jax.random.key(0))
    assert trace["y"].shape == (8,)
    np.testing.assert_allclose(trace["theta"], trace["mu"] + trace["tau"] * trace["theta_trans"])
    series = time_series.arma11(50).simulate(jax.random.key(1))
    joint = series.log_density - time_series.arma11(50, series["y"]).log_density(
        {k: series[k] for k in ("mu", "phi", "theta", "sigma")}
    )
    assert series["y"].shape == (50,) and abs(joint) < 1e-9


def test_without_diffrax_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    measure = posteriordb.posterior("hudson_lynx_hare-lotka_volterra")
    with pytest.raises(vx.errors.MissingExtraError, match=r"pip install 'varax\[ode\]'"):
        measure.potential()


# ---- data and references


def test_references_fit_their_models():
    for name, (data, model) in posteriordb.POSTERIORS.items():
        reference, measure = posteriordb.reference_of(name), posteriordb.posterior(name)
        assert name == f"{data}-{model.__name__}"
        transformed = {"theta", "f"} & set(reference.sites) - measure.addresses.keys()
        assert set(reference.sites) - transformed <= measure.addresses.keys()
        np.testing.assert_allclose(np.sqrt(np.diag(reference.cov)), reference.sd, rtol=1e-6)
        assert (reference.quantiles[0] < reference.mean).all()
        error = (reference.draws.mean(0) - reference.mean) / reference.sd * np.sqrt(200)
        assert abs(error).max() < 5
        again = reference.columns(reference.choices(reference.draws))
        np.testing.assert_array_equal(again, reference.draws)


def test_the_bundle_is_posteriordbs_own():
    source = FULL / "data_and_reference.json.gz"
    if not source.exists():
        pytest.skip("VARAX_DATA names no folder with posteriordb's files")
    whole = json.loads(gzip.decompress(source.read_bytes()))
    assert set(whole["posteriors"]) == set(NAMES)
    for name, entry in whole["data"].items():
        ours = posteriordb.load(name)
        assert ours.keys() == entry["value"].keys()
        for key, value in entry["value"].items():
            np.testing.assert_array_equal(ours[key], np.asarray(value))
    for name, entry in whole["posteriors"].items():
        ours, theirs = posteriordb.reference_of(name), whole["references"][entry["reference"]]
        assert list(ours.names) == theirs["params"]
        for key in ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail"):
            np.testing.assert_array_equal(getattr(ours, key), theirs[key])
        np.testing.assert_array_equal(ours.quantiles, theirs["quantiles"]["value"])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (posteriordb.posterior, r"no posterior 'kidiq-kidscore_mom_iq'(?s:.*)kidiq-kidscore_momiq"),
        (posteriordb.load, r"no data of posteriordb 'kidiq-kidscore_mom_iq'"),
        (posteriordb.reference, r"no reference of posteriordb(?s:.*)kidiq-kidscore_momiq"),
    ],
)
def test_an_unknown_name_is_answered_with_those_near(call, text):
    with pytest.raises(posteriordb.UnknownPosteriorError, match=text):
        call("kidiq-kidscore_mom_iq")


@pytest.mark.slow
def test_nuts_and_a_guide_find_the_reference(tmp_path, capsys):
    found = run(posteriordb, tmp_path, "--draws", 300, "--steps", 500)
    assert found["nuts_z"] < 5 and found["guide_error"] < 0.1 and found["khat"] < 0.7
    assert "beta[2]" in capsys.readouterr().out


def test_the_command_line_has_the_packages(capsys):
    for package in ("posteriordb", "inference_gym"):
        assert f"\n{package} " in _printed(["list"], capsys)
    assert "garch-garch11" in _printed(["run", "posteriordb", "--list"], capsys)
    assert "eight_schools" in _printed(["run", "inference_gym", "--list"], capsys)


def _printed(argv, capsys):
    assert cli.main(argv) == 0
    return capsys.readouterr().out
