"""`vx.fit`: it converges to exact optima, is deterministic, and explains what is not finite."""

import gc
import logging
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import varax as vx
from varax import dist as d
from varax import errors
from varax import estimators as est

KEY = jax.random.key(0)


@vx.model
def line(mu):
    z = vx.sample("z", d.Normal(mu, 1.0))
    vx.sample("x", d.Normal(z, 1.0))


@vx.model
def guide(phi):
    vx.sample("z", d.Normal(phi["m"], jnp.exp(phi["s"])))


def conjugate(phi):
    return vx.objectives.elbo(line(1.0), guide(phi), {"x": 3.0})


def zeros():
    return {"m": jnp.zeros(()), "s": jnp.zeros(())}


def test_the_optimum_of_a_conjugate_model_is_the_posterior(x64):
    """Posterior N(2, 1/2), evidence N(3; 1, 2)."""

    def many(phi):
        return jax.vmap(lambda _: conjugate(phi))(jnp.arange(100)).mean()

    decay = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    result = vx.fit(many, zeros(), decay, 1500, KEY, progress=False)
    np.testing.assert_allclose(result.params["m"], 2.0, atol=0.05)
    np.testing.assert_allclose(jnp.exp(result.params["s"]), np.sqrt(0.5), atol=0.05)
    evidence = -0.5 * np.log(2 * np.pi * 2.0) - (3.0 - 1.0) ** 2 / 4
    np.testing.assert_allclose(result.history[-500:].mean(), evidence, atol=0.02)
    assert result.params["m"].dtype == (jnp.float64 if x64 else jnp.float32)


def test_minimize_and_integer_and_function_leaves_stay():
    params = {"x": jnp.ones(3), "n": jnp.arange(2), "f": jnp.tanh, "name": "a"}

    def loss(p):
        return (p["f"](p["x"]) ** 2).sum() + p["n"].sum()

    result = vx.fit(loss, params, optax.sgd(0.3), 200, KEY, maximize=False, progress=False)
    assert abs(result.params["x"]).max() < 1e-3
    assert result.params["f"] is jnp.tanh and result.params["name"] == "a"
    assert (result.params["n"] == jnp.arange(2)).all()


def test_steps_depend_on_key_and_number_alone():
    """However the loop is cut into calls: the same history, and a longer run continues it."""
    short = vx.fit(conjugate, zeros(), optax.adam(0.02), 37, KEY, progress=False)
    long = vx.fit(conjugate, zeros(), optax.adam(0.02), 400, KEY, progress=False)
    np.testing.assert_array_equal(short.history, long.history[:37])
    other = vx.fit(conjugate, zeros(), optax.adam(0.02), 37, jax.random.key(1), progress=False)
    assert (short.history != other.history).all()


def test_one_compilation():
    traced = []

    def objective(phi):
        traced.append(1)
        return conjugate(phi)

    vx.fit(objective, zeros(), optax.adam(0.02), 700, KEY, progress=False)
    assert len(traced) == 2  # once for the shape of the objective, once for the loop
    traced.clear()
    vx.fit(objective, {"m": 0.0, "s": 0.0}, optax.adam(0.02), 50, KEY, progress=False)
    assert len(traced) == 2  # a Python number too keeps its type from step to step


def compilations(call):
    """The names of the programs that XLA compiles during a call."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("jax"), Keep()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            call()
    finally:
        logger.removeHandler(handler)
    return re.findall(r"Finished XLA compilation of (\S+) in", "\n".join(lines))


def test_one_compilation_however_many_calls_to_the_device():
    def run(steps, **options):
        adam = optax.adam(optax.cosine_decay_schedule(0.02, 100))
        data = {"data": np.arange(12.0), "batch_size": 4}
        objective = lambda phi, batch: conjugate(phi) + 0.0 * batch.sum()  # noqa: E731
        return vx.fit(objective, zeros(), adam, steps, KEY, **data, progress=False, **options)

    run(3)  # what JAX compiles for operations outside the loop, once in a process
    calls = []
    short = compilations(lambda: run(3))
    long = compilations(lambda: run(400, callbacks=[calls.append], every=5))
    assert len(calls) == 80
    assert long == short == ["jit(_steps)"]


def memory():
    """Objects that Python tracks, arrays of JAX, resident memory in MB."""
    gc.collect()
    resident = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return len(gc.get_objects()), len(jax.live_arrays()), resident / 1024


def many_fits(n):
    """Fits of new functions with one program."""
    for _ in range(n):

        @vx.model
        def q(phi):
            vx.sample("z", d.Normal(phi, 1.0))

        def objective(phi, q=q):
            return -(q(phi).simulate()["z"] ** 2)

        vx.fit(objective, 1.0, optax.sgd(0.01), 3, KEY, progress=False)


def test_a_fit_leaves_nothing_behind():
    many_fits(2)
    objects, arrays, _ = memory()
    many_fits(5)
    more, same, _ = memory()
    assert same <= arrays and more - objects < 5 * 20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_stays_flat_over_a_thousand_fits():
    many_fits(200)
    objects, arrays, resident = memory()
    many_fits(800)
    more, same, grown = memory()
    assert same <= arrays and more - objects < 800 and grown - resident < 20


def test_minibatches_are_permutations_of_the_data():
    """Over an epoch every point is seen once; the order changes from epoch to epoch."""
    data = {"x": np.arange(12.0)}
    result = vx.fit(
        lambda p, batch: batch["x"].sum() + 0.0 * p,
        jnp.zeros(()),
        optax.sgd(0.1),
        9,
        KEY,
        data=data,
        batch_size=4,
        progress=False,
    )
    sums = result.history.reshape(3, 3)
    np.testing.assert_array_equal(sums.sum(1), 66.0)
    assert len({tuple(row) for row in sums}) == 3
    full = vx.fit(lambda p, b: b["x"].sum() + p, 0.0, optax.sgd(0.0), 2, KEY, data=data)
    np.testing.assert_array_equal(full.history, 66.0)


def test_equinox_modules_and_discrete_guides_train():
    """A two-component mixture's assignment by enumeration: q matches the exact posterior."""

    @vx.model
    def model():
        k = vx.sample("k", d.Bernoulli(0.3))
        vx.sample("x", d.Normal(4.0 * k, 1.0))

    @vx.model
    def q(net):
        vx.sample("k", d.Bernoulli(logits=net(jnp.ones(1))[0]), estimator=est.Enumerate())

    def objective(net):
        return vx.objectives.elbo(model(), q(net), {"x": 2.2})

    net = eqx.nn.MLP(1, 1, 4, 1, key=KEY)
    trained = vx.fit(objective, net, optax.adam(0.05), 500, KEY, progress=False).params
    odds = 0.3 / 0.7 * np.exp(-0.5 * (2.2 - 4) ** 2 + 0.5 * 2.2**2)
    np.testing.assert_allclose(trained(jnp.ones(1))[0], np.log(odds), atol=1e-3)


def test_progress_shows_running_mean_and_speed(capsys):
    vx.fit(conjugate, zeros(), optax.adam(0.02), 50, KEY)
    shown = capsys.readouterr().err
    assert "50/50" in shown and "step/s" in shown and re.search(r"objective -?[\d.]+ ±", shown)


def test_result_shows_and_plots():
    import matplotlib

    matplotlib.use("Agg")
    result = vx.fit(conjugate, zeros(), optax.adam(0.02), 50, KEY, progress=False)
    assert repr(result).startswith("FitResult(steps=50, objective=-")
    assert len(result.plot().lines) == 2


def test_interruption_keeps_what_was_done(monkeypatch):
    from varax.ppl.progress import Progress

    def stop(self, count, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", stop)
    result = vx.fit(conjugate, zeros(), optax.adam(0.02), 50, KEY)
    assert result.interrupted and result.steps == 1 and result.params["m"] != 0.0


# ---- what is not finite


def line_of(text):
    """`file:line` of the only line of this file that ends with a marker comment."""
    lines = Path(__file__).read_text().splitlines()
    (found,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"# {text}")]
    return f"test_fit.py:{found}"


@vx.model
def walk(scale):
    def body(s, _):
        s = vx.sample("s", d.Normal(s, jnp.sqrt(scale)))  # walk-site
        return s, s

    jax.lax.scan(body, 0.0, None, length=3)
    vx.sample("x", d.Normal(0.0, 1.0))


def test_a_value_that_is_not_finite_is_named():
    """sqrt(p) of a negative p: p falls by 0.25 a step from 1.1, so step 5 is the first."""

    def objective(p):
        return 0.0 * walk(p).simulate().log_density - p

    with pytest.raises(errors.NonFiniteError) as caught:
        vx.fit(objective, 1.1, optax.sgd(0.25), 100, KEY, progress=False)
    message = str(caught.value)
    assert caught.value.step == 5 and caught.value.address == "s"
    np.testing.assert_allclose(caught.value.params, -0.15, rtol=1e-5)
    assert "At step 5 the objective is not finite." in message
    assert "a parameter of Normal is nan (scan step 0)" in message and "`sqrt` gives nan" in message
    assert line_of("walk-site") in message and "fix:" in message


def test_a_density_that_is_not_finite_is_named():
    @vx.model
    def model(p):
        z = vx.sample("z", d.Normal(0.0, 1.0))
        vx.sample("y", d.LogNormal(0.0, 1.0))  # density-site
        return z

    def objective(p):
        q = vx.sample("q", d.Normal(0.0, 0.01))
        return 0.0 * model(p).log_density({"z": q, "y": p}) + p

    with pytest.raises(errors.NonFiniteError) as caught:
        vx.fit(objective, 0.95, optax.sgd(0.5), 100, KEY, maximize=False, progress=False)
    message = str(caught.value)
    assert caught.value.step == 2 and caught.value.address == "y" and "outside" in message
    assert line_of("density-site") in message


def test_a_gradient_that_is_not_finite_is_named():
    """|x - loc| to the power 1/2 has no finite derivative at 0, though its value is finite."""

    @vx.model
    def model(scale):
        vx.sample("w", d.Normal(0.0, jnp.sqrt(scale) + 1.0))  # gradient-site

    with pytest.raises(errors.NonFiniteError) as caught:
        vx.fit(
            lambda s: model(s).log_density({"w": 1.0}), 0.0, optax.sgd(0.1), 5, KEY, progress=False
        )
    message = str(caught.value)
    assert caught.value.step == 0 and "gradient" in message and "`sqrt`" in message


def test_lanes_branches_and_enumeration_are_searched():
    @vx.model
    def model(p):
        def lane(x):
            return jax.lax.cond(
                x > 1.0,
                lambda: vx.sample("a", d.Normal(0.0, jnp.log(p))),  # lane-site
                lambda: vx.sample("b", d.Normal(0.0, 1.0)),
            )

        jax.vmap(lane)(jnp.arange(3.0))

    def objective(p):
        k = vx.sample("k", d.Bernoulli(0.5), estimator=est.Enumerate())
        return k * model(p).log_density({"a": jnp.ones(3), "b": jnp.ones(3)}) - p

    with pytest.raises(errors.NonFiniteError) as caught:
        vx.fit(objective, 0.5, optax.sgd(0.1), 5, KEY, progress=False)
    assert caught.value.step == 0 and caught.value.address == "a"
    assert line_of("lane-site") in str(caught.value)


def test_observations_outside_the_support_are_named_by_the_failed_fit():
    @vx.model
    def model(rate, x):
        vx.sample("x", d.Gamma(2.0, rate), obs=x)

    with pytest.raises(errors.NonFiniteError, match="outside Gamma's support"):
        vx.fit(
            lambda p, batch: jax.vmap(lambda x: model(jnp.exp(p), x).log_density({}))(batch).sum(),
            0.0,
            optax.sgd(0.1),
            5,
            KEY,
            data=np.array([1.0, -2.0]),
            progress=False,
        )


def test_bad_arguments():
    with pytest.raises(errors.ShapeError, match=r"(?s)one number.*\(3,\).*mean"):
        vx.fit(lambda p: p * jnp.ones(3), 1.0, optax.sgd(0.1), 5, KEY, progress=False)
    with pytest.raises(errors.ShapeError, match=r"(?s)leading axis.*\[2, 3\]"):
        vx.fit(lambda p, b: p, 1.0, optax.sgd(0.1), 5, KEY, data=[np.ones(2), np.ones(3)])
    with pytest.raises(errors.ShapeError, match=r"(?s)batch size.*1 to 2"):
        vx.fit(lambda p, b: p, 1.0, optax.sgd(0.1), 5, KEY, data=np.ones(2), batch_size=3)
