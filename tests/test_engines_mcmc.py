"""NUTS and HMC against conjugate posteriors, in the space of the choices."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from gradient_checks import FALSE_ALARM
from scipy import stats

import varax as vx
from varax import dist as d
from varax.ppl.engines import transitions
from varax.ppl.potential import Potential

KEY = jax.random.key(0)
CHAINS, DRAWS, WARMUP = 64, 200, 300
WINS, COUNTS = 7, np.array([5, 0, 3])
Y = np.array([1.0, 2.5, 0.3])


@vx.model
def conjugate(y):
    """Four posteriors in closed form, one on R and three on constrained spaces."""
    mu = vx.sample("mu", d.Normal(0.0, 2.0))
    jax.vmap(lambda y: vx.sample("y", d.Normal(mu, 1.0), obs=y))(y)
    p = vx.sample("p", d.Beta(0.8, 2.0))
    vx.sample("wins", d.Binomial(8, p), obs=WINS)
    w = vx.sample("w", d.Dirichlet(jnp.array([1.0, 2.0, 0.7])))
    vx.sample("counts", d.Multinomial(COUNTS.sum(), w), obs=COUNTS)
    root = vx.sample("root", d.LKJCholesky(3, 1.5))
    vx.deterministic("r", (root @ root.T)[jnp.array([0, 0, 1]), jnp.array([1, 2, 2])])


def moments(y=Y):
    """First and second moments of mu, p, w and the correlations."""
    precision = 1 / 4 + len(y)
    mean = np.sum(y) / precision
    a, b = 0.8 + WINS, 2.0 + 8 - WINS
    alpha = np.array([1.0, 2.0, 0.7]) + COUNTS
    share = alpha / alpha.sum()
    first = [mean, a / (a + b), *share, 0, 0, 0]
    second = [
        mean**2 + 1 / precision,
        a * (a + 1) / ((a + b) * (a + b + 1)),
        *(share * (alpha + 1) / (alpha.sum() + 1)),
        *[1 / (2 * 1.5 + 3 - 1)] * 3,  # r is 2 Beta(eta - 1 + K / 2, same) - 1
    ]
    return np.array([*first, *second])


def statistics(draws):
    x = [draws["mu"][..., None], draws["p"][..., None], draws["w"], draws["r"]]
    x = np.concatenate([np.asarray(a, float) for a in x], -1)  # [chains, draws, 8]
    return np.concatenate([x, x**2], -1)


def excess(draws, exact):
    """Error of the mean over chains, which are independent, in units of what chance allows."""
    of_chains = statistics(draws).mean(1)  # [chains, 16]
    n, size = of_chains.shape
    t = stats.t.isf(FALSE_ALARM / (2 * size), n - 1)
    return abs(of_chains.mean(0) - exact) / (t * of_chains.std(0, ddof=1) / np.sqrt(n))


def run(sampler, m, engine):
    return sampler(m, KEY, draws=DRAWS, warmup=WARMUP, chains=CHAINS, engine=engine, progress=False)


@pytest.mark.thin(4)
@pytest.mark.parametrize("engine", ["numpyro", pytest.param("blackjax", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", [vx.nuts, vx.hmc], ids=["nuts", "hmc"])
def test_the_draws_have_the_posteriors_moments(sampler, engine):
    draws = run(sampler, conjugate(Y), engine)
    assert (excess(draws, moments()) < 1).all()
    assert len(draws) == CHAINS * DRAWS and draws["root"].shape == (CHAINS, DRAWS, 3, 3)
    assert 0.6 < draws.stats["acceptance_rate"].mean() < 0.99
    assert {x.shape for x in draws.stats.values()} == {(CHAINS, DRAWS)}
    assert f"{sampler.__name__} by {engine}, chains=64, draws=200, diver" in repr(draws)


class NoJacobian(Potential):
    """The density of the choices where that of u belongs."""

    def log_density(self, u):
        return self._at(u).log_density


@pytest.mark.slow
def test_without_the_jacobian_the_moments_are_wrong():
    m = conjugate(Y)
    m.potential = lambda: NoJacobian(m)
    bad = excess(run(vx.nuts, m, "numpyro"), moments()) > 1
    assert not bad[0] and bad[1] and bad[2:5].any() and bad[-3:].any()


@pytest.mark.slow
def test_a_numpyro_model_has_the_same_posterior():
    """The conjugate model in NumPyro's words, through `vx.from_numpyro` and `vx.nuts`."""
    dist = numpyro.distributions

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        p = numpyro.sample("p", dist.Beta(0.8, 2.0))
        numpyro.sample("wins", dist.Binomial(8, p), obs=WINS)
        w = numpyro.sample("w", dist.Dirichlet(jnp.array([1.0, 2.0, 0.7])))
        numpyro.sample("counts", dist.Multinomial(COUNTS.sum(), w), obs=COUNTS)
        root = numpyro.sample("root", dist.LKJCholesky(3, 1.5))
        numpyro.deterministic("r", (root @ root.T)[jnp.array([0, 0, 1]), jnp.array([1, 2, 2])])

    draws = run(vx.nuts, vx.from_numpyro(model)(Y), "numpyro")
    assert (excess(draws, moments()) < 1).all()


@vx.model
def walled():
    """A normal between walls of up to 1e300 nats, in a direction oblique to the coordinates."""
    u = vx.sample("u", d.Flat(3))
    beyond = jnp.abs(u @ jnp.array([1.0, -2.0, 3.0])) - 4.0
    vx.factor("wall", -0.5 * (u @ u) - jnp.exp(200.0 * beyond))


def stuck(key):
    """How many of 12 chains end inside the walls."""
    draws = vx.nuts(walled(), key, chains=12, warmup=400, draws=50, dense=True, progress=False)
    return int((draws.stats["lp"][:, -1] < -1e3).sum())


@pytest.mark.slow
def test_an_energy_that_overflows_is_not_accepted(monkeypatch):
    with jax.enable_x64(True):
        assert stuck(KEY) == 0
        monkeypatch.setattr(transitions, "bounded", lambda log_density: log_density)
        assert stuck(KEY) > 0  # minus infinity is a sum of infinities of either sign


def test_bounded_leaves_room_for_squares():
    for x64 in (False, True):
        with jax.enable_x64(x64):
            f = transitions.bounded(lambda u: -u)
            most = jnp.finfo(jnp.zeros(()).dtype).max
            assert f(jnp.asarray(2.0)) == -2.0 and jax.grad(f)(2.0) == -1.0
            assert f(most**0.5) == -jnp.inf and jax.grad(f)(most**0.5) == 0.0
            assert jnp.isneginf(f(jnp.asarray(jnp.inf)))
