"""Simulation-based calibration: exact posteriors pass, posteriors wrong in any way do not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import FALSE_ALARM
from scipy.special import ndtri

import varax as vx
from varax import dist as d
from varax import errors as e
from varax.ppl.diagnosis import uniformity

KEY = jax.random.key(0)
N, DRAWS = 5, 99


@vx.model
def normal():
    mu = vx.sample("mu", d.Normal(1.0, 2.0))
    vx.sample("y", d.Normal(mu, 1.0).expand([N]))


def data(target):
    """What a measure observes, at any latent choice."""
    return target.generate(KEY, {"mu": 0.0})[0].recorded["y"]


def posterior(shift=0.0, scale=1.0):
    """Draws of the conjugate posterior, shifted and scaled in its sd."""

    def infer(key, target):
        precision = 1 / 4 + N
        mean, sd = (1 / 4 + data(target).sum()) / precision, precision**-0.5
        return {"mu": mean + sd * (shift + scale * jax.random.normal(key, (DRAWS,)))}

    return infer


def prior(key, target):
    """Ignores the data; the ranks of mu alone are uniform all the same."""
    return {"mu": 1.0 + 2.0 * jax.random.normal(key, (DRAWS,))}


def run(infer, replicates=1000, **options):
    return vx.sbc(
        normal(),
        infer,
        KEY,
        observed="y",
        replicates=replicates,
        false_alarm=FALSE_ALARM,
        progress=False,
        **({"batch": 500} | options),
    )


def test_the_exact_posterior_passes():
    found = run(posterior())
    assert found.passed and found.ranks.shape == (1000, 2) and found.draws == DRAWS
    assert found.ranks.min() >= 0 and found.ranks.max() <= DRAWS
    assert set(found.names) == {"mu", "log density"}
    assert min(found.chi_square.values()) > FALSE_ALARM
    assert "Calibration: passed, 1000 replicates of 99 draws" in repr(found)


@pytest.mark.parametrize(
    ("infer", "sees"),
    [
        (posterior(scale=0.8), "mu"),
        (posterior(shift=0.3), "mu"),
        (prior, "log density"),
    ],
    ids=["narrow", "shifted", "prior"],
)
def test_a_wrong_posterior_does_not(infer, sees):
    """That the prior ignores the data is seen by the density alone."""
    found = run(infer)
    assert not found.passed and found.p_values[sees] < FALSE_ALARM / 2
    assert (found.p_values["mu"] > FALSE_ALARM) == (sees != "mu")
    assert "NOT passed" in repr(found)


@pytest.mark.slow
def test_further_quantities_and_one_at_a_time():
    """Without a batch the data are known: `infer` may use NumPy and Python branches."""

    def infer(key, target):
        y = np.asarray(data(target))
        assert isinstance(float(y[0]), float)
        return posterior()(key, target)

    total = {"first": lambda choices, data: choices["mu"] - data["y"][:2]}
    found = run(infer, 6, batch=None, quantities=total)
    assert found.ranks.shape == (6, 4) and "first[1]" in found.names
    i, j = found.names.index("mu"), found.names.index("first[0]")
    np.testing.assert_array_equal(found.ranks[:, i], found.ranks[:, j])  # the same order
    batched = run(posterior(), 6, batch=4, quantities=total)  # 4 does not divide 6
    np.testing.assert_array_equal(batched.ranks, found.ranks)


@pytest.mark.slow
def test_ties_are_broken_at_random():
    """A discrete choice has many; its exact posterior passes only so."""

    @vx.model
    def coin():
        k = vx.sample("k", d.Bernoulli(0.3))
        vx.sample("y", d.Normal(k.astype(float), 1.0))

    def infer(key, target):
        y = target.generate(KEY, {"k": 0})[0].recorded["y"]
        p = jax.nn.sigmoid(jnp.log(0.3 / 0.7) + y - 0.5)
        return {"k": jax.random.bernoulli(key, p, (DRAWS,)).astype(int)}

    options = {"observed": "y", "progress": False, "batch": 500, "false_alarm": FALSE_ALARM}
    assert vx.sbc(coin(), infer, KEY, **options).passed

    def wrong(key, target):
        return {"k": 1 - infer(key, target)["k"]}

    assert not vx.sbc(coin(), wrong, KEY, **options).passed


@pytest.mark.slow
def test_failed_replicates_are_counted_and_spoil_the_result():
    def infer(key, target):
        drawn = posterior()(key, target)["mu"]
        return {"mu": jnp.where(data(target).mean() > 1.0, jnp.nan, drawn)}

    found = run(infer, 50, batch=50)
    assert 0 < found.failed < 50 and not found.passed and "replicates failed" in repr(found)
    with pytest.raises(e.CalibrationError, match="No replicate gave finite draws"):
        run(lambda key, target: {"mu": jnp.full(DRAWS, jnp.nan)}, 5, batch=5)


def test_an_interrupt_keeps_what_was_done():
    calls = itertools.count()

    def infer(key, target):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return posterior()(key, target)

    assert run(infer, 10, batch=None).ranks.shape == (3, 2)


def test_plot():
    pytest.importorskip("matplotlib").use("agg")
    ax = run(posterior(), 100, batch=100).plot()
    assert len(ax.lines) == 2 and ax.get_ylabel() == "ECDF - uniform"


@pytest.mark.parametrize(
    ("model", "infer", "observed", "says"),
    [
        (normal, posterior(), "y", "needs a measure"),
        (normal(), posterior(), "x", "are not some of its choices"),
        (normal(), posterior(), ("mu", "y"), "are not some of its choices"),
        (normal(), lambda k, t: {"nu": jnp.zeros(9)}, "y", "did not return draws"),
        (normal(), lambda k, t: {"mu": jnp.zeros(())}, "y", "did not return draws"),
        (normal(), lambda k, t: {"mu": jnp.zeros((9, 2))}, "y", "did not return draws"),
    ],
)
def test_what_cannot_be_checked(model, infer, observed, says):
    with pytest.raises(e.CalibrationError, match=says) as caught:
        vx.sbc(model, infer, KEY, observed=observed, replicates=4, progress=False)
    assert "test_sbc.py" in str(caught.value)


def test_a_model_with_observations_is_refused():
    @vx.model
    def observed():
        mu = vx.sample("mu", d.Normal(1.0, 2.0))
        vx.sample("w", d.Normal(mu, 1.0), obs=0.0)
        vx.sample("y", d.Normal(mu, 1.0))

    with pytest.raises(e.CapabilityError, match="simulate needs a measure that can be sampled"):
        vx.sbc(observed(), posterior(), KEY, observed="y", progress=False)


# ---- the test of uniformity


def test_the_probability_of_a_band_against_all_outcomes():
    """Three ranks among two draws: every one of 27 outcomes, its gamma, their distribution."""
    n, draws = 3, 2
    outcomes = np.array(list(itertools.product(range(draws + 1), repeat=n)))
    below, above = uniformity._tails(n, draws)

    def gamma(ranks):
        at = uniformity.counts(ranks, draws)
        return 2 * min(min(below[i, c], above[i, c]) for i, c in enumerate(at))

    gammas = np.array([gamma(r) for r in outcomes])
    for ranks, g in zip(outcomes, gammas, strict=True):
        assert uniformity.p_value(ranks, draws) == pytest.approx((gammas <= g + 1e-12).mean())


def test_p_values_of_uniform_ranks_are_uniform():
    rng = np.random.default_rng(0)
    n = 400
    p = np.array([uniformity.p_value(rng.integers(0, 20, 100), 19) for _ in range(n)])
    for level in (0.1, 0.5):  # a discrete p-value: P(p <= level) <= level
        error = -ndtri(FALSE_ALARM) * np.sqrt(level * (1 - level) / n)
        assert level - 0.08 - error < (p <= level).mean() < level + error


def test_a_band_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    z, least, most = uniformity.band(200, 19, 0.9)
    inside = []
    for _ in range(1000):
        c = uniformity.counts(rng.integers(0, 20, 200), 19)
        inside.append(((c >= least) & (c <= most)).all())
    error = -ndtri(FALSE_ALARM) * np.sqrt(0.09 / 1000)
    assert 0.9 - error < np.mean(inside) < 0.93 + error
    assert len(z) == 19 and z[0] == 0.05


def test_chi_square():
    even = np.repeat(np.arange(100), 10)
    assert uniformity.chi_square(even, 99) == pytest.approx(1.0)
    assert uniformity.chi_square(even // 2, 99) < FALSE_ALARM
    assert uniformity.p_value(even, 99) > 0.99
    assert uniformity.p_value(even // 2, 99) < 1e-30
