"""What other systems get silently wrong, or users do without thinking.

Here a single draw decides: its noise is recovered from the value, and the gradient must be the
textbook formula at that very noise. A draw that is lost, repeated or replayed with another key in
a region (jit, cond, scan, checkpoint) shows at once.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from control_flow_forms import REGIONS
from gradient_checks import check_mean, label, tolerance
from jax import lax

import varax as vx
from varax import dist as d
from varax import estimators as est

KEY = jax.random.key(11)


def assert_same(found, expected):
    tol = tolerance(np.asarray(jax.tree.leaves(found)[0]).dtype)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), found, expected)


# ---- one draw, one formula


def cost(x):
    return jnp.sin(3 * x) + x**2


def pathwise(x, mean, sd):
    """d cost(mean + sd * noise) in mean and log sd."""
    slope = 3 * jnp.cos(3 * x) + 2 * x
    return jnp.array([slope, slope * (x - mean)])


def score(x, mean, sd):
    """cost times the derivative of the log density in mean and log sd."""
    noise = (x - mean) / sd
    return cost(x) * jnp.array([noise / sd, noise**2 - 1])


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(
    "estimator, formula", [(est.Reparam(), pathwise), (est.Score(), score)], ids=label
)
def test_gradient_is_the_formula_at_the_noise_that_was_drawn(region, estimator, formula, x64):
    """Under checkpoint the backward pass replays the region and must see the same draw."""

    def program(theta):
        def draw():
            x = vx.sample("x", d.Normal(theta[0], jnp.exp(theta[1])), estimator=estimator)
            return jnp.stack([cost(x), x])

        value, x = REGIONS[region](draw)
        return value, x

    theta = jnp.array([0.3, -0.4])
    (value, x), gradient = jax.jit(vx.value_and_grad(program, has_aux=True))(KEY, theta)
    assert_same(value, cost(x))
    assert_same(gradient, formula(x, theta[0], jnp.exp(theta[1])))


@pytest.mark.parametrize("estimator", [est.Reparam(), est.Score()], ids=label)
def test_steps_of_a_scan_each_use_their_own_noise(estimator, x64):
    def program(theta):
        def step(x, _):
            x = vx.sample("x", d.Normal(theta * x, 1.0), estimator=estimator)
            return x, x

        xs = lax.scan(step, 1.0, None, length=4)[1]
        return (xs**2).sum(), xs

    theta = jnp.array(0.7)
    gradient, xs = vx.grad(program, has_aux=True)(KEY, theta)
    before = jnp.concatenate([jnp.ones(1), xs[:-1]])
    noise = xs - theta * before
    assert len(set(np.round(noise, 6).tolist())) == 4
    if isinstance(estimator, est.Score):
        later = jnp.cumsum((xs**2)[::-1])[::-1]  # a step answers for itself and what follows
        assert_same(gradient, (later * noise * before).sum())
    else:
        slope, total = 0.0, 0.0  # dx_t = x_{t-1} + theta dx_{t-1}
        for x, x_before in zip(xs, before, strict=True):
            slope = x_before + theta * slope
            total += 2 * x * slope
        assert_same(gradient, total)


@pytest.mark.slow_in_float64
def test_multivariate_normal_in_mean_and_cholesky_factor(x64):
    """x = m + L e: the gradient of c(x) is c'(x) in m and the lower triangle of c'(x) e^T in L."""
    a = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.7]])
    mean = jnp.array([0.3, -0.4, 1.0])
    tril = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.2, 0.4, 1.2]])

    def program(mean, tril):
        x = vx.sample("x", d.MultivariateNormal(mean, scale_tril=jnp.tril(tril)))
        return x @ a @ x, x

    (_, x), (by_mean, by_tril) = vx.value_and_grad(program, (0, 1), has_aux=True)(KEY, mean, tril)
    slope, noise = 2 * a @ x, jnp.linalg.solve(tril, x - mean)
    assert_same(by_mean, slope)
    assert_same(by_tril, jnp.tril(jnp.outer(slope, noise)))


@pytest.mark.slow_in_float64
def test_geometric_by_probability_and_by_logit(x64):
    """One density, k failures and a success, and one gradient, in either parameterisation."""
    k, logit = jnp.arange(6), jnp.array(0.3)

    @vx.model
    def tosses(law):
        vx.sample("k", law)

    def densities(make):
        return jax.vmap(lambda k: tosses(make(logit)).log_density({"k": k}))(k)

    def by_probability(logit):
        return d.Geometric(probs=jax.nn.sigmoid(logit))

    def by_logit(logit):
        return d.Geometric(logits=logit)

    p = jax.nn.sigmoid(logit)
    for make in (by_probability, by_logit):
        assert_same(densities(make), jnp.log(p) + k * jnp.log1p(-p))

        def program(logit, make=make):
            k = vx.sample("k", make(logit), estimator=est.Score())
            return jnp.cos(k * 1.0), k

        (value, drawn), gradient = vx.value_and_grad(program, has_aux=True)(KEY, logit)
        assert_same(gradient, value * (1 - p - drawn * p))


# ---- the whole signature, anywhere in JAX


def program(theta, scale):
    """Pathwise and scored sites, inside and outside of control flow."""
    x = vx.sample("x", d.Normal(theta, scale))
    z = vx.sample("z", d.Bernoulli(logits=theta), estimator=est.Score())
    y = lax.cond(z == 1, lambda: vx.sample("y", d.Normal(x, 1.0)), lambda: x)
    return jnp.sin(y) + z * x


@pytest.mark.slow_in_float64
def test_gradient_is_the_same_under_jit_vmap_and_scan_over_keys(x64):
    keys = jax.random.split(KEY, 3)
    gradient = vx.grad(program, argnums=(0, 1))

    def at(key):
        return jnp.stack(gradient(key, jnp.array(0.3), jnp.array(0.8)))

    eager = jnp.stack([at(key) for key in keys])
    assert len(np.unique(eager[:, 0])) == 3
    assert_same(jnp.stack([jax.jit(at)(key) for key in keys]), eager)
    assert_same(jax.jit(jax.vmap(at))(keys), eager)
    assert_same(lax.scan(lambda c, key: (c, at(key)), 0, keys)[1], eager)


def test_gradient_is_the_same_under_vmap_over_parameters():
    thetas = jnp.linspace(-0.5, 0.5, 3)
    one_by_one = jnp.stack([vx.grad(program)(KEY, t, 0.8) for t in thetas])
    assert_same(jax.vmap(lambda t: vx.grad(program)(KEY, t, 0.8))(thetas), one_by_one)


def test_argnums_keywords_and_aux():
    def with_aux(theta, scale):
        value = program(theta, scale)
        return value, {"value": value, "note": "kept"}

    value, (by_theta, by_scale) = vx.value_and_grad(program, argnums=(0, 1))(KEY, 0.3, 0.8)
    np.testing.assert_allclose(vx.grad(program)(KEY, 0.3, 0.8), by_theta, rtol=1e-6)
    np.testing.assert_allclose(vx.grad(program)(KEY, 0.3, scale=0.8), by_theta, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(vx.grad(program, argnums=1)(KEY, 0.3, 0.8), by_scale)
    close(vx.grad(program, argnums=(-1, 0))(KEY, 0.3, 0.8), (by_scale, by_theta))
    (found, aux), gradient = vx.value_and_grad(with_aux, has_aux=True)(KEY, 0.3, 0.8)
    close((found, gradient, aux["value"]), (value, by_theta, value))
    assert aux["note"] == "kept"
    gradient, again = vx.grad(with_aux, has_aux=True)(KEY, 0.3, 0.8)
    close((gradient, again["value"]), (by_theta, value))


def test_parameters_in_an_equinox_module():
    """Static fields, functions, integers and keys have no derivative: None stands for them."""

    class Guide(eqx.Module):
        mean: jax.Array
        act: object
        count: int
        key: jax.Array
        name: str = eqx.field(static=True)

    def objective(guide):
        return guide.act(vx.sample(guide.name, d.Normal(guide.mean, 1.0))) * guide.count

    def by_hand(mean):
        return jnp.tanh(vx.sample("x", d.Normal(mean, 1.0))) * 3

    guide = Guide(jnp.array(0.3), jnp.tanh, 3, KEY, "x")
    value, gradient = vx.value_and_grad(objective)(KEY, guide)
    assert isinstance(gradient, Guide)
    assert (gradient.act, gradient.count, gradient.key, gradient.name) == (None, None, None, "x")
    assert (value, gradient.mean) == vx.value_and_grad(by_hand)(KEY, guide.mean)
    moved = eqx.apply_updates(guide, gradient)
    assert moved.mean == guide.mean + gradient.mean
    assert moved.act is jnp.tanh


def test_optimisation_loop_in_a_scan():
    """200 steps compiled into one scan are those of a Python loop, and come to the optimum."""

    def loss(theta):
        z = vx.sample("z", d.Bernoulli(logits=theta[1]))
        return (vx.sample("x", d.Normal(theta[0], 0.1)) - 3) ** 2 + jnp.where(z == 1, 0.0, 4.0)

    def step(theta, key):
        value, gradient = vx.value_and_grad(loss)(key, theta)
        return theta - 0.1 * gradient, value

    keys, start = jax.random.split(KEY, 200), jnp.zeros(2)
    theta, values = jax.jit(lambda start: lax.scan(step, start, keys))(start)
    by_hand = start
    for key in keys:
        by_hand, _ = jax.jit(step)(by_hand, key)
    np.testing.assert_allclose(theta, by_hand, rtol=1e-4)
    assert abs(theta[0] - 3) < 0.1
    assert theta[1] > 2
    assert values[-20:].mean() < values[:20].mean() / 10


def test_a_choice_whose_parameters_are_all_known_may_be_an_output():
    """The score function of a choice without arrays, on the path of a sum."""
    program = lambda: vx.sample("x", d.Normal(0.2, 1.0), estimator=est.Score()) + 1.0  # noqa: E731
    draws = jax.vmap(vx.expect(program))(jax.random.split(jax.random.key(0), 1000))
    check_mean(np.asarray(draws), 1.2)
    assert "x" in str(vx.check(program))
