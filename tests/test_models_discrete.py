"""Models with discrete choices: enumeration against formulas, estimators against enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import QUICKLY, NoScore, check_biased, check_mean
from model_runs import run

import varax as vx
from varax import estimators as est
from varax.models import mixture, sbn

KEY = jax.random.key(0)


@pytest.mark.slow
def test_mixture(tmp_path, capsys):
    found = run(mixture, tmp_path, "--steps", 1200)
    assert found["factorised"] < found["conditional"]
    assert abs(found["conditional"] - found["summed by hand"]) < 0.5
    assert -500 < found["summed by hand"] < found["evidence"] < -490
    assert found["accuracy"] > 0.9
    shown = capsys.readouterr().out
    assert "Enumerate()" in shown and "150 elements apart" in shown


@pytest.mark.slow
def test_summing_in_the_program_is_summing_by_hand():
    """One bound: with the exact conditional the assignments' sum is that of the formula, at any
    draw of what is left, whether the assignments are enumerated or drawn.
    """
    x, _ = mixture.data()
    phi = mixture.init(x)
    theta = mixture.collapsed(phi, x).simulate(KEY).choices

    def bound():
        q = mixture.conditional(phi, x).do(theta).simulate()
        p = mixture.mixture(len(x)).log_density(theta | q.choices | {"x": x})
        return p - q.log_density

    by_hand = mixture.summed(x).log_density(theta)
    for estimator in (est.Enumerate(), est.Score()):
        found = vx.expect(bound, estimators={"z": estimator})(KEY)
        np.testing.assert_allclose(found, by_hand, rtol=1e-5)


@pytest.mark.slow
def test_sbn(tmp_path):
    found = run(sbn, tmp_path, "--steps", 300, "--estimator", "disarm")
    assert -60 < found["disarm elbo"] < found["disarm bound"] < -20
    train, _ = sbn.data()
    score = sbn.spread(sbn.init(KEY), train[:100], sbn.OBJECTIVES["score"], KEY)
    assert found["disarm sd"] < score / 5


@pytest.mark.slow
def test_estimators_have_the_enumerated_gradient(monkeypatch):
    """On a network that is small enough to enumerate, bound by bound."""
    for name, size in {"PIXELS": 5, "H1": 2, "H2": 2}.items():
        monkeypatch.setattr(sbn, name, size)
    params = jax.tree.map(lambda x: 2 * x, sbn.init(KEY))
    x = jnp.array([[1, 0, 1, 1, 0]])
    every = {"h1": est.Enumerate(), "h2": est.Enumerate()}
    broken = {"h1": NoScore(), "h2": NoScore()}

    def gradient(key, objective, estimators=None):
        found = vx.grad(objective, estimators=estimators)(key, params, x)["q"]
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])

    names = ("leave-one-out", "disarm", "vimco")

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(keys):
        exact = [gradient(KEY, sbn.OBJECTIVES[name], every) for name in ("score", "vimco")]
        draws = [jax.vmap(lambda k, n=n: gradient(k, sbn.OBJECTIVES[n]))(keys) for n in names]
        twin = jax.vmap(lambda k: gradient(k, sbn.OBJECTIVES["score"], broken))(keys)
        return jax.tree.map(lambda x: x, (exact, draws, twin))

    (elbo, vimco), draws, twin = run(jax.random.split(KEY, 20_000))
    for found, exact in zip(draws, (elbo, elbo, vimco), strict=True):
        check_mean(np.asarray(found), np.asarray(exact))
    check_biased(np.asarray(twin), np.asarray(elbo))
