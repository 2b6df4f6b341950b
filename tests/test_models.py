"""The model library: each model's printed numbers against what is known of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import QUICKLY, check_mean
from model_runs import run
from scipy import special, stats

import varax as vx
from varax import cli
from varax.models import coin, flows, iwae

KEY = jax.random.key(0)


def test_every_model_is_listed_and_has_a_main(capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("coin", "flows", "iwae", "mixture", "sbn"):
        assert f"\n{name} " in f"\n{shown}"
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", name, "--help"])
        assert stopped.value.code == 0
        assert f"varax run {name}" in capsys.readouterr().out


# ---- coin


@pytest.mark.slow
def test_coin(tmp_path, capsys):
    found = run(coin, tmp_path, "--steps", 1500)
    exact = special.betaln(54, 66) - special.betaln(10, 10)
    posterior = stats.beta(54, 66)
    assert found["log evidence, q"] <= found["log evidence, p"] + 2e-3
    truth = (exact, posterior.mean(), posterior.std(), posterior.cdf(0.5))
    names = ("log evidence", "mean of f", "sd of f", "P(f < 1/2)")
    for name, true in zip(names, truth, strict=True):
        np.testing.assert_allclose(found[f"{name}, p"], true, rtol=1e-4)
        np.testing.assert_allclose(found[f"{name}, q"], true, rtol=5e-3)
    shown = capsys.readouterr().out
    assert f"{exact:.4f}" in shown and f"fair coin: {100 * np.log(0.5) - exact:.3f}" in shown


def test_coin_objectives_agree():
    """Both have the bound's gradient; at the posterior one of them has it without noise."""
    x, posterior = coin.data(), jnp.log(jnp.array([54.0, 66.0]))
    keys = jax.random.split(KEY, 2000)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def slopes(keys):
        objectives = [lambda phi, f=f: f(phi, x) for f in (coin.elbo, coin.landing)]
        return [jax.vmap(lambda k, f=f: vx.grad(f)(k, posterior))(keys) for f in objectives]

    plain, landing = slopes(keys)
    assert np.abs(landing).max() < 2e-2 < plain.std()
    check_mean(np.asarray(plain), np.zeros(2))


# ---- flows


@pytest.mark.slow
def test_flows(tmp_path, capsys):
    found = run(flows, tmp_path, "--steps", 800, "--lengths", 1, 8)
    table = capsys.readouterr().out
    for name in flows.POTENTIALS:
        assert 0 < found[f"{name}_8"] < found[f"{name}_1"]
        assert f"{found[f'{name}_8']:.3f}" in table


@pytest.mark.slow
def test_divergences_are_those_of_quadrature():
    """KL(q || p) on a grid, for flows as they begin."""
    keys = dict(zip(flows.POTENTIALS, jax.random.split(KEY, 4), strict=True))
    start = {name: vx.families.planar(k, 2, 2, 0.5) for name, k in keys.items()}
    log_z = flows.data()
    found = flows.divergences(start, log_z, KEY, 50_000)
    side = jnp.linspace(-6, 6, 500)
    grid = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)
    for name in ("U1", "U2"):  # those without edges far from the draws
        log_q = flows.guide(start[name]).log_prob(grid)
        gap = log_q + jax.vmap(flows.POTENTIALS[name])(grid) + log_z[name]
        exact = (jnp.exp(log_q) * gap).sum() * (side[1] - side[0]) ** 2
        np.testing.assert_allclose(found[name], exact, rtol=0.05)


def test_potentials_by_hand():
    """At (2, 0) the ring is at its minimum, and one well is."""
    assert abs(flows.U1(jnp.array([2.0, 0.0])) + np.log1p(np.exp(-0.5 * (4 / 0.6) ** 2))) < 1e-5
    z = jnp.array([1.0, 1.4])
    np.testing.assert_allclose(flows.U2(z), 0.5 * (0.4 / 0.4) ** 2, rtol=1e-4)
    low, high = 0.5 * (0.4 / 0.35) ** 2, 0.5 * (3.4 / 0.35) ** 2
    np.testing.assert_allclose(flows.U3(z), -np.logaddexp(-low, -high), rtol=1e-4)
    first, second = 0.5, 0.5 * (1.9 / 0.35) ** 2
    np.testing.assert_allclose(flows.U4(z), -np.logaddexp(-first, -second), rtol=1e-4)


# ---- importance weighted autoencoder


@pytest.mark.slow
def test_iwae(tmp_path, capsys):
    found = run(iwae, tmp_path, "--steps", 600, "--k", 1, 5)
    assert 80 < found["nll 5"] < found["nll 1"] < found["vae 1"] < 250
    shown = capsys.readouterr().out
    assert "86.76" in shown and f"{found['nll 5']:.2f}" in shown


@pytest.mark.slow
def test_the_bound_grows_with_k():
    """L_1 <= L_5 <= L_50 for one and the same network (Burda et al. 2016, theorem 1)."""
    nets, (train, _) = iwae.init(KEY), iwae.data()

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def bounds(keys):
        def one(key):
            return [vx.seed(lambda k=k: iwae.bound(nets, train[:20], k))(key) for k in (1, 5, 50)]

        return jax.lax.map(one, keys)

    means = [np.asarray(x) for x in bounds(jax.random.split(KEY, 50))]
    errors = [x.std() / np.sqrt(50) for x in means]
    for i in (0, 1):
        gap = means[i + 1].mean() - means[i].mean()
        assert gap > 5 * np.hypot(errors[i], errors[i + 1])
