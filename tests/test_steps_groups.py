"""Gradient steps whose parameter groups follow scalars of their own."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradient_checks import check_biased, check_mean, mean_normal, tolerance
from jax.scipy.stats import norm
from step_checks import KEY, count_equations, fit, gradient, guide, line

import varax as vx
from varax import dist as d
from varax import errors
from varax import estimators as est

# ---- one scalar for each parameter group


def products(p):
    return {"a": p["a"] * p["b"] ** 2, "b": p["a"] ** 2 * p["b"]}


def test_each_group_follows_its_own_scalar():
    """d(a b^2)/da = b^2 and d(a^2 b)/db = a^2; the sum's derivatives are others."""
    params = {"a": jnp.array(3.0), "b": jnp.array(2.0)}
    metrics, grads = gradient(products, params)
    assert metrics == {"a": 12.0, "b": 18.0} and grads == {"a": 4.0, "b": 9.0}
    summed = jax.grad(lambda p: sum(products(p).values()))(params)
    assert summed["a"] != grads["a"] and summed["b"] != grads["b"]
    result = fit(products, params, optax.sgd(0.5), 1, maximize=False)
    assert result.params == {"a": 1.0, "b": -2.5}


class Nets(eqx.Module):
    one: jax.Array
    two: tuple[jax.Array, jax.Array]
    name: str


def test_groups_are_attributes_indices_and_nested_parts():
    x, y, z = jnp.array(2.0), jnp.array([1.0, 3.0]), jnp.array(5.0)

    def f(p):
        return {"one": p.one * p.two[1], "two": (p.one * (p.two[0] ** 2).sum(), p.one * p.two[1])}

    metrics, grads = gradient(f, Nets(x, (y, z), "nets"))
    assert metrics == {"one": 10.0, "two/0": 20.0, "two/1": 10.0}
    assert grads.one == 5.0 and grads.two[1] == 2.0 and grads.name is None
    np.testing.assert_array_equal(grads.two[0], [4.0, 12.0])
    metrics, grads = gradient(lambda p: (p[0] * p[1], p[0] + p[1] ** 2), (x, z))
    assert metrics == {"0": 10.0, "1": 27.0} and grads == (5.0, 10.0)


def test_a_group_alone_is_trained_and_the_rest_is_constant():
    params = {"a": jnp.array(3.0), "b": {"c": jnp.array(2.0), "d": 4.0}}

    def f(p):
        return p["a"] ** 2 * p["b"]["c"] ** 2 * p["b"]["d"]

    _, grads = gradient(f, params, groups="b/c")
    assert grads == {"a": None, "b": {"c": 144.0, "d": None}}
    step = vx.GradientStep(f, optax.adam(0.1), groups=("b",))
    state = step.init(KEY, params)
    moments = state.memory["optimizer"][0].mu
    assert jax.tree.structure(moments) == jax.tree.structure({"a": None, "b": {"c": 0, "d": 0}})
    result = fit(step, params, steps=3)
    assert result.params["a"] == 3.0 and result.params["b"]["d"] > 4.2


def test_a_constant_scalar_trains_nothing():
    _, grads = gradient(lambda p: {"a": 0, "b": p["b"] * p["a"]}, {"a": 3.0, "b": 2.0})
    assert grads == {"a": 0.0, "b": 3.0}


def test_another_groups_infinite_derivative_does_not_reach_this_group():
    """The derivative of `b`'s scalar in a is infinite, and nobody follows it."""

    def f(p):
        return {"a": p["a"] ** 2, "b": p["b"] + jnp.sqrt(p["a"] - 1.0)}

    _, grads = gradient(f, {"a": jnp.array(1.0), "b": jnp.array(0.0)})
    assert grads == {"a": 2.0, "b": 1.0}


def expected_and_elbo(params, estimator=None):
    """The model follows E_q log p(x, z), the guide the ELBO."""
    q = guide(params["guide"], estimator).simulate()
    log_p = line(params["model"]).log_density(q.choices | {"x": 1.3})
    return {"model": log_p, "guide": log_p - q.log_density}


LINE = {"model": 0.8, "guide": {"m": 0.4, "s": -0.5}}


@pytest.mark.parametrize("estimator", [None, est.Score(est.LeaveOneOut(2))], ids=str)
def test_group_gradients_are_unbiased(estimator):
    """Against jax.grad of quadrature; following the sum of the scalars must fail."""

    def exact(params, entropy):
        m, s = params["guide"]["m"], jnp.exp(params["guide"]["s"])
        w = params["model"]
        log_p = mean_normal(lambda z: norm.logpdf(z) + norm.logpdf(1.3, w * z, 0.7), m, s)
        return log_p + entropy * (jnp.log(s) + 0.5 * jnp.log(2 * jnp.pi * jnp.e))

    with jax.enable_x64(True):
        model = jax.grad(exact)(LINE, 0.0)["model"]
        right = {"model": model, "guide": jax.grad(exact)(LINE, 1.0)["guide"]}
        right = np.array(jax.tree.leaves(right))

    def one(key):
        both = functools.partial(expected_and_elbo, estimator=estimator)
        summed = vx.grad(lambda p: sum(both(p).values()))(key, LINE)
        grads = gradient(both, LINE, key=key)[1]
        return [jnp.stack(jax.tree.leaves(tree)) for tree in (grads, summed)]

    draws, twin = jax.jit(jax.vmap(one))(jax.random.split(KEY, 20_000))
    check_mean(np.asarray(draws), right)
    check_biased(np.asarray(twin), right)


def coin_and_count(p, coin, count):
    b = vx.sample("b", d.Bernoulli(logits=p["guide"]), estimator=coin)
    n = vx.sample("n", d.Poisson(jnp.exp(p["rate"])), estimator=count)
    return {
        "model": p["model"] * (b - 0.3) ** 2 + 0.1 * n,
        "guide": jnp.sin(p["model"]) * b + p["baseline"] * 0.0,
        "rate": (0.2 * n - p["model"]) ** 2,
        "baseline": b * p["model"] + n,
    }


@pytest.mark.parametrize("controls", [False, True], ids=["one evaluation", "controls"])
def test_a_groups_estimate_is_that_of_its_scalar_alone(x64, controls):
    """With the same key; baselines too are those of each scalar, and learn in their own group."""
    p = {"model": 0.8, "guide": 0.3, "rate": 0.1, "baseline": 0.5}

    def f(p):
        learned = est.Score(est.Learned(p["baseline"])) if controls else est.Score()
        return coin_and_count(p, est.REBAR(0.5), learned)

    def both(key):
        alone = {g: vx.value_and_grad(lambda p, g=g: f(p)[g])(key, p) for g in p}
        return gradient(f, p, key=key), {g: (v, grads[g]) for g, (v, grads) in alone.items()}

    (values, grads), alone = jax.jit(jax.vmap(both))(jax.random.split(KEY, 20))
    tol = tolerance(values["model"].dtype)
    for group in p:
        np.testing.assert_allclose(values[group], alone[group][0], rtol=tol, atol=tol)
        np.testing.assert_allclose(grads[group], alone[group][1], rtol=10 * tol, atol=10 * tol)
    assert (np.abs(grads["baseline"]).mean() > 0.1) == controls


def test_groups_share_one_evaluation():
    """The program draws as often as for one scalar."""

    def evaluated(f):
        return count_equations(jax.make_jaxpr(f)().jaxpr, "random_bits")

    def each(group):
        return gradient(lambda p: expected_and_elbo(p)[group], LINE)

    one = evaluated(lambda: each("guide"))
    assert one > 0 and evaluated(lambda: gradient(expected_and_elbo, LINE)) == one
    assert evaluated(lambda: (each("guide"), each("model"))) == 2 * one


def test_history_progress_and_plot_have_one_column_for_each_group(capsys):
    import matplotlib

    matplotlib.use("Agg")
    result = vx.fit(expected_and_elbo, LINE, optax.adam(0.02), 50, KEY)
    assert result.history.keys() == {"model", "guide"} and result.steps == 50
    assert {x.shape for x in result.history.values()} == {(50,)}
    shown = capsys.readouterr().err
    assert "guide -" in shown and "model -" in shown and "step/s" in shown
    assert repr(result).startswith("FitResult(steps=50, guide=-") and len(result.plot().lines) == 4
    np.testing.assert_array_equal(result.params["model"], result.state.params["model"])


def test_groups_that_do_not_fit_are_refused():
    p = {"a": 1.0, "b": {"c": 2.0, "d": 3.0}}
    with pytest.raises(errors.GroupError, match=r"(?s)share out the params {a, b}.*no group for a"):
        gradient(lambda p: {"b": p["a"]}, p)
    with pytest.raises(errors.GroupError, match=r"(?s){a, b/c}: no group for b/d.*_groups.py:"):
        gradient(lambda p: {"a": p["a"], "b": {"c": p["a"]}}, p)
    with pytest.raises(errors.GroupError, match="no such part of the params: z"):
        gradient(lambda p: {"a": p["a"], "b": p["a"], "z": p["a"]}, p)
    with pytest.raises(errors.GroupError, match=r"no such part of the params: b/e"):
        gradient(lambda p: p["a"], p, groups=("a", "b/e"))
    for groups in ((), "name"):
        with pytest.raises(errors.GroupError, match="no floating-point array in them"):
            gradient(lambda p: p["a"], p | {"name": "p"}, groups=groups)
    with pytest.raises(errors.GroupError, match="no such part of the params: 0, 1"):
        fit(lambda p: (p["a"], p["a"]), p, optax.sgd(0.1), 2)
    with pytest.raises(errors.GroupError, match=r"share out the params {the params as a whole}"):
        gradient(lambda p: {"a": p}, 1.0)
    with pytest.raises(errors.ShapeError, match=r"(?s)one for each parameter group.*\(2,\)"):
        gradient(lambda p: {"a": p["a"] * jnp.ones(2), "b": p["a"]}, p)


def test_groups_through_a_while_loop_are_refused_as_a_scalar_is():
    def f(p):
        doubled = jax.lax.while_loop(lambda x: x < 9.0, lambda x: x * p["b"], p["a"])
        return {"a": doubled, "b": p["b"]}

    with pytest.raises(errors.DifferentiationError, match=r"(?s)while_loop.*jax.lax.scan"):
        gradient(f, {"a": 1.0, "b": 2.0})


def test_a_group_that_is_not_finite_is_named():
    def f(p):
        return {"a": p["a"] + 0.0 * p["b"], "b": vx.sample("z", d.Normal(p["a"], jnp.sqrt(p["b"])))}

    with pytest.raises(errors.NonFiniteError, match=r"(?s)At step 0 `b` is.*address:  z") as caught:
        fit(f, {"a": 0.0, "b": -1.0}, optax.sgd(0.1), 5)
    assert caught.value.step == 0 and caught.value.params == {"a": 0.0, "b": -1.0}


# ---- the number of the step


def test_an_objective_may_take_the_number_of_the_step():
    def annealed(p, batch, *, step):
        return jnp.minimum(1.0, step / 10.0) * batch.sum() + 0.0 * p

    result = fit(annealed, 0.0, optax.sgd(0.1), 20, data=np.ones(3))
    np.testing.assert_allclose(result.history, 3 * np.minimum(1, np.arange(20) / 10), rtol=1e-6)
    fixed = functools.partial(lambda p, step: step + 0.0 * p, step=7.0)
    np.testing.assert_array_equal(fit(fixed, 0.0, optax.sgd(0.1), 3).history, 7.0)
