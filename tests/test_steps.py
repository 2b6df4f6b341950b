"""Any algorithm is an inference step; what a step returns is checked."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_checks import KEY, A, Write, fit, guide, line

import varax as vx
from varax import dist as d
from varax import errors
from varax import objectives as ob

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


def test_an_optimizer_that_watches_the_objective():
    """`reduce_on_plateau` halves the learning rate where a constant objective stops falling."""
    optimizer = optax.chain(
        optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=3, cooldown=0)
    )
    result = fit(lambda p: -1.0 + 0.0 * p, jnp.array(0.0), optimizer, steps=20)
    scale = result.state.memory["optimizer"][1].scale
    assert scale <= 0.5**3
    moving = fit(lambda p: p, jnp.array(0.0), optimizer, steps=20)
    assert moving.state.memory["optimizer"][1].scale == 1.0
