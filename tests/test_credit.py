"""Credit assignment: a choice answers for the terms that depend on it, lane by lane, step by step.

Which terms are found is in `test_credit_terms`, the formula by hand in `test_credit_formulas`. Here
and in `test_credit_plates`: are estimates unbiased in programs that try to mislead the analysis,
where an estimator without scores fails, and an analysis that takes every axis for kept?
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from credit_programs import (
    PROGRAMS,
    THETA,
    U,
    X,
    alone,
    array,
    check_program,
    coin,
    costs_of,
    drawing,
    exactly,
    kept_axes,
    plate_of,
)
from gradient_checks import (
    FirstOrder,
    Frozen,
    FrozenWeights,
    NoScore,
    check,
    check_biased,
    check_exact,
    check_mean,
    estimates,
    hessian,
    mean_coin,
    mean_normal,
    tolerance,
)
from jax import lax

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax.transforms import dependence


@pytest.mark.thin(5)
@pytest.mark.parametrize("name", PROGRAMS)
def test_scores(name):
    right = alone(est.Score(), est.Score(est.LeaveOneOut()), est.Score(0.7))
    check_program(name, right, alone(NoScore()))


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", ["plates_nested", "early_and_late", "plate_in_a_scan"])
def test_more_baselines(name):
    right = alone(est.Score(est.LeaveOneOut(3)), est.Score(est.Learned(0.3)))
    check_program(name, right, alone(NoScore(est.LeaveOneOut(3))))


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", PROGRAMS)
def test_enumeration_is_exact(name):
    exact, function = exactly(PROGRAMS[name]), PROGRAMS[name]
    programs = [lambda t, e=e: function(drawing(e), t) for e in (est.Enumerate(), FrozenWeights())]
    draws, twin = estimates(programs, THETA, draws=2)
    check_exact(draws, exact)
    check_biased(twin, exact)


SEVERAL = {  # the addresses that are enumerated
    "plates_nested": "zx",
    "parameters_of_other_lanes": "zy",
    "product_of_plates": "zy",
    "selected_lane": "za",
    "later_choices_are_shared": "za",
    "results_of_one_call": "zy",
    "constants_beside_terms": "a",
    "fills_beside_terms": "a",
    "plate_in_a_checkpoint": "zy",
}
PAIRS = [(name, address) for name, addresses in SEVERAL.items() for address in addresses]


@pytest.mark.thin(6)
@pytest.mark.parametrize("name, address", PAIRS)
def test_enumeration_beside_scores(name, address):
    scores = [est.Score(), est.Score(est.LeaveOneOut()), est.Score(0.7)]
    exact = {address: est.Enumerate()}
    check_program(name, [(e, exact) for e in scores], [(NoScore(), exact)])


@pytest.mark.parametrize(
    "name", ["parameters_of_other_lanes", "plate_in_a_scan", "carry_that_mixes"]
)
def test_a_blind_analysis_is_biased(name, monkeypatch):
    monkeypatch.setattr(dependence, "axis_map", kept_axes)
    check_program(name, [], alone(est.Score()))


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "name", ["plates_nested", "chain_with_costs", "product_of_plates", "plate_in_a_scan"]
)
def test_second_derivatives(name):
    right = alone(est.Score(), est.Score(est.LeaveOneOut()))
    check_program(name, right, alone(FirstOrder()), hessian)


# ---- unbiased: with pathwise choices before and between


def shared_noise(t, score, path):
    """A pathwise choice that all lanes' parameters and costs depend on."""
    r = vx.sample("r", d.Normal(t[0], 0.7), estimator=path)
    z = jax.vmap(lambda u: coin("z", t[1] * u + r, score))(array(t, X))
    return (z * (r + array(t, X))).sum() + z.sum() ** 2 * t[0]


def mean_of_shared_noise(t):
    def given(r):
        p = jax.nn.sigmoid(t[1] * array(t, X) + r)
        return p @ (r + array(t, X)) + ((p * (1 - p)).sum() + p.sum() ** 2) * t[0]

    return mean_normal(given, t[0], 0.7)


def noise_between(t, score, path):
    """In each lane a coin, a pathwise choice that depends on it, and a coin of both."""

    def lane(u):
        z = coin("z", t[0] * u, score)
        r = vx.sample("r", d.Normal(t[1] * z + t[0], 0.7), estimator=path)
        return coin("y", r + z, score) * r * u + jnp.sin(z + r)

    return jax.vmap(lane)(array(t, X)).sum()


def mean_of_noise_between(t):
    def lane(u):
        def given(z):
            return mean_normal(
                lambda r: jax.nn.sigmoid(r + z) * r * u + jnp.sin(z + r), t[1] * z + t[0], 0.7
            )

        return mean_coin(given, t[0] * u)

    return sum(lane(u) for u in X)


MIXED = [(shared_noise, mean_of_shared_noise), (noise_between, mean_of_noise_between)]


@pytest.mark.parametrize("program, mean", MIXED)
def test_pathwise_and_score(program, mean):
    path, score = est.Reparam(), est.Score()
    for right in (score, est.Score(est.LeaveOneOut()), est.Score(0.7), est.Enumerate()):
        check(program, mean, THETA, (right, path), *((NoScore(), path),) * (right == score))
    check(program, mean, THETA, (score, path), (score, Frozen()))


# ---- enumeration of what is apart


@pytest.mark.slow_in_float64
def test_enumeration_of_many_lanes(x64):
    """K values, not K^n: two choices in each of 300 lanes, and their exact mean."""
    u = np.linspace(-1, 1, 300)

    def program(t):
        def lane(u):
            z = coin("z", t * u, est.Enumerate())
            y = vx.sample(
                "y", d.Categorical(logits=array(t, U) * (z + u)), estimator=est.Enumerate()
            )
            return jnp.sin(z + y) * u

        return jax.vmap(lane)(array(t, u)).sum()

    def mean(t):
        def lane(u):
            p = jax.nn.sigmoid(t * u)
            q = [jax.nn.softmax(U * (z + u)) @ jnp.sin(z + np.arange(4)) for z in (0, 1)]
            return ((1 - p) * q[0] + p * q[1]) * u

        return jax.vmap(lane)(u).sum()

    t = jnp.array(0.7)
    found = vx.value_and_grad(program)(jax.random.key(0), t)
    tol = 10 * tolerance(found[0].dtype)  # sums of 300
    np.testing.assert_allclose(found, jax.value_and_grad(mean)(t), rtol=tol, atol=tol)


def test_enumeration_of_rows(x64):
    """[50, 3] coins of which the three of a row are coupled: 2^3 values."""
    u = np.random.default_rng(0).normal(size=(50, 3))

    def program(t):
        z = coin("z", t * array(t, u), est.Enumerate())
        return jnp.sin(z.sum(1)).sum()

    def mean(t):
        def row(u):
            every = np.array(list(itertools.product([0, 1], repeat=3)))
            p = jax.nn.sigmoid(t * u)
            return jnp.prod(jnp.where(every, p, 1 - p), 1) @ jnp.sin(every.sum(1))

        return jax.vmap(row)(u).sum()

    t = jnp.array(0.7)
    found = vx.value_and_grad(program)(jax.random.key(0), t)
    tol = 10 * tolerance(found[0].dtype)
    np.testing.assert_allclose(found, jax.value_and_grad(mean)(t), rtol=tol, atol=tol)


# ---- outputs beside the objective


def with_draws(t, estimator):
    z = jax.vmap(lambda u: vx.sample("z", d.Bernoulli(logits=t * u), estimator=estimator))(
        array(t, X)
    )
    return (jnp.sin(z * array(t, X)) + z * t).sum(), (z, z > 0, 1.0 * z, 3, 0.5)


def test_outputs_beside_the_objective():
    """Integers and booleans come as drawn, with the value that belongs to them."""
    t = jnp.array(0.7)
    run = vx.value_and_grad(lambda t: with_draws(t, est.Score()), has_aux=True)
    (value, (z, positive, floats, three, half)), _ = run(jax.random.key(1), t)
    z = np.asarray(z)
    np.testing.assert_allclose(value, (np.sin(z * X) + z * 0.7).sum(), rtol=1e-6)
    assert z.dtype == np.int32 and positive.dtype == jnp.bool_ and (three, half) == (3, 0.5)
    assert (positive == (z > 0)).all() and (floats == z).all()


@pytest.mark.parametrize("estimator", [est.Enumerate(), est.Score(est.LeaveOneOut())], ids=str)
def test_outputs_of_several_runs_are_averaged(estimator):
    t = jnp.array(0.7)
    run = vx.value_and_grad(lambda t: with_draws(t, estimator), has_aux=True)
    (_, (z, positive, floats, three, half)), _ = run(jax.random.key(1), t)
    np.testing.assert_allclose(z, floats, rtol=1e-6)
    np.testing.assert_allclose(positive, floats, rtol=1e-6)
    assert (three, half) == (3, 0.5)
    if isinstance(estimator, est.Enumerate):
        np.testing.assert_allclose(z, 1 / (1 + np.exp(-0.7 * X)), rtol=1e-6)


def test_derivatives_of_an_output_beside_the_objective():
    """A vector of outputs, each with the derivative of its own mean."""

    def program(t, estimator):
        return costs_of(plate_of(drawing(estimator), t), t)

    def jacobian(program, key, theta):
        return jax.jacobian(lambda t: vx.expect(program)(key, t))(theta)

    with jax.enable_x64(True):
        t = jnp.array(THETA)

        def mean(t):
            x = array(t, X)
            p = jax.nn.sigmoid(t[0] * x)
            return p * (jnp.sin(2 + t[1]) * x + 3 * t[0]) + (1 - p) * jnp.sin(t[1]) * x

        exact = np.asarray(jax.jacobian(mean)(t))
    estimators = [est.Score(), est.Score(est.LeaveOneOut()), est.Enumerate(), NoScore()]
    programs = [lambda t, e=e: program(t, e) for e in estimators]
    *found, twin = estimates(programs, THETA, jacobian)
    for draws in found:
        check_mean(draws, exact)
    check_biased(twin, exact)


def test_effects_happen_once():
    """What prints, prints, though nothing depends on it."""
    seen = []

    def program(t):
        z = coin("z", t)
        jax.debug.callback(lambda z: seen.append(float(z)), z)
        return z * 2

    value = vx.expect(program)(jax.random.key(0), 0.3)
    jax.effects_barrier()
    assert seen == [value / 2]


def test_a_recorded_value_has_every_lane():
    def program(t):
        recorded = jax.vmap(lambda _: vx.deterministic("c", 3 * t))(jnp.arange(3))
        return recorded.sum() + coin("z", t)

    assert vx.expect(program)(jax.random.key(0), 0.0) in (0.0, 1.0)


# ---- regions with several outcomes, after choices that are apart


@pytest.mark.parametrize("region", ["checkpoint", "cond"])
def test_a_region_with_several_outcomes_in_a_lane(region):
    def inside(f, z):
        if region == "checkpoint":
            return jax.checkpoint(f)(z)
        return lax.cond(jnp.sin(1.0) > 0, f, lambda z: z, z)

    def program(t):
        def lane(u):
            z = coin("z", t * u, est.Enumerate())
            y = inside(lambda z: coin("y", t + z, est.Enumerate()), z)
            return jnp.sin(y + z) * u

        return jax.vmap(lane)(array(t, X)).sum()

    def mean(t):
        def given(z):
            return lambda u: mean_coin(lambda y: jnp.sin(y + z) * u, t + z)

        return sum(mean_coin(lambda z, u=u: given(z)(u), t * u) for u in X)

    t = jnp.array(0.7)
    found = vx.value_and_grad(program)(jax.random.key(0), t)
    np.testing.assert_allclose(found, jax.value_and_grad(mean)(t), rtol=1e-5)


# ---- defaults


def test_defaults_of_a_count_and_a_coin():
    """By default a count is compared with another run, and a coin that follows is enumerated."""

    def program(t, estimator):
        n = vx.sample("n", d.Poisson(jnp.exp(t[0])), estimator=estimator)
        z = vx.sample("z", d.Bernoulli(logits=n - t[1]))
        return jnp.sin(n + 2.0 * z) + z * t[1]

    def mean(t):
        n = jnp.arange(40.0)
        log_p = n * t[0] - jnp.exp(t[0]) - jax.scipy.special.gammaln(n + 1)
        each = jax.vmap(lambda n: mean_coin(lambda z: jnp.sin(n + 2 * z) + z * t[1], n - t[1]))(n)
        return jnp.exp(log_p) @ each

    check(program, mean, THETA, (None,), (NoScore(),))


def test_a_mutable_array():
    """Refused, or followed; not ignored."""

    def program(t):
        z = coin("z", t)
        cell = jax.new_ref(jnp.zeros(()))
        cell[...] = 2 * z
        return cell[...], z

    try:
        value, z = vx.expect(program)(jax.random.key(1), 9.0)
    except vx.errors.VaraxError:
        return
    assert value == 2 * z == 2
