"""Inference steps: groups follow their own scalars, schedules take turns, any algorithm fits."""

import functools
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradient_checks import check_biased, check_mean, mean_normal, tolerance
from jax.scipy.stats import norm

import varax as vx
from varax import dist as d
from varax import errors, strategies
from varax import estimators as est
from varax import objectives as ob

KEY = jax.random.key(0)
fit = functools.partial(vx.fit, key=KEY, progress=False)


def gradient(objective, params, batch=None, key=KEY, **settings):
    """Metrics and gradient of one gradient step."""
    step = vx.GradientStep(objective, optax.sgd(1.0), **settings)
    return step.gradient(key, step.init(key, params), batch)


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


@vx.model
def line(w):
    z = vx.sample("z", d.Normal(0.0, 1.0))
    vx.sample("x", d.Normal(w * z, 0.7))


@vx.model
def guide(phi, estimator=None):
    vx.sample("z", d.Normal(phi["m"], jnp.exp(phi["s"])), estimator=estimator)


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


def count_equations(jaxpr, name):
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr)]
    own = sum(eqn.primitive.name == name for eqn in jaxpr.eqns)
    return own + sum(count_equations(getattr(x, "jaxpr", x), name) for x in inner if is_jaxpr(x))


def is_jaxpr(x):
    return hasattr(x, "eqns")


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
    with pytest.raises(errors.GroupError, match=r"(?s){a, b/c}: no group for b/d.*test_steps.py:"):
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


# ---- schedules


class Write:
    """A step that writes its mark where the params say the next one goes."""

    def __init__(self, mark):
        self.mark = mark

    def init(self, key, params):
        return vx.InferenceState(params, {"taken": 0})

    def step(self, key, state, batch):
        marks, at = state.params
        taken = state.memory["taken"]
        params = (marks.at[at].set(self.mark), at + 1)
        return vx.InferenceState(params, {"taken": taken + 1}), {"objective": taken}


def written(step, steps):
    result = fit(step, (jnp.zeros(steps), jnp.asarray(0)), steps=steps)
    return "".join("abc"[int(x)] for x in result.params[0]), result


A, B, C = Write(0), Write(1), Write(2)


def test_parts_take_turns_and_phases_follow_each_other():
    marks, result = written(vx.schedule({"a": (A, 1), "b": (B, 2)}), 8)
    assert marks == "abbabbab"
    np.testing.assert_array_equal(
        result.history["a"], [0, *[np.nan] * 2, 1, *[np.nan] * 2, 2, np.nan]
    )
    assert result.history["b"][[1, 2, 4, 5, 7]].tolist() == [0, 1, 2, 3, 4]
    assert "a=1, b=2" in repr(result)
    assert written(vx.schedule({"b": (B, 3), "a": (A, None)}), 7)[0] == "bbbaaaa"
    inner = vx.schedule({"a": (A, 1), "b": (B, 1)})
    marks, result = written(vx.schedule({"first": (inner, 5), "c": (C, None)}), 8)
    assert marks == "ababaccc" and result.history.keys() == {"first/a", "first/b", "c"}
    cycle = vx.schedule({"ab": (inner, 3), "c": (C, 1)})
    assert written(cycle, 9)[0] == "abacbabca"  # a part goes on where it was


def test_a_group_and_its_optimizer_rest_while_another_trains():
    one = vx.GradientStep(lambda p: -(p["a"] ** 2), optax.adam(0.1), groups="a")
    two = vx.GradientStep(lambda p: -(p["b"] ** 2), optax.adam(0.1), groups="b")
    step = vx.schedule({"one": (one, 3), "two": (two, 2)})
    params = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    states = [step.init(KEY, params)]
    take = jax.jit(step.step)
    for _ in range(6):
        states.append(take(KEY, states[-1], None)[0])

    def same(i, j, part):
        mine = [[s.params[part[1]], *jax.tree.leaves(step.part(s, part[0]).memory)] for s in states]
        return all((x == y).all() for x, y in zip(mine[i], mine[j], strict=True))

    one, two = ("one", "a"), ("two", "b")
    assert same(0, 3, two) and same(3, 5, one) and same(5, 6, two)
    assert not (same(0, 1, one) or same(3, 4, two) or same(5, 6, one))
    assert step.part(states[6], "one").memory["steps"] == 4


def test_a_schedule_is_the_loop_written_by_hand(x64):
    """Phases with their own objective and optimizer, batches from the same permutation."""
    data = np.linspace(-1.0, 2.0, 12)

    def first(p, batch):
        z = vx.sample("z", d.Normal(p["m"], 1.0))
        return -((batch - z) ** 2).mean()

    def second(p, batch):
        return -((batch - p["m"]) ** 2).mean() - p["s"] ** 2

    steps = {"first": (vx.GradientStep(first, optax.sgd(0.1), groups="m"), 4)}
    steps["second"] = (vx.GradientStep(second, optax.adam(0.05)), None)
    params = {"m": 0.5, "s": 1.0}
    result = fit(vx.schedule(steps), params, steps=9, data=data, batch_size=3)

    batches = fit(Batch(), (jnp.zeros((9, 3)), jnp.asarray(0)), steps=9, data=data, batch_size=3)
    updates = jax.random.fold_in(KEY, 0)
    optimizers = [optax.sgd(0.1), optax.adam(0.05)]
    memories = [optimizers[0].init({"m": params["m"]}), optimizers[1].init(params)]
    for i, batch in enumerate(batches.params[0]):
        f, part = (first, 0) if i < 4 else (second, 1)
        _, grads = vx.value_and_grad(f)(jax.random.fold_in(updates, i), params, batch)
        grads = {k: -g for k, g in grads.items() if part or k == "m"}
        trained = {k: params[k] for k in grads}
        change, memories[part] = optimizers[part].update(grads, memories[part], trained)
        params = params | optax.apply_updates(trained, change)
    for name, x in params.items():
        np.testing.assert_allclose(result.params[name], x, rtol=1e-10 if x64 else 1e-5)


class Batch:
    """A step that keeps the batches it is given."""

    def init(self, key, params):
        return vx.InferenceState(params)

    def step(self, key, state, batch):
        rows, at = state.params
        return vx.InferenceState((rows.at[at].set(batch), at + 1)), {"objective": batch.sum()}


def test_one_compilation_serves_a_schedule():
    traced = []

    def objective(name):
        def f(p):
            traced.append(name)
            return -((p[name] - vx.sample("z", d.Normal(0.0, 1.0))) ** 2)

        return vx.GradientStep(f, optax.adam(0.01), groups=name)

    inner = vx.schedule({"a": (objective("a"), 2), "b": (objective("b"), 3)})
    step = vx.schedule({"inner": (inner, 100), "c": (objective("c"), None)})
    fit(step, dict.fromkeys("abc", 1.0), steps=700)
    assert sorted(traced) == ["a", "a", "b", "b", "c", "c"]  # for its shape, for its gradient


# wake-sleep on a model that can be enumerated: z, and two bits given z


@vx.model
def bits(p):
    z = vx.sample("z", d.Bernoulli(logits=p["prior"]))
    vx.sample("x", d.Bernoulli(logits=jnp.where(z == 1, p["one"], p["zero"])))


@vx.model
def table(q, x):
    vx.sample("z", d.Bernoulli(logits=q[2 * x[0] + x[1]]))


VALUES = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
FREQUENCIES = np.array([0.4, 0.1, 0.15, 0.35])


def wake(p):
    """E_data E_q(z | x) log p(x, z)."""

    def one(x):
        return bits(p["model"]).log_density(table(p["guide"], x).simulate().choices | {"x": x})

    return (FREQUENCIES * jax.vmap(one)(VALUES)).sum()


def sleep(p):
    """E_p(x, z) log q(z | x)."""
    dream = bits(p["model"]).simulate()
    return table(p["guide"], dream["x"]).log_density({"z": dream["z"]})


def exact_bits(p):
    """p(x) and p(z = 1 | x) of the four values of x."""

    def joint(x):
        return jax.vmap(lambda z: bits(p).log_density({"z": z, "x": x}))(jnp.arange(2))

    log_joint = jax.vmap(joint)(VALUES)  # [4, 2]
    return jnp.exp(log_joint).sum(1), jax.nn.softmax(log_joint, 1)[:, 1]


def test_wake_sleep_reaches_the_maximum_likelihood_and_its_posterior():
    """The model can fit any frequencies here; dropping the sleep phase cannot."""
    settings = {"using": strategies.Enumeration()}
    rate = optax.adam(optax.cosine_decay_schedule(0.1, 1000))
    model = vx.GradientStep(wake, rate, groups="model", **settings)
    recognition = vx.GradientStep(sleep, rate, groups="guide", **settings)
    params = {
        "model": {"prior": 0.0, "zero": jnp.array([-1.0, -0.5]), "one": jnp.array([0.5, 1.0])},
        "guide": jnp.zeros(4),
    }
    step = vx.schedule({"wake": (model, 1), "sleep": (recognition, 2)})
    found = fit(step, params, steps=3000).params
    marginal, posterior = exact_bits(found["model"])
    np.testing.assert_allclose(marginal, FREQUENCIES, atol=2e-3)
    np.testing.assert_allclose(jax.nn.sigmoid(found["guide"]), posterior, atol=2e-3)
    alone = fit(model, params, steps=1000).params
    assert abs(exact_bits(alone["model"])[0] - FREQUENCIES).max() > 0.05


def test_what_is_not_finite_in_a_schedule_is_named():
    def good(p):
        return -((p["a"] - vx.sample("y", d.Normal(0.0, 1.0))) ** 2)

    def bad(p):
        return vx.sample("z", d.Normal(0.0, jnp.sqrt(p["b"]))) * 0.0 - p["b"]

    one = vx.GradientStep(good, optax.sgd(0.1), groups="a")
    two = vx.GradientStep(bad, optax.sgd(0.4), groups="b")
    step = vx.schedule({"good": (one, 2), "bad": (two, 1)})
    with pytest.raises(errors.NonFiniteError, match=r"At step 8 `bad` is not finite") as caught:
        fit(step, {"a": 0.0, "b": 0.7}, steps=50)  # b: 0.7, 0.3, -0.1 after steps 2, 5
    assert caught.value.address == "z" and caught.value.step == 8
    np.testing.assert_allclose(caught.value.params["b"], -0.1, rtol=1e-5)


def test_schedules_that_make_no_sense_are_refused():
    with pytest.raises(errors.StepError, match=r"(?s)A schedule needs parts.*got: .*{}"):
        vx.schedule({})
    with pytest.raises(errors.StepError, match=r"(?s)a step with a number.*'a': <"):
        vx.schedule({"a": A})
    with pytest.raises(
        errors.StepError, match=r"(?s)part 'a' of a schedule needs an inference step"
    ):
        vx.schedule({"a": (lambda p: p, 3)})
    for count in (0, 2.0, True, None):
        with pytest.raises(
            errors.StepError, match=r"(?s)'a' of a schedule needs a number.*1 or more"
        ):
            vx.schedule({"a": (A, count), "b": (B, 1)})
    with pytest.raises(errors.StepError, match="or None for the rest"):
        vx.schedule({"a": (A, -1)})


# ---- other algorithms: closed-form updates, particles


@vx.model
def mixture(p):
    k = vx.sample("k", d.Categorical(probs=p["weight"]))
    vx.sample("x", d.Normal(p["mean"][k], p["sd"][k]))


class EM:
    """Expectation maximisation of `mixture` (Dempster, Laird and Rubin 1977)."""

    def init(self, key, params):
        return vx.InferenceState(params)

    def step(self, key, state, batch):
        def joint(x):  # log p(k, x), [K]
            of = jnp.arange(len(state.params["mean"]))
            return jax.vmap(lambda k: mixture(state.params).log_density({"k": k, "x": x}))(of)

        log_joint = jax.vmap(joint)(batch)  # [N, K]
        r = jax.nn.softmax(log_joint, 1)
        n = r.sum(0)  # [K]
        mean = r.T @ batch / n
        sd = jnp.sqrt((r * (batch[:, None] - mean) ** 2).sum(0) / n)
        params = {"weight": n / n.sum(), "mean": mean, "sd": sd}
        return vx.InferenceState(params), {"objective": jax.nn.logsumexp(log_joint, 1).mean()}


def em_in_numpy(p, x, steps):
    history = []
    for _ in range(steps):
        density = p["weight"] * np.exp(-0.5 * ((x[:, None] - p["mean"]) / p["sd"]) ** 2) / p["sd"]
        history.append(np.log(density.sum(1) / np.sqrt(2 * np.pi)).mean())
        r = density / density.sum(1, keepdims=True)
        n = r.sum(0)
        mean = (r * x[:, None]).sum(0) / n
        sd = np.sqrt((r * (x[:, None] - mean) ** 2).sum(0) / n)
        p = {"weight": n / n.sum(), "mean": mean, "sd": sd}
    return p, np.array(history)


POINTS = np.concatenate([np.linspace(-3, -1, 30), np.linspace(0.5, 1.5, 20)])
START = {"weight": np.full(2, 0.5), "mean": np.array([-1.0, 1.0]), "sd": np.ones(2)}


def test_expectation_maximisation_is_an_inference_step(x64):
    """The numbers of NumPy's; the likelihood never falls."""
    tol = 1e-10 if x64 else 1e-5
    result = fit(EM(), START, steps=40, data=POINTS)
    expected, likelihood = em_in_numpy(START, POINTS, 40)
    for name, x in expected.items():
        np.testing.assert_allclose(result.params[name], x, rtol=10 * tol)
    np.testing.assert_allclose(result.history, likelihood, rtol=tol)
    assert (np.diff(result.history) > -tol).all() and likelihood[-1] > likelihood[0] + 0.1


def test_closed_forms_and_gradients_share_a_schedule():
    """Gradient ascent of the likelihood from where EM stops finds nothing better."""

    def likelihood(p, batch):
        def one(x):
            terms = [mixture(p).log_density({"k": k, "x": x}) for k in range(2)]
            return jax.nn.logsumexp(jnp.stack(terms))

        return jax.vmap(one)(batch).mean()

    polish = vx.GradientStep(likelihood, optax.sgd(0.01), groups=("mean", "sd"))
    step = vx.schedule({"em": (EM(), 60), "gradient": (polish, None)})
    result = fit(step, START, steps=100, data=POINTS)
    expected, _ = em_in_numpy(START, POINTS, 200)
    np.testing.assert_allclose(result.params["mean"], expected["mean"], atol=1e-3)
    end = result.history["gradient"][-1]
    np.testing.assert_allclose(result.history["em"][59], end, atol=1e-5)


class SVGD:
    """Stein variational gradient descent (Liu and Wang 2016); params: the particles, [n, D]."""

    def __init__(self, log_density, n, optimizer):
        self.log_density, self.n, self.optimizer = log_density, n, optimizer

    def init(self, key, params):
        particles = params + jax.random.normal(key, (self.n, *params.shape))
        return vx.InferenceState(particles, self.optimizer.init(particles))

    def step(self, key, state, batch):
        x = state.params
        square = ((x[:, None] - x) ** 2).sum(-1)  # [n, n]
        h = jnp.median(square) / jnp.log(self.n)
        k = jnp.exp(-square / h)
        value, score = jax.vmap(jax.value_and_grad(self.log_density))(x)
        repulsion = 2 / h * (k.sum(1)[:, None] * x - k @ x)
        updates, memory = self.optimizer.update(-(k @ score + repulsion) / self.n, state.memory, x)
        return vx.InferenceState(x + updates, memory), {"objective": value.mean(), "h": h}

    def posterior(self, state):
        return particles(state.params)


@vx.model
def particles(x):
    i = vx.sample("i", d.Categorical(logits=jnp.zeros(len(x))))
    return vx.deterministic("x", x[i])


def test_particles_are_an_inference_step_with_a_posterior():
    mean, scale = jnp.array([1.0, -2.0]), jnp.array([[1.0, 0.0], [0.6, 0.8]])

    @vx.model
    def target():
        vx.sample("z", d.MultivariateNormal(mean, scale_tril=scale))

    step = SVGD(lambda z: target().log_density({"z": z}), 60, optax.adam(0.1))
    result = fit(step, jnp.zeros(2), steps=800)
    assert result.history.keys() == {"objective", "h"} and result.params.shape == (60, 2)
    np.testing.assert_allclose(result.params.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(result.params.T), scale @ scale.T, atol=0.15)
    draw = step.posterior(result.state).simulate(KEY)
    assert (draw["x"] == result.params).all(1).any()


def test_the_posterior_of_a_gradient_step_is_its_guide():
    def elbo(phi):
        return ob.elbo(line(1.0), guide(phi), {"x": 1.3})

    step = vx.GradientStep(elbo, optax.adam(0.05), guide=guide)
    result = fit(step, {"m": 0.0, "s": 0.0}, steps=5)
    measure = step.posterior(result.state)
    assert measure.log_density({"z": 0.3}) == guide(result.params).log_density({"z": 0.3})
    plain = vx.GradientStep(elbo, optax.adam(0.05))
    with pytest.raises(errors.CapabilityError, match=r"(?s)does not know its guide.*guide=lambda"):
        plain.posterior(result.state)


# ---- what a step returns


class Returns:
    """A step made of one function."""

    def __init__(self, function):
        self.function = function

    def init(self, key, params):
        return vx.InferenceState(params, np.zeros(2, np.int32))

    def step(self, key, state, batch):
        return self.function(state)


def test_metrics_may_be_measured_now_and_then():
    def counting(state):
        every = state.params["n"] % 3 == 0
        params = {"n": state.params["n"] + 1, "name": "a", "size": np.arange(3)}
        measured = vx.Metric(jnp.where(every, state.params["n"], jnp.inf), every)
        return vx.InferenceState(params, state.memory + 1), {"objective": 1.0, "rare": measured}

    result = fit(Returns(counting), {"n": 0.0, "name": "a", "size": np.arange(3)}, steps=5)
    np.testing.assert_array_equal(result.history["rare"], [0, np.nan, np.nan, 3, np.nan])
    assert result.params["name"] == "a" and result.params["n"] == 5.0
    assert isinstance(result.params["size"], np.ndarray)


def test_what_a_step_returns_is_checked():
    def metrics(found):
        return Returns(lambda s: (s, found))

    with pytest.raises(errors.StepError, match=r"(?s)scalars by name.*bound: shape \(2,\)"):
        fit(metrics({"bound": jnp.zeros(2)}), 0.0, steps=1)
    with pytest.raises(errors.StepError, match=r"(?s)scalars by name.*got: +float"):
        fit(metrics(1.0), 0.0, steps=1)
    grows = Returns(lambda s: (vx.InferenceState({"x": jnp.zeros(3)}, s.memory), {}))
    with pytest.raises(errors.StepError, match=r"(?s)changed the form.*'x'.*float32\[\].*\[3\]"):
        fit(grows, {"x": 0.0}, steps=1)
    forgets = Returns(lambda s: (vx.InferenceState(s.params), {}))
    with pytest.raises(errors.StepError, match=r"(?s)state.memory: int32\[2\].*got: +no array"):
        fit(forgets, 0.0, steps=1)


def test_any_step_that_is_not_finite_stops_the_fit():
    def falls(state):
        x = state.params["x"] - 1.0
        return vx.InferenceState({"x": x, "y": jnp.log(x)}, state.memory), {"size": x}

    at_three = r"(?s)At step 3 the update is not finite.*size = -0\.5; after the step not finite: y"
    with pytest.raises(errors.NonFiniteError, match=at_three) as caught:
        fit(Returns(falls), {"x": 3.5, "y": 0.0}, steps=50)
    assert caught.value.step == 3 and caught.value.params["x"] == 0.5
    late = Returns(lambda s: (s, {"objective": 1.0, "check": jnp.nan}))
    with pytest.raises(errors.NonFiniteError, match=r"At step 0 `check` is not finite"):
        fit(late, 0.0, steps=5)


def test_steps_and_objectives_are_told_apart():
    with pytest.raises(errors.StepError, match=r"(?s)objective with an optimizer.*optimizer=None"):
        fit(lambda p: p, 0.0, steps=5)
    with pytest.raises(errors.StepError, match=r"(?s)own settings.*optimizer, maximize"):
        fit(A, 0.0, optax.sgd(0.1), steps=5, maximize=False)
    with pytest.raises(errors.StepError, match=r"(?s)number of steps and a key.*steps=None"):
        fit(lambda p: p, 0.0, optax.sgd(0.1))
    with pytest.raises(errors.StepError, match=r"(?s)or an inference step.*Write"):
        fit(Write, 0.0, steps=5)


def test_the_documents_code_runs_and_agrees():
    """Every fit of the text's linear-Gaussian model finds the mean and the variance of the data."""
    root = Path(__file__).resolve().parents[1]
    code = re.findall(r"```python\n(.*?)```", (root / "docs/fitting.md").read_text(), re.DOTALL)
    scope = {}
    for block in code:
        exec(block, scope)
        theta = scope["result"].params
        if "model" in theta:
            theta = theta["model"]
            assert abs(theta["mean"] - scope["x"].mean()) < 0.3
            variance = theta["slope"] ** 2 + np.exp(2 * theta["log_sd"])
            assert abs(np.log(variance / scope["x"].var())) < 0.4
    np.testing.assert_allclose(theta["weight"] @ theta["mean"], scope["x"].mean(), rtol=1e-4)
