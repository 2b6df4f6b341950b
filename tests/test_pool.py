"""Noise drawn for many sites at once gives the draws that each site would have made by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax.transforms.pool import KINDS

DRAWS = {
    "normal": lambda x: d.Normal(x, 1.0 + x**2),
    "normal, batched": lambda x: d.Normal(jnp.array([x, 2 * x]), 0.5),
    "normal, one event": lambda x: d.Normal(jnp.array([x, 2 * x]), 0.5).to_event(1),
    "scaled": lambda x: vx.scaled(d.Normal(x, 2.0), 3.0),
    "masked": lambda x: vx.masked(d.Normal(x, 2.0), x > 0),
    "bernoulli, logits": lambda x: d.Bernoulli(logits=x),
    "bernoulli, probs": lambda x: d.Bernoulli(jax.nn.sigmoid(x)),
    "exponential": lambda x: d.Exponential(jnp.exp(x)),
    "half normal": lambda x: d.HalfNormal(jnp.exp(x)),
    "lognormal": lambda x: d.LogNormal(x, 1.0),
    "gamma": lambda x: d.Gamma(jnp.exp(x)),
    "expanded": lambda x: d.Normal(x, 1.0).expand([3]),
}


def three(make, lanes=0):
    def program(x):
        def one(x):
            return [vx.sample(f"z{i}", make(x + i)) for i in range(3)]

        return jax.vmap(one)(x + jnp.arange(float(lanes))) if lanes else one(x)

    return program


def by_hand(make, key, x, lanes):
    out = []
    for i, own in enumerate(jax.random.split(key, 3)):
        if lanes:
            lane = lambda key, x, i=i: make(x + i).sample(key)  # noqa: E731
            out.append(jax.vmap(lane)(jax.random.split(own, lanes), x + jnp.arange(float(lanes))))
        else:
            out.append(make(x + i).sample(own))
    return out


@pytest.mark.thin(4)
@pytest.mark.parametrize("lanes", [0, 2])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_site_alone(name, lanes):
    key, x = jax.random.key(3), jnp.array(0.3)
    found = jax.jit(vx.seed(three(DRAWS[name], lanes)))(key, x)
    expected = jax.jit(lambda key, x: by_hand(DRAWS[name], key, x, lanes))(key, x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert a.dtype == b.dtype


def generators(jaxpr):
    """How many calls of the random generator."""
    return str(jaxpr).count("random_bits")


@pytest.mark.parametrize("estimator", [est.Reparam(), est.Score()])
@pytest.mark.parametrize("in_scan", [False, True])
def test_sites_share_one_call_of_the_generator(estimator, in_scan):
    def program(x):
        def body(total, x):
            zs = [vx.sample(f"z{i}", d.Normal(x, 1.0), estimator=estimator) for i in range(9)]
            return total + sum(zs), None

        if in_scan:
            return jax.lax.scan(body, 0.0, x * jnp.ones(4))[0]
        return body(0.0, x)[0]

    traced = jax.make_jaxpr(vx.value_and_grad(program))(jax.random.key(0), 0.5)
    assert generators(traced) == 1


def test_a_site_whose_noise_is_large_draws_by_itself():
    def program(x):
        return [vx.sample(f"z{i}", d.Normal(x * jnp.ones(2000), 1.0)) for i in range(2)]

    assert "[2,2000]" not in str(jax.make_jaxpr(vx.seed(program))(jax.random.key(0), 0.5))


def test_a_subclass_with_its_own_sampler_is_asked():
    class Rounded(d.Normal):
        def sample(self, key, sample_shape=()):
            return jnp.round(super().sample(key, sample_shape))

    zs = vx.seed(lambda: [vx.sample(f"z{i}", Rounded(0.0, 9.0)) for i in range(3)])
    assert all(z == jnp.round(z) for z in zs(jax.random.key(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_in_the_list(kind):
    assert any(isinstance(make(jnp.array(0.2)), kind) for make in DRAWS.values())
