"""Gradients of expectations are unbiased in every form of control flow.

Each form of `control_flow_forms` meets a continuous and a discrete law and every estimator, and
fails with the estimator's broken twin.
"""

import jax
import jax.numpy as jnp
import pytest
from control_flow_forms import FORMS, LAWS, REGIONS, THETA, case, drawing
from gradient_checks import (
    DEFAULT_DISCRETE,
    DEFAULT_SMOOTH,
    ENUMERATE,
    REPARAM,
    SCORE,
    NoScore,
    SharedLanes,
    check,
    check_biased,
    check_mean,
    estimates,
    exactly,
    label,
    mean_coin,
    with_estimators,
)
from jax import lax

import varax as vx
from varax import dist as d
from varax import estimators as est

CASES = [
    ("normal", REPARAM),
    ("normal", SCORE),
    ("coin", SCORE),
    ("coin", ENUMERATE),
]
DEFAULTS = [("normal", DEFAULT_SMOOTH), ("coin", DEFAULT_DISCRETE)]
IN_FLOAT64 = ("scan", "cond_on_a_draw", "vmap_of_cond", "everything_nested")


def cases():
    one = [(name, *c, False) for name in FORMS for c in CASES]
    return one + [(name, *c, True) for name in IN_FLOAT64 for c in CASES + DEFAULTS]


@pytest.mark.thin(6)
@pytest.mark.parametrize("name, law, estimators, x64", cases(), indirect=["x64"], ids=label)
def test_form(name, law, estimators, x64):
    program, expectation = case(name, law)
    right, twin, *_ = estimators
    check(program, expectation, THETA, (right,), (twin,))


# ---- what a form with one estimator does not show


@pytest.mark.parametrize("law, estimators", CASES, ids=label)
def test_branch_on_a_scored_draw(law, estimators):
    """The score of the predicate multiplies what the branches do; its twin forgets that."""
    draw, (cond, _) = drawing(law, estimators[0]), FORMS["cond_on_a_draw"]

    def program(theta, predicate):
        return cond(draw, theta, predicate)

    check(program, case("cond_on_a_draw", law)[1], THETA, (est.Score(),), (NoScore(),))


@pytest.mark.thin(2)
@pytest.mark.parametrize("inner", [REPARAM, SCORE], ids=label)
@pytest.mark.parametrize("outer", [SCORE, ENUMERATE], ids=label)
def test_switching_chain(outer, inner):
    """In each step of a scan a coin decides which law the next state has."""

    def program(theta, of_z, of_x):
        def step(x, _):
            z = vx.sample("z", d.Bernoulli(logits=theta[0] + x), estimator=of_z)
            mean = lax.cond(z == 1, lambda: theta[1] * x + 1, lambda: theta[0] * x)
            return vx.sample("x", d.Normal(mean, 0.7), estimator=of_x), None

        return jnp.sin(lax.scan(step, 0.5, None, length=2)[0]) * theta[1]

    def expectation(theta):
        def step(g, x):
            return mean_coin(
                lambda z: mean_x(g, jnp.where(z == 1, theta[1] * x + 1, theta[0] * x)),
                theta[0] + x,
            )

        return step(lambda x: step(lambda y: jnp.sin(y) * theta[1], x), 0.5)

    _, mean_x = LAWS["normal"]
    right = (outer[0], inner[0])
    check(program, expectation, THETA, right, (outer[1], right[1]), (right[0], inner[1]))


# ---- no key is used twice


class OneKey(est.Reparam):
    """Draws with the same key everywhere."""

    def draw(self, key, law):
        return est.Drawn(law.rsample(jax.random.key(0)))


def model_twice(draw):
    local = vx.model(draw)
    return vx.sample("one", local()), vx.sample("two", local())


TWICE = {
    "two sites": lambda draw: (draw(), draw("y")),
    "jitted function called twice": lambda draw: (lambda f: (f(), f()))(jax.jit(draw)),
    "checkpointed function called twice": lambda draw: (lambda f: (f(), f()))(jax.checkpoint(draw)),
    "scan": lambda draw: lax.map(lambda _: draw(), jnp.arange(2)),
    "fori_loop": lambda draw: lax.fori_loop(0, 2, lambda i, x: x.at[i].set(draw()), jnp.zeros(2)),
    "vmap": lambda draw: jax.vmap(lambda _: draw())(jnp.arange(2)),
    "before and in a scan": lambda draw: (draw(), lax.map(lambda _: draw("y"), jnp.arange(1))[0]),
    "model sampled twice": model_twice,
}


@pytest.mark.parametrize("twice", TWICE)
def test_two_draws_are_independent(twice):
    """The mean square of their difference is twice the variance, not 0."""

    def program(theta, estimator):
        def draw(address="x"):
            return vx.sample(address, d.Normal(0.0, jnp.exp(theta[0])), estimator=estimator)

        x, y = TWICE[twice](draw)
        return (x - y) ** 2

    twin = SharedLanes(est.Reparam()) if twice == "vmap" else OneKey()
    check(program, lambda t: 2 * jnp.exp(2 * t[0]), (0.3,), (est.Reparam(),), (twin,))


@pytest.mark.thin(2)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("estimators", [REPARAM, SCORE], ids=label)
def test_lanes_of_which_nothing_is_mapped_draw_independently(region, estimators):
    """E[(x_1 + ... + x_4)^2]; the twin gives every lane the noise of the first."""

    def program(theta, estimator):
        def draw():
            return vx.sample("x", d.Normal(theta[0], jnp.exp(theta[1])), estimator=estimator)

        return jax.vmap(lambda _: REGIONS[region](draw))(jnp.arange(4)).sum() ** 2

    def expectation(theta):
        return 4 * jnp.exp(2 * theta[1]) + 16 * theta[0] ** 2

    right = estimators[0]
    check(program, expectation, (0.3, -0.4), (right,), (SharedLanes(right),))


@pytest.mark.thin(2)
@pytest.mark.parametrize("lanes", [None, 3])
def test_while_loop_in_forward_mode(lanes):
    """Tosses until the first success, squared; JAX has no reverse mode for a while loop."""

    def program(theta, estimator):
        def toss(state):
            coin = d.Bernoulli(logits=theta[0])
            return state[0] + 1, vx.sample("z", coin, estimator=estimator)

        def count(_):
            return lax.while_loop(lambda state: state[1] == 0, toss, (0.0, 0))[0]

        return (jax.vmap(count)(jnp.arange(lanes)).sum() if lanes else count(0)) ** 2

    def forward(program, key, theta):
        value, slope = jax.jvp(lambda t: vx.expect(program)(key, t), (theta,), (jnp.ones(1),))
        return jnp.stack([value, slope])

    def expectation(theta):  # the count has mean 1 / p and variance (1 - p) / p^2
        n, p = lanes or 1, jax.nn.sigmoid(theta[0])
        return n * (1 - p) / p**2 + (n / p) ** 2

    exact = exactly(expectation, (0.7,))
    programs = [with_estimators(program, e) for e in (est.Score(), None, NoScore())]
    score, default, twin = estimates(programs, (0.7,), forward)
    check_mean(score, exact)
    check_mean(default, exact)
    check_biased(twin, exact)


@pytest.mark.parametrize("estimator", [est.Score(), est.Enumerate()], ids=str)
def test_scan_of_no_steps(estimator):
    def program(theta):
        def step(x, _):
            z = vx.sample("z", d.Bernoulli(logits=theta), estimator=estimator)
            return x + z, x

        last, xs = lax.scan(step, theta, None, length=0)
        return last**2 + xs.sum()

    value, slope = vx.value_and_grad(program)(jax.random.key(0), 3.0)
    assert (value, slope) == (9.0, 6.0)
