"""Programs in every form of control flow, each below its exact expectation.

A form is `program(draw, t)`, where `draw(address, u)` is one choice of a law with parameter u and
t the program's parameters, and `expectation(mean, t)`, where `mean(g, u)` is E[g(x)] under that
law. `case` fills in a law and an estimator.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from gradient_checks import mean_coin, mean_normal
from jax import lax

import varax as vx
from varax import dist as d
from varax import estimators as est

THETA = (0.4, 0.7)
STEPS = np.array([1.0, -0.5, 2.0])
EXACT = est.Enumerate()
FORMS = {}
LAWS = {
    "normal": (lambda u: d.Normal(u, 0.7), lambda g, u: mean_normal(g, u, 0.7, 12)),
    "coin": (lambda u: d.Bernoulli(logits=u), mean_coin),
}


def form(expectation):
    def register(program):
        FORMS[program.__name__] = program, expectation
        return program

    return register


def drawing(law, estimator):
    """`draw(address, u)`; a measure may be put around the law."""

    def draw(address, u, around=lambda law: law):
        return 1.0 * vx.sample(address, around(LAWS[law][0](u)), estimator=estimator)

    return draw


@functools.cache
def case(name, law):
    """`(program(theta, estimator), expectation(theta))`."""
    program, expectation = FORMS[name]
    return (
        lambda theta, estimator: program(drawing(law, estimator), theta),
        lambda theta: expectation(LAWS[law][1], theta),
    )


def two(mean, u, v, cost):
    """E[cost(x, y)], x of parameter u, y of v(x)."""
    return mean(lambda x: mean(lambda y: cost(x, y), v(x)), u)


def three(mean, u, v, w, cost):
    """E[cost(x, y, z)], x of parameter u, y of v(x), z of w(x, y)."""
    return mean(lambda x: two(mean, v(x), lambda y: w(x, y), lambda y, z: cost(x, y, z)), u)


def apart(mean, u, v, w, cost):
    """E[cost(x, y, z)] of independent x, y, z."""
    return three(mean, u, lambda x: v, lambda x, y: w, cost)


def couple(x, y, z=0.0):
    return jnp.sin(x + y - z) + x * y + z * (1 + x)


# ---- loops: Markov chains


def chain(mean, t, cost, steps=STEPS):
    def after(x, u):
        return t[0] * x + t[1] * u

    a, b, c = steps
    return three(mean, after(1, a), lambda x: after(x, b), lambda x, y: after(y, c), cost)


@form(lambda mean, t: chain(mean, t, lambda x, y, z: couple(x, y, z) + z * t[1]))
def scan(draw, t, reverse=False):
    def step(x, u):
        x = draw("x", t[0] * x + t[1] * u)
        return x, x

    last, xs = lax.scan(step, 1.0, jnp.array(STEPS, t.dtype), reverse=reverse)
    return couple(*xs) + last * t[1]


@form(lambda mean, t: chain(mean, t, lambda z, y, x: couple(x, y, z) + x * t[1], STEPS[::-1]))
def scan_in_reverse(draw, t):
    return scan(draw, t, reverse=True)


@form(lambda mean, t: chain(mean, t, lambda x, y, z: jnp.sin(z) + z * t[0], (0, 1, 2)))
def fori_loop(draw, t):
    x = lax.fori_loop(0, 3, lambda i, x: draw("x", t[0] * x + t[1] * i), 1.0)
    return jnp.sin(x) + x * t[0]


# ---- branches


def mean_of_cond(mean, t):
    p = jax.nn.sigmoid(t[1])
    one = mean(jnp.sin, t[0]) + mean(lambda b: b * t[0], t[1]) - 1
    return p * one + (1 - p) * mean(lambda c: c**2, t[0] - t[1])


@form(mean_of_cond)
def cond_on_a_draw(draw, t, predicate=EXACT):
    z = vx.sample("z", d.Bernoulli(logits=t[1]), estimator=predicate)
    return lax.cond(
        z == 1,
        lambda: jnp.sin(draw("a", t[0])) + draw("b", t[1]) * t[0] - 1,
        lambda: draw("c", t[0] - t[1]) ** 2,
    )


def mean_of_switch(mean, t):
    def after(x):
        return mean(lambda y: couple(x, y), x)

    p = jax.nn.softmax(jnp.array([0, t[0], t[1]]))
    ab = two(mean, t[0], lambda a: t[0] + t[1], lambda a, b: after(a * b))
    return p[0] * after(t[0]) + p[1] * ab + p[2] * mean(after, 2 * t[0])


@form(mean_of_switch)
def switch_on_a_draw(draw, t):
    z = vx.sample("z", d.Categorical(logits=jnp.array([0, t[0], t[1]])))
    branches = [
        lambda u: u,
        lambda u: draw("a", u) * draw("b", u + t[1]),
        lambda u: draw("c", u + t[0]),
    ]
    x = lax.switch(z, branches, t[0])
    return couple(x, draw("after", x))


def step_of_cond(draw, t, u):
    return lax.cond(u > 0, lambda: draw("a", t[0] + u), lambda: 2 * draw("b", t[1]))


def mean_of_step(mean, t):
    u = t[0] + STEPS
    return apart(mean, u[0], t[1], u[2], lambda x, y, z: couple(x, 2 * y, z))


@form(mean_of_step)
def scan_of_cond(draw, t):
    return couple(*lax.map(lambda u: step_of_cond(draw, t, u), jnp.array(STEPS, t.dtype)))


# ---- vmap


@form(mean_of_step)
def vmap_of_cond(draw, t):
    return couple(*jax.vmap(lambda u: step_of_cond(draw, t, u))(jnp.array(STEPS, t.dtype)))


@form(lambda mean, t: apart(mean, *(t[0] + t[1] * STEPS), lambda x, y, z: (x + y + z) ** 2))
def vmap_that_couples(draw, t):
    return jax.vmap(lambda u: draw("x", t[0] + t[1] * u))(jnp.array(STEPS, t.dtype)).sum() ** 2


def mean_of_lanes(mean, t):
    def lane(g, u):
        return two(mean, t[0] + t[1] * u, lambda x: t[0] * x + t[1] * u, lambda _, x: g(x))

    return lane(lambda x: lane(lambda y: couple(x, y), -0.5), 1)


@form(mean_of_lanes)
def vmap_of_scan(draw, t):
    def lane(u):
        def step(x, _):
            return draw("x", t[0] * x + t[1] * u), None

        return lax.scan(step, 1.0, None, length=2)[0]

    return couple(*jax.vmap(lane)(jnp.array([1, -0.5], t.dtype)))


def mean_of_plate(mean, t):
    def last(x, y):
        return two(mean, t[0] * y + t[1], lambda _: t[0] * x + t[1], couple)

    return two(mean, t[1] - t[0] / 2, lambda _: t[0] + t[1], last)


@form(mean_of_plate)
def scan_of_vmap(draw, t):
    def step(x, _):
        return jax.vmap(lambda x: draw("x", t[0] * x + t[1]))(x[::-1]), None

    return couple(*lax.scan(step, jnp.array([1, -0.5], t.dtype), None, length=2)[0])


# ---- transparent regions


@form(lambda mean, t: two(mean, t[0] + t[1] / 2, lambda x: t[0] + x * t[1], couple))
def jit_called_twice(draw, t):
    draw_from = jax.jit(lambda u: draw("x", t[0] + u * t[1]))
    x = draw_from(0.5)
    return couple(x, draw_from(x))


def mean_of_replay(mean, t):
    def cost(x, y):
        return couple(jnp.sin(x), jnp.sin(y))

    return two(mean, t[0] + t[1] / 2, lambda x: t[0] + jnp.sin(x) * t[1], cost)


@form(mean_of_replay)
def checkpoint_called_twice(draw, t):
    draw_from = jax.checkpoint(lambda u: jnp.sin(draw("x", t[0] + u * t[1])))
    x = draw_from(0.5)
    return couple(x, draw_from(x))


def mean_of_models(mean, t):
    def local(g, u):
        return two(mean, u, lambda a: a, lambda a, b: g(a + t[1] * b))

    return local(lambda x: local(lambda y: couple(x, y), t[1]), t[0])


@form(mean_of_models)
def nested_models(draw, t):
    @vx.model
    def local(u):
        a = draw("a", u)
        return a + t[1] * draw("b", a)

    return couple(vx.sample("one", local(t[0])), vx.sample("two", local(t[1])))


@form(lambda mean, t: two(mean, t[0] + t[1], lambda x: t[0] * x + t[1], lambda _, x: x**2))
def everything_nested(draw, t):
    @jax.checkpoint
    def inner(x):
        return lax.cond(
            vx.assume_smooth(x) > -9, jax.jit(lambda: draw("a", t[0] * x + t[1])), lambda: x
        )

    step = jax.vmap(inner)
    return (
        jax.jit(lambda: lax.fori_loop(0, 2, lambda _, x: step(x), jnp.ones(1, t.dtype)))()[0] ** 2
    )


# ---- measures around the law


@form(lambda mean, t: mean(lambda x: mean(lambda z: (x + z) ** 2, t[0] + t[1] * 2), t[0] + t[1]))
def masked(draw, t):
    mask = np.array([True, False, True])
    x = draw("x", t[0] + t[1] * STEPS, lambda law: vx.masked(law, mask))
    return (x * mask).sum() ** 2


@form(lambda mean, t: two(mean, t[0], lambda x: t[1] * x, couple))
def scaled(draw, t):
    x = draw("x", t[0], lambda law: vx.scaled(law, 3.0))
    return couple(x, draw("y", t[1] * x, lambda law: vx.scaled(law, 0.5)))


# ---- regions around one draw

REGIONS = {
    "plain": lambda draw: draw(),
    "jit": lambda draw: jax.jit(draw)(),
    "checkpoint": lambda draw: jax.checkpoint(draw)(),
    "scan": lambda draw: lax.map(lambda _: draw(), jnp.arange(1))[0],
    "cond": lambda draw: lax.cond(jnp.sin(1.0) > 0, draw, lambda: 0 * draw()),
    "switch": lambda draw: lax.switch(jnp.argmax(STEPS), [lambda: 0 * draw()] * 2 + [draw]),
    "jit in scan in cond in checkpoint": lambda draw: REGIONS["checkpoint"](
        lambda: REGIONS["cond"](lambda: REGIONS["scan"](lambda: REGIONS["jit"](draw)))
    ),
}
