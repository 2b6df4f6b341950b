"""What NUTS does around its draws: compilation, starts, interrupts, refusals; and `Draws`."""

import re

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from gradient_checks import FALSE_ALARM
from scipy import stats

import varax as vx
from varax import dist as d
from varax import errors

KEY = jax.random.key(0)
Y = np.array([1.0, 2.5, 0.3])


@vx.model
def normal(y):
    mu = vx.sample("mu", d.Normal(0.0, 2.0))
    vx.sample("y", d.Normal(jnp.broadcast_to(mu, y.shape), 1.0), obs=y)
    vx.deterministic("twice", 2 * mu)


def quick(m, key=KEY, **options):
    return vx.nuts(
        m, key, **({"draws": 50, "warmup": 50, "chains": 2, "progress": False} | options)
    )


@pytest.mark.slow
def test_many_data_sets_in_one_program():
    """`one_chain` under vmap and jit: each chain has its own data."""
    ys = jnp.stack([Y, Y + 10.0, Y - 5.0, 0 * Y])

    @jax.jit
    @jax.vmap
    def posteriors(key, y):
        def chain(key):
            return vx.engines.one_chain(normal(y), key, draws=100, warmup=100)[0]["mu"].mean()

        return jax.vmap(chain)(jax.random.split(key, 32))

    means = np.asarray(posteriors(jax.random.split(KEY, 4), ys))  # [4, 32]
    exact = ys.sum(1) / (1 / 4 + 3)
    t = stats.t.isf(FALSE_ALARM / 8, 31)
    assert (abs(means.mean(1) - exact) < t * means.std(1, ddof=1) / np.sqrt(32)).all()


@pytest.mark.slow
def test_a_second_call_compiles_nothing():
    traced = []

    @vx.model
    def model():
        traced.append(1)
        vx.sample("x", d.Normal(0.0, 1.0))

    m = model()
    first = quick(m)
    times = len(traced)
    second = quick(m, jax.random.key(1))
    assert len(traced) == times
    (chains,) = [x for x in m._compiled.values() if hasattr(x, "_advance")]
    assert chains._advance._cache_size() == chains._start._cache_size() == 1
    assert (first["x"] != second["x"]).any()
    np.testing.assert_array_equal(quick(m)["x"], first["x"])


@pytest.mark.slow
def test_layouts_starts_and_settings():
    m = normal(Y)
    alike = [quick(m, vectorized=v) for v in (False, True)]
    np.testing.assert_allclose(alike[0]["mu"][:, :5], alike[1]["mu"][:, :5], rtol=1e-3)
    np.testing.assert_allclose(alike[0]["twice"], 2 * alike[0]["mu"], rtol=1e-6)
    prior = normal(np.zeros(0))
    options = {"engine": "blackjax", "dense": True, "max_tree_depth": 1}
    at = quick(prior, warmup=0, draws=1, initial={"mu": 100.0}, **options)
    assert (abs(at["mu"] - 100.0) < 50.0).all()  # nothing adapted, and one leapfrog step
    deep = quick(m, max_tree_depth=2)
    assert deep.stats["tree_depth"].max() <= 2 and deep.stats["n_steps"].max() <= 3
    picked = alike[0].sample(KEY, 7)
    assert picked["mu"].shape == (7,) and np.isin(picked["mu"], alike[0]["mu"]).all()


@pytest.mark.slow
def test_divergences_are_counted():
    """A funnel (Neal 2003) has a neck that no single step size fits."""

    @vx.model
    def funnel():
        v = vx.sample("v", d.Normal(0.0, 3.0))
        vx.sample("x", d.Normal(jnp.zeros(9), jnp.exp(v / 2)))

    draws = quick(funnel(), draws=500, warmup=200, chains=4)
    assert draws.divergences == draws.stats["diverging"].sum() > 0
    assert f"divergences={draws.divergences}" in repr(draws)


def test_an_interrupt_keeps_what_was_done(monkeypatch):
    from varax.ppl.progress import Progress

    seen = []

    def stop(self, count, values):
        seen.append(count)
        if len(seen) == when:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", stop)
    when = 30  # 100 in calls of 5, of the warmup first
    draws = quick(normal(Y), draws=100, warmup=100)
    assert draws.interrupted and draws.draws == 50 and draws["mu"].shape == (2, 50)
    seen.clear()
    when = 3
    with pytest.raises(KeyboardInterrupt):
        quick(normal(Y), draws=100, warmup=100)


def test_the_bar_shows_acceptance(capsys):
    quick(normal(Y), progress=True)
    shown = capsys.readouterr().err
    assert "100/100" in shown and re.search(r"acceptance_rate 0\.\d+", shown)


def test_the_potential_serves_numpyro_and_blackjax_directly():
    """What docs/engines.md shows: sampling with the peers' own interfaces."""
    potential = normal(Y).potential()
    kernel = numpyro.infer.NUTS(potential_fn=potential)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=200, num_samples=500, progress_bar=False)
    mcmc.run(KEY, init_params=potential.initial(KEY))
    found = jax.vmap(potential.constrain)(mcmc.get_samples())["mu"]

    warmup = blackjax.window_adaptation(blackjax.nuts, potential.log_density)
    (state, tuned), _ = warmup.run(KEY, potential.initial(KEY), 200)
    step = jax.jit(blackjax.nuts(potential.log_density, **tuned).step)
    _, chain = jax.lax.scan(
        lambda s, k: (lambda s: (s, s.position))(step(k, s)[0]), state, jax.random.split(KEY, 500)
    )
    other = jax.vmap(potential.constrain)(chain)["mu"]
    sd = 1 / np.sqrt(1 / 4 + 3)
    for x in (found, other):
        size = numpyro.diagnostics.effective_sample_size(np.asarray(x)[None])
        assert abs(x.mean() - Y.sum() * sd**2) < stats.norm.isf(FALSE_ALARM / 2) * sd / np.sqrt(
            size
        )


def test_refusals():
    def refuse(match, **options):
        with pytest.raises(errors.SamplerError, match=match):
            quick(normal(Y), **options)

    refuse(r"(?s)NUTS cannot run.*draws=0, chains=2", draws=0)
    refuse(r"(?s)draws=50, chains=0", chains=0)
    refuse(r"(?s)warmup=-1", warmup=-1)
    refuse(r"(?s)engine one of numpyro, blackjax.*'stan'", engine="stan")
    refuse(r"(?s)between 0 and 1.*1\.0", target_acceptance=1.0)
    with pytest.raises(errors.SamplerError, match=r"(?s)a model called with its arguments.*Model"):
        quick(normal)

    @vx.model
    def switch():
        k = vx.sample("k", d.Bernoulli(0.5))
        vx.sample("x", d.Normal(1.0 * k, 1.0), obs=0.0)

    with pytest.raises(errors.CapabilityError, match=r"(?s)address: +k.*discrete.*sum it out"):
        quick(switch())


def test_without_blackjax(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "blackjax", None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'varax\[mcmc\]'"):
        quick(normal(Y), engine="blackjax")


def test_draws_are_looked_up_by_address():
    draws = quick(normal(Y))
    assert draws["twice"].shape == (2, 50) and len(draws) == 100
    with pytest.raises(errors.UnknownAddressError, match=r"(?s)one of \{mu, twice\}.*nu"):
        draws["nu"]

    @vx.model
    def outer():
        vx.sample("inner", normal(Y))

    nested = quick(outer())
    np.testing.assert_array_equal(nested["inner", "mu"], nested["inner"]["mu"])
    np.testing.assert_array_equal(nested["inner/mu"], nested["inner"]["mu"])


def test_draws_are_summarised_predicted_from_and_exported():
    import matplotlib

    matplotlib.use("Agg")
    draws = quick(normal(Y), draws=200, warmup=100)
    table = draws.summary()
    assert "mu" in str(table) and table.columns["r_hat"].shape == (1,)
    assert draws.predict(KEY)["y"].shape == (2, 200, 3)
    assert draws.predict(KEY, 7)["y"].shape == (7, 3)
    assert draws.plot().shape == (1, 2)
    pytest.importorskip("arviz")
    exported = draws.to_arviz()
    np.testing.assert_array_equal(exported.posterior["mu"].values, draws["mu"])
    np.testing.assert_array_equal(exported.sample_stats["diverging"], draws.stats["diverging"])
