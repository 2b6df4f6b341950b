"""Every estimator in every form of control flow, and every pair of estimators in one program.

The estimators of one form (or with one partner) are compiled together. Their twins are in
`test_estimators.py`; here a twin that forgets the weights of all shows that each test can see it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from control_flow_forms import THETA, case
from gradient_checks import (
    check_biased,
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

COIN = (
    est.Score(),
    est.Score(0.3),
    est.Score(est.LeaveOneOut(2)),
    est.Score(est.LeaveOneOut(3)),
    est.Enumerate(),
    est.MeasureValued(),
    est.ARM(),
    est.DisARM(),
    est.REBAR(0.5, 0.7),
    est.RELAX(lambda z: 0.5 * z, 0.5),
    est.SumAndSample(1),
    est.WithoutReplacement(2),
)
NORMAL = (
    est.Reparam(),
    est.Implicit(),
    est.Antithetic(),
    est.GaussHermite(24),
    est.Score(),
    est.Score(est.LeaveOneOut(2)),
    est.MeasureValued(),
)
EVERY = {"coin": COIN, "normal": NORMAL}
FORGETFUL = est.Biased(est.StopGradient())


def means(programs, expectation, theta=THETA, draws=20_000, of=None):
    """Each program has the expectation's derivatives."""
    how = {} if of is None else {"of": of}
    exact = exactly(expectation, tuple(theta), **how)
    *found, twin = estimates(programs, theta, draws=draws, **how)
    for values in found:
        check_mean(values, exact)
    check_biased(twin, exact)


# ---- control flow. A relaxed value must not decide a branch, and several values multiply in a scan

IN_FORMS = ("scan", "vmap_that_couples", "jit_called_twice")
SLOW = (
    "vmap_of_cond",
    "checkpoint_called_twice",
    "scan_of_vmap",
    "scan_of_cond",
    "nested_models",
    "masked",
)
CHOSEN = [*IN_FORMS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
LONG = ("scan", "scan_of_vmap", "scan_of_cond", "vmap_of_cond", "checkpoint_called_twice")
SEVERAL = (est.MeasureValued, est.GaussHermite)  # too many paths, or nodes to be exact


@pytest.mark.thin(5)
@pytest.mark.parametrize("law", EVERY)
@pytest.mark.parametrize("name", CHOSEN)
def test_form(name, law):
    program, expectation = case(name, law)
    here = [e for e in EVERY[law] if not (name in LONG and isinstance(e, SEVERAL))]
    means([with_estimators(program, e) for e in (*here, FORGETFUL)], expectation)


# ---- pairs

KINDS = {
    "normal": (lambda u: d.Normal(u, 0.7), lambda g, u: mean_normal(g, u, 0.7)),
    "coin": (lambda u: d.Bernoulli(logits=u), mean_coin),
}
ALL = [(law, e) for law, estimators in EVERY.items() for e in estimators]


def pair(first, second):
    """The second choice's parameter depends on the first's value; the cost couples them."""
    (law_x, of_x), (law_y, of_y) = first, second

    def program(theta):
        x = vx.sample("x", KINDS[law_x][0](theta[0]), estimator=of_x)
        y = vx.sample("y", KINDS[law_y][0](theta[1] + 0.9 * x), estimator=of_y)
        return jnp.sin(x + y) + x * y + theta[0] * y + jnp.cos(x)

    return program


def mean_of_pair(law_x, law_y):
    def mean(theta):
        def given(x):
            return KINDS[law_y][1](
                lambda y: jnp.sin(x + y) + x * y + theta[0] * y + jnp.cos(x), theta[1] + 0.9 * x
            )

        return KINDS[law_x][1](given, theta[0])

    return mean


def check_pairs(law_x, law_y, pairs):
    twin = (law_x, FORGETFUL), (law_y, FORGETFUL)
    programs = [pair(*p) for p in (*pairs, twin)]
    means(programs, mean_of_pair(law_x, law_y), theta=(0.3, -0.4))


@pytest.mark.thin(4)
@pytest.mark.parametrize("law_x", EVERY)
@pytest.mark.parametrize("law_y", EVERY)
def test_each_estimator_beside_another(law_x, law_y):
    """Each once as the first and once as the second, with changing partners."""
    firsts, seconds = EVERY[law_x], EVERY[law_y]
    n = max(len(firsts), len(seconds))
    chosen = [(firsts[i % len(firsts)], seconds[(2 * i + 1) % len(seconds)]) for i in range(n)]
    check_pairs(law_x, law_y, [((law_x, a), (law_y, b)) for a, b in chosen])


@pytest.mark.slow
@pytest.mark.parametrize("law_x, first", ALL, ids=label)
@pytest.mark.parametrize("law_y", EVERY)
def test_all_pairs(law_x, first, law_y):
    check_pairs(law_x, law_y, [((law_x, first), (law_y, second)) for second in EVERY[law_y]])


# ---- second derivatives, of those that claim them


@pytest.mark.thin(2)
@pytest.mark.parametrize("law", EVERY)
def test_second_derivatives(law):
    every = [e for e in EVERY[law] if e.order is None]
    twin = (law, FORGETFUL), (law, FORGETFUL)
    programs = [pair((law, e), (law, e)) for e in every]
    means([*programs, pair(*twin)], mean_of_pair(law, law), (0.3, -0.4), of=hessian)


def test_what_claims_the_first_derivative_alone():
    assert {type(e) for _, e in ALL if e.order == 1} == {est.MeasureValued, est.ARM, est.DisARM}


# ---- the same noise gives the same gradient as the formula by hand


def test_score_is_its_formula(x64):
    """Of a plate: each lane's score times its own cost."""
    logits = jnp.linspace(-1.0, 1.0, 5)

    def cost(z, t):
        return (z - 0.4) ** 2 * t

    def program(t):
        def lane(u):
            z = vx.sample("z", d.Bernoulli(logits=u), estimator=est.Score())
            return cost(z, t), z

        costs, z = jax.vmap(lane)(t * logits)
        return costs.sum(), z

    t = jnp.asarray(0.7)
    slope, z = vx.grad(program, has_aux=True)(jax.random.key(3), t)
    by_hand = (cost(z, t) * (z - jax.nn.sigmoid(t * logits)) * logits + (z - 0.4) ** 2).sum()
    np.testing.assert_allclose(slope, by_hand, rtol=1e-10 if x64 else 1e-5)
