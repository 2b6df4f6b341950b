"""Dependences of random compositions, and of draws on their laws' parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dependence_cases import TOGETHER, lower, name, spd
from dependence_checks import (
    check_precise,
    check_sound,
    dependences,
    in_float64,  # noqa: F401
    inputs,
)
from jax import lax
from random_functions import composition

import varax as vx
from varax import dist as d
from varax.transforms.axis_rules import Along
from varax.transforms.dependence import Analysis
from varax.transforms.law import Law

# ---- random compositions


SHAPES = [(3, 4), (4,), (4, 3), (3,), (2, 3, 2), (3, 3), (2, 2)]


def random_function(seed):
    """A function of two arrays, and its arguments."""
    rng = np.random.default_rng(seed)
    args = [rng.normal(size=SHAPES[rng.integers(len(SHAPES))]) for _ in range(2)]
    return composition(rng, [x.shape for x in args], int(rng.integers(3, 8))), args


@pytest.mark.thin(3)
@pytest.mark.parametrize("first", range(0, 200, TOGETHER))
def test_random_compositions(first):
    made = [random_function(seed) for seed in range(first, first + TOGETHER)]
    for (function, args), true in zip(made, dependences(made), strict=True):
        check_sound(function, args, true)


# ---- random choices: parameters -> elements


def lanes_of(make):
    """A distribution made under vmap over all its parameters."""
    return lambda *params: jax.vmap(make)(*params)


def draw(law):
    return vx.sample("x", law)


def positive(x):
    return 0.2 + jnp.exp(x / 3)


LAWS = [
    ("a,a->a", lambda m, s: draw(d.Normal(m, positive(s)))),
    ("ab,b->ab", lambda m, s: draw(d.Normal(m, positive(s)))),
    (",a->a", lambda m, s: draw(d.Normal(m, positive(s)))),
    (",->", lambda m, s: draw(d.Normal(m, positive(s)))),
    ("bk->b", lambda x: draw(d.Categorical(logits=x))),
    ("bk->b", lambda x: draw(d.Categorical(probs=jax.nn.softmax(x)))),
    ("bk->b.", lambda x: draw(d.Multinomial(3, probs=jax.nn.softmax(x)))),
    ("bk->b.", lambda x: draw(d.Dirichlet(positive(x)))),
    ("ab->a.", lambda m: draw(d.MultivariateNormal(m, jnp.eye(4)))),
    ("ab,abd->a.", lambda m, s: draw(d.MultivariateNormal(m, spd(s)))),
    ("b,abd->a.", lambda m, s: draw(d.MultivariateNormal(m, scale_tril=lower(s)))),
    ("ab->ab", lambda m: draw(d.Normal(m, 1.0).to_event(1))),
    ("ab,b->ab", lambda m, s: draw(d.Normal(m, positive(s)).to_event(2))),
    ("b->ab", lambda m: draw(d.Normal(m, 1.0).expand([3, 4]))),
    ("b->ab", lambda m: draw(d.Normal(m, 1.0).expand([3, 4]).to_event(1))),
    ("a,a->a", lambda m, w: draw(vx.masked(d.Normal(m, 1.0), w > 0))),
    ("ab,a->ab", lambda m, w: draw(vx.masked(d.Normal(m, 1.0).to_event(1), w > 0))),
    ("ab->ab", lambda m: draw(d.Normal(m, 1.0).mask(np.arange(4) > 1))),
    ("a,->a", lambda m, w: draw(vx.scaled(d.Normal(m, 1.0), positive(w)))),
    ("ab,ab->ab", lambda x, y: draw(d.Beta(positive(x), positive(y)))),
    ("ab->ab", lambda x: [draw(d.Bernoulli(logits=x)), draw(d.Poisson(positive(x)))]),
    ("ab->ab", lambda x: [draw(d.LogNormal(x, 1.0)), draw(d.Gamma(positive(x), 1.0))]),
    ("a,a->a", lambda x, y: draw(d.Uniform(x, x + positive(y)))),
    ("a,a->a", lambda x, y: draw(d.TruncatedNormal(x, positive(y), low=-1.0))),
    ("a,a,a->a", lambda x, y, z: draw(d.StudentT(positive(x), y, positive(z)))),
    ("ak,ak->a", lambda x, y: draw(mixture(x, y))),
    (
        "a,b->ab",
        lambda x, y: jax.vmap(lambda x: jax.vmap(lambda y: draw(d.Normal(x, positive(y))))(y))(x),
    ),
    ("a,->a", lambda x, y: jax.vmap(lambda x: draw(d.Normal(x, positive(y))))(x)),
    ("ab,b->ab", lambda x, y: jax.vmap(lambda x: draw(d.Normal(x, positive(y))))(x)),
    ("ab->ab", lambda x: jax.vmap(lambda x: draw(d.Normal(x, 1.0)), 1, 1)(x)),
    ("ab->ba", lambda x: jax.vmap(lambda x: draw(d.Normal(x, 1.0)), 1)(x)),
    ("abk->ab", lambda x: jax.vmap(lambda x: draw(d.Categorical(logits=x)))(x)),
    ("ab,abd->a.", lambda m, s: jax.vmap(lambda m, s: draw(d.MultivariateNormal(m, spd(s))))(m, s)),
    ("ab,bd->a.", lambda m, s: jax.vmap(lambda m: draw(d.MultivariateNormal(m, spd(s))))(m)),
    ("ab->a", lambda x: jax.vmap(lambda x: draw(d.Normal(x.sum(), 1.0)))(x)),
    ("ta->ta", lambda x: lax.map(lambda x: draw(d.Normal(x, 1.0)), x)),
    (
        "t<a->ta",
        lambda x: lax.scan(lambda c, x: (draw(d.Normal(c + x, 1.0)),) * 2, jnp.zeros(3), x)[1],
    ),
    ("t<a->ta", lambda x: lax.scan(chain_of_lanes, jnp.zeros(3), x)[1]),
    ("a,a->a", lambda x, y: jax.vmap(branching)(x, y)),
    (",a->a", lambda x, y: lax.cond(x > 0, lambda: draw(d.Normal(y, 1.0)), lambda: y)),
]


def chain_of_lanes(c, x):
    c = jax.vmap(lambda c, x: draw(d.Normal(jnp.sin(c) + x, 1.0)))(c, x)
    return c, c


def branching(x, y):
    return lax.cond(x > 0, lambda: vx.sample("p", d.Normal(y, 1.0)), lambda: 2 * y)


def mixture(x, y):
    return d.MixtureSameFamily(d.Categorical(logits=x), d.Normal(y, 1.0))


@pytest.mark.thin(2)
@pytest.mark.parametrize("spec, program", LAWS, ids=name)
def test_law(spec, program):
    """With the same key an element of a draw changes with its own parameters alone."""
    args = inputs(spec)
    seeded = vx.seed(program)
    key = jax.random.key(0)
    check_precise(program, args, spec)
    (true,) = dependences([(lambda *xs: seeded(key, *xs), args)], seeds=(0,))
    check_sound(program, args, true)


def test_the_elements_of_a_draw_are_sources():
    def program(m):
        x = jax.vmap(lambda m: draw(d.Normal(m, 1.0).expand([4])))(m)
        return x, x.sum(1), x[::-1]

    jaxpr = jax.make_jaxpr(program)(np.ones(3))
    found = Analysis(lambda site: Law(site, []).elements).footprint(jaxpr)
    assert found.shapes == [(3, 4)] and found.choices == [(0,)]
    axes = [dep.aligned for dep in found.outs]
    assert axes[0][1] == (Along(0), Along(1)) and axes[0][0] == (Along(0),)
    assert axes[1][1] == (Along(0), None)
    assert axes[2] == {1: (None, Along(1))} and found.outs[2].whole == 1
