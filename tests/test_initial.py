"""Where samplers start: strategies, several chains, and the error that names the bad site."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import varax as vx
from varax import dist as d
from varax import errors

KEY = jax.random.key(0)


@vx.model
def hierarchy(y):
    tau = vx.sample("tau", d.LogNormal(3.0, 0.1))
    theta = vx.sample("theta", d.Normal(50.0, tau * jnp.ones(2)))
    vx.sample("y", d.Normal(theta, 1.0), obs=y)


Y = jnp.array([10.0, 20.0])


def finite(potential, u):
    value, grad = jax.value_and_grad(potential)(u)
    return bool(jnp.isfinite(value)) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(grad))


def test_uniform_draws_lie_within_two_of_the_origin():
    potential = hierarchy(Y).potential()
    u = potential.initial(KEY)
    assert {a: jnp.shape(x) for a, x in u.items()} == potential.shapes
    chains = potential.initial(KEY, chains=40)
    assert chains["tau"].shape == (40,) and chains["theta"].shape == (40, 2)
    assert finite(potential, jax.tree.map(lambda x: x[1], chains))
    drawn = jax.vmap(potential.ravel)(chains)
    assert (abs(drawn) < 2).all() and drawn.max() > 1.5 and drawn.min() < -1.5
    assert len(jnp.unique(drawn)) == drawn.size


def test_the_prior_is_drawn_from_and_the_data_are_left_aside():
    chains = hierarchy(Y).potential().initial(KEY, 200, "prior")
    assert abs(chains["tau"].mean() - 3.0) < 0.1 and 0.05 < chains["tau"].std() < 0.2
    assert 10 < chains["theta"].std() < 40


def test_choices_are_started_from_and_the_others_are_uniform():
    potential = hierarchy(Y).potential()
    chains = potential.initial(KEY, 3, {"tau": 7.0})
    np.testing.assert_allclose(jnp.exp(chains["tau"]), 7.0, rtol=1e-6)
    assert (abs(chains["theta"]) < 2).all() and len(jnp.unique(chains["theta"])) == 6
    full = potential.initial(KEY, strategy={"tau": 7.0, "theta": Y})
    np.testing.assert_allclose(full["theta"], Y)


def test_a_measure_is_drawn_from():
    @vx.model
    def guide():
        vx.sample("tau", d.LogNormal(1.0, 0.01))
        vx.sample("theta", d.Normal(Y, 0.1))

    potential = hierarchy(Y).potential()
    chains = potential.initial(KEY, 50, guide())
    np.testing.assert_allclose(chains["tau"], 1.0, atol=0.06)
    np.testing.assert_allclose(chains["theta"] - Y, 0.0, atol=0.6)
    assert len(jnp.unique(chains["theta"])) == 100
    with pytest.raises(errors.UnknownAddressError, match="mu"):
        potential.initial(KEY, strategy=vx.model(lambda: vx.sample("mu", d.Normal(0.0, 1.0)))())


def test_chains_of_nuts_start_where_a_guide_says():
    """Two modes with a gap that no trajectory crosses; the guide knows the lower one."""

    @vx.model
    def modes():
        x = vx.sample("x", d.Normal(0.0, 30.0))
        vx.factor("two", jnp.logaddexp(-0.5 * ((x - 100) / 2) ** 2, -0.5 * ((x + 100) / 2) ** 2))

    @vx.model
    def guide():
        vx.sample("x", d.Normal(-100.0, 1.0))

    chains = vx.nuts(modes(), KEY, draws=50, warmup=50, chains=2, initial=guide(), progress=False)
    assert (chains["x"] < 0).all()


def test_a_second_search_compiles_nothing():
    potential = hierarchy(Y).potential()
    potential.initial(KEY, 3)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", lambda *_, **__: pytest.fail("compiled anew"))
        again = potential.initial(jax.random.key(1), 3)
    assert again["theta"].shape == (3, 2)


def test_nested_choices_and_supports_that_depend_on_others():
    @vx.model
    def program():
        high = vx.sample("high", d.LogNormal(0.0, 1.0))
        vx.sample("inner", vx.model(lambda: vx.sample("z", d.Uniform(0.0, high)))())

    u = program().potential().initial(KEY, 2, {"inner": {"z": 100.0}, "high": 101.0})
    choices = jax.vmap(program().potential().constrain)(u)
    np.testing.assert_allclose(choices["inner"]["z"], 100.0, rtol=1e-4)


def test_draws_without_a_finite_gradient_are_passed_over():
    """The density is finite from u = 1.5 on, and its gradient from 1.7 on."""

    @vx.model
    def program():
        x = vx.sample("x", d.Normal(0.0, 1.0))
        vx.factor("edge", jnp.where(x > 1.5, 0.0, -jnp.inf))
        vx.factor("slope", jnp.sqrt(jnp.maximum(x - 1.7, 0.0)))

    for chains in (None, 5):
        x = program().potential().initial(KEY, chains)["x"]
        assert (x > 1.7).all()


def test_the_same_key_gives_the_same_point():
    potential = hierarchy(Y).potential()
    one, two, other = (potential.initial(k)["theta"] for k in (KEY, KEY, jax.random.key(1)))
    assert (one == two).all() and (one != other).all()


# ---- errors


def log_of_negative():
    x = vx.sample("x", d.Normal(0.0, 1.0))
    vx.sample("y", d.Normal(0.0, jnp.log(0.0 * x - 1.0)), obs=1.0)


def impossible():
    vx.sample("x", d.Normal(0.0, 1.0))
    vx.factor("never", -jnp.inf)


def kink():
    x = vx.sample("x", d.Normal(0.0, 1.0))
    z = vx.sample("z", d.Normal(0.0, 1.0))
    vx.factor("root", z + jnp.sqrt(0.0 * x))


def missing():
    x = vx.sample("x", d.Normal(0.0, 1.0))
    data = jnp.array([0.0, jnp.nan])  # in lanes, so that nothing can be said before the run
    jax.vmap(lambda y: vx.sample("data", d.Normal(x, 1.0), obs=y))(data)


NOWHERE = {
    "nan": (log_of_negative, "address:  y.*100 draws.*`log` gives nan.*at:.*log_of_negative"),
    "factor": (impossible, "address:  never.*density: it is -inf.*at:.*impossible"),
    "gradient": (kink, "address:  x.*gradient: not finite in x; first.*`sqrt` is.*strategy="),
    "data": (missing, "address:  data.*value nan.*check the data"),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_the_error_names_the_site(name):
    program, match = NOWHERE[name]
    headline = f"No point of {program.__name__} with a finite density"
    with pytest.raises(errors.InitialisationError, match=f"(?s){headline}.*{match}"):
        vx.model(program)().potential().initial(KEY)


def test_strategies_that_do_not_fit():
    potential = hierarchy(Y).potential()
    with pytest.raises(errors.InitialisationError, match=r"(?s)prior, choices.*measure.*'mode'"):
        potential.initial(KEY, strategy="mode")
    with pytest.raises(errors.UnknownAddressError, match=r"(?s)address:  mu.*tau, theta"):
        potential.initial(KEY, strategy={"mu": 0.0})
    with pytest.raises(errors.ShapeError, match=r"(?s)address:  theta.*\(2,\).*\(3,\)"):
        potential.initial(KEY, strategy={"theta": jnp.zeros(3)})
    with pytest.raises(errors.SupportError, match=r"(?s)address:  tau.*-1.0"):
        potential.initial(KEY, strategy={"tau": -1.0})


def test_points_where_the_density_is_resolved_are_preferred():
    """exp(400 |u|) nats: rounded by less than one only near the origin."""

    @vx.model
    def steep(least):
        u = vx.sample("u", d.Flat())
        vx.factor("cliff", -jnp.exp(400 * jnp.abs(u)) - least)

    with jax.enable_x64(True):
        u = steep(0.0).potential().initial(KEY, chains=5)["u"]
        assert (abs(u) < 36 / 400).all() and len(jnp.unique(u)) == 5
        coarse = steep(1e200).potential().initial(KEY, chains=5)["u"]  # nowhere resolved
        assert jnp.isfinite(coarse).all() and abs(coarse).max() > 0.5
