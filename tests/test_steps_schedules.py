"""Schedules: steps take turns, phases follow each other, several objectives share parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_checks import KEY, A, B, C, fit

import varax as vx
from varax import dist as d
from varax import errors, strategies


def written(step, steps):
    result = fit(step, (jnp.zeros(steps), jnp.asarray(0)), steps=steps)
    return "".join("abc"[int(x)] for x in result.params[0]), result


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


@pytest.mark.slow_in_float64
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
