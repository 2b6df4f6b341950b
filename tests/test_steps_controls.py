"""Baselines and control variates where every parameter group has a scalar of its own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import QUICKLY, check_biased, check_mean, tolerance
from step_checks import count_equations, gradient

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax.transforms import controls

KEY = jax.random.key(0)
PARAMS = {"model": 0.8, "guide": 0.3, "baseline": 0.4}


def surrogate(p):
    """c of RELAX, with a parameter."""
    return jax.tree_util.Partial(lambda w, z: w * z**2 - z, p["baseline"])


ESTIMATORS = {
    "number": lambda p: est.Score(0.7),
    "learned": lambda p: est.Score(est.Learned(p["baseline"])),
    "learned downhill": lambda p: est.Score(est.Learned(p["baseline"] ** 2, maximize=False)),
    "relax": lambda p: est.RELAX(surrogate(p), 0.7),
    "leave one out": lambda p: est.Score(est.LeaveOneOut(3)),
}


def scalars(p, coins, n):
    """Of two lanes and a third coin whose odds depend on them; n alone depends on nothing else."""
    one = lambda i, b: jnp.sin(p["model"] + i) * b  # noqa: E731
    lanes = jnp.stack([one(i, b) for i, b in enumerate(coins[:2])])
    return {
        "model": (lanes.sum() - 0.5 * coins[2] + p["model"]) ** 2 + 0.1 * n,
        "guide": lanes.sum() * p["guide"] + coins[2] * p["model"] + n * p["guide"],
        "baseline": n * p["model"] + coins[0] * coins[1] * p["baseline"],
    }


def odds(p, coins):
    return p["guide"] + jnp.array([0.0, 0.5]), p["guide"] * (coins[0] - coins[1]) - 0.2, -p["guide"]


def program(p, make):
    def lane(i):
        logit = p["guide"] + 0.5 * i
        return vx.sample("b", d.Bernoulli(logits=logit), estimator=make(p))

    b = jax.vmap(lane)(jnp.arange(2))
    c = vx.sample("c", d.Bernoulli(logits=odds(p, b)[1]), estimator=make(p))
    n = vx.sample("n", d.Bernoulli(logits=odds(p, b)[2]), estimator=make(p))
    return scalars(p, jnp.append(b, c), n)


def exact(p):
    """Each group's expectation by enumeration, and the derivatives of each in its own group."""

    def expectations(p):
        total = dict.fromkeys(p, 0.0)
        for bits in itertools.product((0.0, 1.0), repeat=4):
            x = jnp.array(bits)
            first, c, n = odds(p, x)
            logits = jnp.concatenate([first, c[None], jnp.reshape(n, 1)])
            weight = jnp.exp(d.Bernoulli(logits=logits).log_prob(x).sum())
            for group, value in scalars(p, x[:3], x[3]).items():
                total[group] += weight * value
        return total

    with jax.enable_x64(True):
        p = {g: jnp.asarray(x, float) for g, x in p.items()}
        values = expectations(p)
        slopes = jax.jacrev(expectations)(p)
        found = [values[g] for g in p] + [slopes[g][g] for g in p]
    return np.array(found)


def draws(name):
    """Values and gradients, [draws, 6]; the sum's gradient in their place."""

    def one(key):
        f = lambda p: program(p, ESTIMATORS[name])  # noqa: E731
        values, grads = gradient(f, PARAMS, key=key)
        summed = vx.grad(lambda p: sum(f(p).values()))(key, PARAMS)
        values = [values[g] for g in PARAMS]
        return [jnp.stack(values + [tree[g] for g in PARAMS]) for tree in (grads, summed)]

    run = jax.jit(jax.vmap(one), compiler_options=QUICKLY)
    return [np.asarray(x) for x in run(jax.random.split(KEY, 40_000))]


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_gradient_of_each_group_is_unbiased(name):
    """Against enumeration. A baseline's own parameter learns besides, so it is left out."""
    found, twin = draws(name)
    right = exact(PARAMS)
    if "learned" in name:
        found, twin, right = found[:, :5], twin[:, :5], right[:5]
    check_mean(found, right)
    check_biased(twin, right)


def estimates(name, f=program, n=20):
    def both(key):
        run = lambda p: f(p, ESTIMATORS[name])  # noqa: E731
        alone = {g: vx.value_and_grad(lambda p, g=g: run(p)[g])(key, p) for g in p}
        return gradient(run, p, key=key), {g: (v, grads[g]) for g, (v, grads) in alone.items()}

    p = {g: jnp.asarray(x, float) for g, x in PARAMS.items()}
    run = jax.jit(jax.vmap(both), compiler_options=QUICKLY)
    (values, grads), alone = run(jax.random.split(KEY, n))
    return [values, grads], [{g: alone[g][i] for g in p} for i in range(2)]


def in_a_scan(p, make):
    """Choices of steps, each with a baseline, and one that no scalar depends on but the guide's."""

    def step(z, _):
        b = vx.sample("b", d.Bernoulli(logits=p["guide"] - z), estimator=make(p))
        return 0.5 * z + b, b * jnp.cos(z)

    last, costs = jax.lax.scan(step, 0.0, jnp.arange(3))
    n = vx.sample("n", d.Bernoulli(logits=p["guide"]), estimator=make(p))
    return {
        "model": costs.sum() * p["model"],
        "guide": last * p["guide"] + n,
        "baseline": costs[0] + p["baseline"] * last**2,
    }


LOOPS = [n for n in ESTIMATORS if n != "relax"]  # which would have several values in a loop
CASES = [(n, program) for n in ESTIMATORS] + [(n, in_a_scan) for n in LOOPS]


@pytest.mark.thin(3)
@pytest.mark.slow_in_float64
@pytest.mark.parametrize(("name", "f"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_an_estimate_is_that_of_the_scalar_alone(name, f, x64):
    """With the same key, to rounding: also what trains baselines."""
    found, alone = estimates(name, f)
    tol = 100 * tolerance(found[0]["model"].dtype)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


def test_a_baseline_learns_the_share_of_its_own_group(monkeypatch):
    """A twin that compares it with another output's share is found."""
    own = controls._signals

    def of_the_model(fan, trained):
        found = own(fan, trained)
        model = found[max(found)]  # the last of several, the only one of one
        return {i: {n: model[n] for n in signals} for i, signals in found.items()}

    monkeypatch.setattr(controls, "_signals", of_the_model)
    found, alone = estimates("learned", without_n)
    assert np.abs(found[1]["baseline"] - alone[1]["baseline"]).max() > 0.1
    for group in ("model", "guide"):  # what the error trains leaks into no other parameter
        np.testing.assert_allclose(found[1][group], alone[1][group], rtol=1e-3, atol=1e-4)


def without_n(p, make):
    """A coin behind every scalar."""
    b = vx.sample("b", d.Bernoulli(logits=p["guide"]), estimator=make(p))
    return {"model": 3 * b * p["model"], "guide": b * p["guide"], "baseline": b - p["baseline"]}


def test_a_control_changes_no_value():
    """It is a zero with a derivative, beside the objective and beside what else is returned."""

    def f(p):
        found = program(p, ESTIMATORS["relax"])
        return found["model"], found

    run = jax.jit(jax.vmap(lambda key: vx.expect(f)(key, PARAMS)), compiler_options=QUICKLY)
    value, aux = run(jax.random.split(KEY, 200))
    coins = list(itertools.product((0.0, 1.0), repeat=4))
    for group, found in aux.items():
        possible = np.array([scalars(PARAMS, np.array(x[:3]), x[3])[group] for x in coins])
        assert np.abs(np.asarray(found)[:, None] - possible).min(1).max() < 1e-5
    np.testing.assert_allclose(value, aux["model"], rtol=1e-6)


def test_an_output_of_several_numbers_has_no_control():
    """And the first one is refused."""

    def f(p):
        found = program(p, ESTIMATORS["learned"])
        return jnp.stack([found["model"], found["guide"]])

    with pytest.raises(vx.errors.ObjectiveError, match="needs an objective that is one number"):
        vx.expect(f)(KEY, PARAMS)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_groups_share_one_evaluation(name):
    """The program draws as often as for the scalar that needs all of it."""

    def evaluated(f):
        return count_equations(jax.make_jaxpr(lambda: gradient(f, PARAMS))().jaxpr, "random_bits")

    every = evaluated(lambda p: program(p, ESTIMATORS[name]))
    alone = evaluated(lambda p: program(p, ESTIMATORS[name])["guide"])
    assert every == alone > 0
