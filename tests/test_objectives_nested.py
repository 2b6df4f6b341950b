"""HVI, IWHVI, DIWHVI, VSMC: against exact marginals, and written out by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_smc import DATA, TRUE, kalman, linear

import varax as vx
from varax import dist as d
from varax import errors
from varax import objectives as ob

X = {"x": 1.3}
T = {"a": jnp.array(0.4), "s": jnp.array(0.7), "r": jnp.array(0.5)}


@vx.model
def model():
    z = vx.sample("z", d.Normal(0.0, 1.0))
    vx.sample("x", d.Normal(z, 0.8))


@vx.model
def guide(t):
    u = vx.sample("u", d.Normal(0.0, 1.0))
    vx.sample("z", d.Normal(t["a"] + t["s"] * u, t["r"]))


@vx.model
def marginal_guide(t):
    vx.sample("z", d.Normal(t["a"], jnp.hypot(t["s"], t["r"])))


def reverse(t):
    """q(u | z)."""

    @vx.model
    def posterior(kept):
        precision = 1 + (t["s"] / t["r"]) ** 2
        mean = t["s"] * (kept["z"] - t["a"]) / t["r"] ** 2 / precision
        vx.sample("u", d.Normal(mean, precision**-0.5))

    return posterior


KEYS = jax.random.split(jax.random.key(0), 20000)


def draws(objective):
    return np.asarray(jax.jit(jax.vmap(lambda k: vx.expect(objective)(k)))(KEYS), float)


def mean(objective):
    found = draws(objective)
    return found.mean(), found.std() / np.sqrt(len(found))


def exact_elbo():
    sd = float(jnp.hypot(T["s"], T["r"]))
    a = float(T["a"])
    log_p = -0.5 * (a**2 + sd**2) - 0.5 * ((X["x"] - a) ** 2 + sd**2) / 0.64 - np.log(0.8)
    return log_p - np.log(2 * np.pi) + 0.5 * np.log(2 * np.pi * np.e * sd**2)


@pytest.mark.parametrize("k", [1, 4])
def test_the_posterior_as_reverse_model_gives_the_marginals_elbo(k):
    def both():
        """At the same z, draw by draw."""
        q = vx.marginal(guide(T), "z", vx.importance(k, reverse(T)))
        trace = q.simulate()
        return trace.log_density - marginal_guide(T).log_density(trace.choices)

    assert abs(draws(both)).max() < 1e-4
    value, error = mean(lambda: ob.iwhvi(model(), guide(T), X, k, reverse(T)))
    assert abs(value - exact_elbo()) < 5.3 * error


@pytest.mark.slow
def test_bounds_are_in_order():
    """HVI < IWHVI(2) < IWHVI(6) < the marginal's ELBO < DIWHVI < log p(x)."""
    p, q = model(), guide(T)
    values = [
        mean(lambda: ob.hvi(p, q, X)),
        mean(lambda: ob.iwhvi(p, q, X, 2)),
        mean(lambda: ob.iwhvi(p, q, X, 6)),
        (exact_elbo(), 0.0),
        mean(lambda: ob.diwhvi(p, q, X, 20, 50)),
        (float(d.Normal(0.0, np.sqrt(1.64)).log_prob(X["x"])), 0.0),
    ]
    for (low, e), (high, f) in itertools.pairwise(values):
        assert low + 5.3 * np.hypot(e, f) < high


BY_HAND = {
    "hvi": (
        lambda: ob.hvi(model(), guide(T), X, reverse(T)),
        lambda: _iwhvi_by_hand(1, reverse(T)),
    ),
    "iwhvi": (
        lambda: ob.iwhvi(model(), guide(T), X, 3, reverse(T)),
        lambda: _iwhvi_by_hand(3, reverse(T)),
    ),
    "vsmc": (
        lambda: ob.vsmc(linear(TRUE), {"x": jnp.array(DATA)}, vx.smc(3)),
        lambda: vx.marginal(linear(TRUE), "x", vx.smc(3)).log_density({"x": jnp.array(DATA)}),
    ),
}


def _iwhvi_by_hand(k, reverse):
    q = guide(T).simulate()
    z, r = q.choices["z"], reverse({"z": q.choices["z"]})
    own = q.log_density - r.log_density({"u": q.choices["u"]})

    def other(_):
        u = r.simulate()
        return guide(T).log_density(u.choices | {"z": z}) - u.log_density

    log_w = jnp.concatenate([own[None], jax.vmap(other)(jnp.arange(k - 1))]) if k > 1 else own[None]
    return model().log_density({"z": z} | X) - jax.nn.logsumexp(log_w) + jnp.log(k)


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", BY_HAND)
def test_the_same_numbers_by_hand(name):
    library, mine = BY_HAND[name]
    one, two = draws(library), draws(mine)
    if name == "vsmc":
        np.testing.assert_allclose(one, two, rtol=1e-6)
        assert one.mean() < kalman(DATA)
    else:  # other keys: in the mean
        error = np.sqrt((one.var() + two.var()) / len(one))
        assert abs(one.mean() - two.mean()) < 5.3 * error + 1e-5


def test_directions_and_tags():
    for f in (ob.hvi, ob.iwhvi, ob.diwhvi, ob.vsmc):
        assert f.kind == "lower bound"
    assert vx.bound(lambda: ob.diwhvi(model(), guide(T), X, 2, 2)) == "lower bound"


def test_a_guide_without_the_latents():
    with pytest.raises(errors.UnknownAddressError, match="z"):
        vx.expect(lambda: ob.hvi(model(), reverse(T)({"z": 0.0}), X))(jax.random.key(0))
