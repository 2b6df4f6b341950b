"""Replay: the noise of a trace, its laws, and counterfactuals against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import varax as vx
from varax import dist as d
from varax import errors

DISTRIBUTIONS = {
    "normal": lambda a: d.Normal(a, 1.0 + a**2),
    "laplace": lambda a: d.Laplace(a, 2.0),
    "exponential": lambda a: d.Exponential(1.0 + a**2),
    "lognormal": lambda a: d.LogNormal(a, 0.5),
    "uniform": lambda a: d.Uniform(a, a + 3.0),
    "half-normal": lambda a: d.HalfNormal(1.0 + a**2),
    "multivariate": lambda a: d.MultivariateNormal(
        jnp.array([a, 1.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]])
    ),
    "independent": lambda a: d.Normal(jnp.array([a, 0.0]), 2.0).to_event(1),
    "masked": lambda a: vx.masked(d.Normal(jnp.zeros(2) + a, 1.0), jnp.array([True, False])),
    "scaled": lambda a: vx.scaled(d.Normal(a, 1.0), 3.0),
    "delta": lambda a: d.Delta(a),
}


@vx.model
def chain(slope):
    x = vx.sample("x", d.Normal(0.0, 1.0))

    def body(s, _):
        s = vx.sample("s", d.Normal(s + slope * x, 2.0))
        return s, s

    last, _ = jax.lax.scan(body, 0.0, None, length=3)
    lanes = jax.vmap(lambda t: vx.sample("y", d.Normal(t * x, 0.5)))(jnp.arange(3.0))
    return last + lanes.sum()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_replaying_the_same_program_gives_the_same_values(name, x64):
    @vx.model
    def program():
        a = vx.sample("a", d.Normal(0.0, 1.0))
        vx.sample("b", DISTRIBUTIONS[name](a))

    trace = program().simulate(jax.random.key(3))
    again = program().replay(trace).simulate()
    np.testing.assert_allclose(again["b"], trace["b"], rtol=1e-9 if x64 else 1e-4)
    assert again.choices == {} and again.log_density == 0.0


def test_counterfactual_of_a_linear_chain_is_exact():
    """With x one larger, step t of the scan moves by (t + 1) slope and lane t by t."""
    trace = chain(0.5).simulate(jax.random.key(0))
    other = chain(0.5).do({"x": trace["x"] + 1.0}).replay(trace).simulate()
    np.testing.assert_allclose(other["s"] - trace["s"], [0.5, 1.0, 1.5], atol=1e-5)
    np.testing.assert_allclose(other["y"] - trace["y"], [0.0, 1.0, 2.0], atol=1e-5)


def test_counterfactual_takes_the_other_branch():
    @vx.model
    def program():
        x = vx.sample("x", d.Normal(0.0, 1.0))
        return jax.lax.cond(
            x > 0,
            lambda: vx.sample("up", d.Normal(x, 1.0)),
            lambda: vx.sample("down", d.Normal(-x, 1.0)),
        )

    trace, _ = program().generate(jax.random.key(0), {"x": 1.0})
    same = vx.replay(program(), trace).simulate()
    assert same.value == trace.value
    flipped = vx.replay(vx.do(program(), {"x": -1.0}), trace).simulate(jax.random.key(1))
    assert flipped.value == flipped["down"] != trace.value


def test_replay_works_under_jit_and_vmap():
    def effect(key):
        trace = chain(0.5).simulate(key)
        return chain(0.5).do({"x": trace["x"] + 1.0}).replay(trace).simulate().value - trace.value

    effects = jax.jit(jax.vmap(effect))(jax.random.split(jax.random.key(0), 5))
    np.testing.assert_allclose(effects, 1.5 + 3.0, atol=1e-4)


def test_discrete_noise_is_refused():
    @vx.model
    def program():
        vx.sample("n", d.Poisson(3.0))

    trace = program().simulate(jax.random.key(0))
    with pytest.raises(errors.CapabilityError, match=r"(?s)noise.*address:  n.*Poisson.*Gumbel"):
        program().replay(trace).simulate()
