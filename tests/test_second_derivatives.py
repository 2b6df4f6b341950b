"""`jax.hessian` of an expectation is unbiased too: the surrogate is right to every order.

The twins here are right to the first order, where they pass, and wrong to the second.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from control_flow_forms import FORMS, THETA, case, drawing
from gradient_checks import (
    FirstOrder,
    FirstOrderPath,
    FirstOrderWeights,
    Frozen,
    check,
    check_mean,
    estimates,
    exactly,
    hessian,
    label,
    mean_coin,
    mean_normal,
    with_estimators,
)

import varax as vx
from varax import dist as d
from varax import estimators as est

SCORE = (est.Score(), FirstOrder())
REPARAM = (est.Reparam(), FirstOrderPath())
ENUMERATE = (est.Enumerate(), FirstOrderWeights())


def coin(theta, estimator):
    z = vx.sample("z", d.Bernoulli(logits=theta[0]), estimator=estimator)
    return jnp.sin(z + theta[1]) + 2 * z


def mean_of_coin(theta):
    return mean_coin(lambda z: jnp.sin(z + theta[1]) + 2 * z, theta[0])


def lognormal(theta, estimator):
    x = vx.sample("x", d.LogNormal(theta[0], jnp.exp(theta[1] - 1)), estimator=estimator)
    return x * theta[1] + jnp.log(x) ** 2


def mean_of_lognormal(theta):
    def cost(log_x):
        return jnp.exp(log_x) * theta[1] + log_x**2

    return mean_normal(cost, theta[0], jnp.exp(theta[1] - 1))


def gamma(theta, estimator):
    law = d.Gamma(jnp.exp(theta[0]), jnp.exp(theta[1]))
    return vx.sample("x", law, estimator=estimator) ** 2


def mean_of_gamma(theta):
    return jnp.exp(2 * theta[0] - 2 * theta[1]) + jnp.exp(theta[0] - 2 * theta[1])


ONE_SITE = [
    (coin, mean_of_coin, SCORE),
    (coin, mean_of_coin, ENUMERATE),
    (lognormal, mean_of_lognormal, SCORE),
    (lognormal, mean_of_lognormal, REPARAM),
    (gamma, mean_of_gamma, REPARAM),  # implicit derivatives
]
WITH_TWINS = [(*c[:2], twin) for c in ONE_SITE for twin in c[2][1:]]


@pytest.mark.thin(2)
@pytest.mark.parametrize("program, expectation, estimators", ONE_SITE, ids=label)
def test_one_site(program, expectation, estimators, x64):
    check(program, expectation, THETA, *((e,) for e in estimators), of=hessian)


@pytest.mark.parametrize("program, expectation, twin", WITH_TWINS)
def test_twins_are_right_to_the_first_order(program, expectation, twin):
    (draws,) = estimates([with_estimators(program, twin)], THETA)
    check_mean(draws, exactly(expectation, THETA))


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "name, law, estimators",
    [
        ("scan", "coin", SCORE),
        ("scan", "coin", ENUMERATE),
        ("scan", "normal", (est.Reparam(), Frozen())),
        ("scan_of_cond", "normal", SCORE),
        ("switch_on_a_draw", "coin", SCORE),
        ("vmap_of_cond", "coin", SCORE),
        ("checkpoint_called_twice", "normal", (est.Reparam(), Frozen())),
        ("checkpoint_called_twice", "normal", SCORE),
    ],
)
def test_control_flow(name, law, estimators):
    check(*case(name, law), THETA, *((e,) for e in estimators), of=hessian)


@pytest.mark.parametrize("law, inner", [("normal", est.Reparam()), ("coin", est.Enumerate())])
def test_branch_on_a_scored_draw(law, inner):
    """Cross terms: the predicate's score meets the derivatives of the branches."""
    draw, (cond, _) = drawing(law, inner), FORMS["cond_on_a_draw"]

    def program(theta, predicate):
        return cond(draw, theta, predicate)

    check(program, case("cond_on_a_draw", law)[1], THETA, *((e,) for e in SCORE), of=hessian)


@pytest.mark.parametrize("score_first", [True, False])
def test_score_mixed_with_reparam(score_first, x64):
    """One feeds the other's parameter: the score of the second depends on the path of the first."""

    def cost(x, z, theta):
        return jnp.sin(x + theta[1]) + x * z

    def program(theta, score, path):
        def normal(u):
            return vx.sample("x", d.Normal(u, jnp.exp(theta[1] - 1)), estimator=path)

        def flip(u):
            return vx.sample("z", d.Bernoulli(logits=u), estimator=score)

        if score_first:
            z = flip(theta[0])
            return cost(normal(theta[1] * z), z, theta)
        x = normal(theta[0])
        return cost(x, flip(theta[1] * x), theta)

    def expectation(theta):
        sd = jnp.exp(theta[1] - 1)
        if score_first:
            return mean_coin(
                lambda z: mean_normal(lambda x: cost(x, z, theta), theta[1] * z, sd), theta[0]
            )
        return mean_normal(
            lambda x: mean_coin(lambda z: cost(x, z, theta), theta[1] * x), theta[0], sd
        )

    score, path = SCORE[0], est.Reparam()
    check(
        program, expectation, THETA, (score, path), (SCORE[1], path), (score, Frozen()), of=hessian
    )


@pytest.mark.parametrize("law, estimator", [("coin", est.Score()), ("normal", est.Reparam())])
def test_every_order_of_differentiation_agrees(law, estimator):
    program, _ = case("scan", law)
    modes = [(f, g) for f in (jax.jacfwd, jax.jacrev) for g in (jax.jacfwd, jax.jacrev)]

    def estimate(t):
        return vx.expect(lambda t: program(t, estimator))(jax.random.key(3), t)

    @jax.jit
    def in_each_mode(theta):
        return jnp.stack([outer(inner(estimate))(theta) for outer, inner in modes])

    found = in_each_mode(jnp.array(THETA))  # [4, p, p]
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), rtol=1e-4, atol=1e-5)


def test_third_derivative_of_a_score(x64):
    """E = 3 sigmoid(t): DiCE weights have no order at which they stop."""

    def third(program, key, theta):
        estimate = lambda t: vx.expect(program)(key, t)  # noqa: E731
        return jax.grad(jax.grad(jax.grad(estimate)))(theta[0])[None]

    def program(t):
        return 3.0 * vx.sample("z", d.Bernoulli(logits=t), estimator=est.Score())

    s = 1 / (1 + np.exp(-0.4))
    exact = np.array([3 * s * (1 - s) * (1 - 6 * s + 6 * s**2)])
    (draws,) = estimates([program], (0.4,), third)
    check_mean(draws, exact)
