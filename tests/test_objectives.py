"""Sticking the landing, DReG, VIMCO: unbiased, and with the variance they are known for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import check_biased, check_mean, estimates, exactly

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import objectives as ob

X = 1.0
DATA = {"x": X}


@vx.model
def chain(u):
    z = vx.sample("z", d.Normal(u, 1.0))
    w = vx.sample("w", d.Normal(z, 1.0))
    vx.sample("x", d.Normal(w, 1.0))


@vx.model
def normals(t):
    z = vx.sample("z", d.Normal(t[0], jnp.exp(t[1])))
    vx.sample("w", d.Normal(t[2] + z * t[3], jnp.exp(t[4])))


THETA = (0.1, 0.2, -0.3, 0.4, 0.1, 0.3)
POSTERIOR = ((2 * 0.3 + X) / 3, np.log(2 / 3) / 2, X / 2, 0.5, np.log(0.5) / 2, 0.3)


def of_chain(objective, *args):
    return lambda t: objective(chain(t[5]), normals(t), DATA, *args)


def elbo_of_chain(t):
    """In closed form."""
    mz, vz, vw = t[0], jnp.exp(2 * t[1]), jnp.exp(2 * t[4])
    gap, shift = t[3] - 1, t[2] + (t[3] - 1) * t[0]  # w - z = shift + gap (z - mz) + noise
    mw, vx_ = t[2] + t[3] * t[0], t[3] ** 2 * vz + vw
    log_p = -1.5 * jnp.log(2 * jnp.pi) - ((mz - t[5]) ** 2 + vz) / 2
    log_p += -(shift**2 + gap**2 * vz + vw) / 2 - ((X - mw) ** 2 + vx_) / 2
    return log_p + 1 + jnp.log(2 * jnp.pi) + t[1] + t[4]


def test_sticking_the_landing_is_unbiased(x64):
    right, wrong = of_chain(ob.sticking_the_landing), of_chain(no_path)
    draws, twin = estimates([right, wrong], THETA)
    check_mean(draws, exactly(elbo_of_chain, THETA))
    check_biased(twin, exactly(elbo_of_chain, THETA))


def no_path(p, q, data):
    """A twin: the guide's density is left out as a whole."""
    trace = q.simulate()
    density = jax.lax.stop_gradient(trace.log_density)
    return p.log_density(trace.choices | data) - density


def test_sticking_the_landing_has_no_variance_at_the_posterior(x64):
    plain, sticking = estimates(
        [of_chain(ob.elbo), of_chain(ob.sticking_the_landing)], POSTERIOR, draws=1000
    )
    tol = 1e-10 if x64 else 1e-4
    guide = slice(1, 6)  # the model's own parameter keeps its variance
    assert (sticking[:, guide].std(0) < tol).all()
    assert (plain[:, guide].std(0) > 0.1).all()


def test_dreg_agrees_with_the_bound_it_differentiates():
    plain, dreg = estimates([of_chain(ob.iwelbo, 5), of_chain(ob.dreg, 5)], THETA)
    np.testing.assert_allclose(plain[:, 0], dreg[:, 0], rtol=1e-4, atol=1e-4)  # same draws
    check_mean(plain - dreg, np.zeros(7))
    assert (dreg[:, 1:6].var(0) < plain[:, 1:6].var(0)).all()


def test_dreg_keeps_its_signal():
    """Rainforth et al. 2018: that of the plain bound's guide gradient fades as k grows."""

    def signal(objective, k):
        (draws,) = estimates([of_chain(objective, k)], THETA, draws=5000)
        return np.abs(draws[:, 1:6].mean(0) / draws[:, 1:6].std(0)).mean()

    assert signal(ob.iwelbo, 64) < signal(ob.iwelbo, 4)
    assert signal(ob.dreg, 64) > 2 * signal(ob.dreg, 4)


def test_dreg_refuses_what_is_not_pathwise():
    with pytest.raises(vx.errors.NotReparameterizableError, match=r"objectives\.vimco"):
        vx.grad(lambda t: ob.dreg(coins(), guide(t, None), DATA, 3))(jax.random.key(0), jnp.ones(3))


# ---- discrete guides


@vx.model
def coins():
    z = vx.sample("z", d.Bernoulli(0.3))
    y = vx.sample("y", d.Bernoulli(jnp.where(z == 1, 0.8, 0.3)))
    vx.sample("x", d.Normal(z + y, 1.0))


@vx.model
def guide(t, estimator):
    z = vx.sample("z", d.Bernoulli(logits=t[0]), estimator=estimator)
    vx.sample("y", d.Bernoulli(logits=t[1] + t[2] * z), estimator=estimator)


COINS = (0.3, -0.4, 0.5)


def of_coins(objective, estimator, k=3):
    return lambda t: objective(coins(), guide(t, estimator), DATA, k)


@pytest.mark.slow
def test_vimco_is_unbiased_and_has_less_variance(x64):
    score = est.Score()
    exact = vx.value_and_grad(of_coins(ob.iwelbo, est.Enumerate()))
    value, slope = exact(jax.random.key(0), jnp.array(COINS))
    vimco, plain, twin = estimates(
        [of_coins(ob.vimco, score), of_coins(ob.iwelbo, score), of_coins(shared, score)], COINS
    )
    check_mean(vimco, np.append(value, slope))
    check_mean(plain, np.append(value, slope))
    check_biased(twin, np.append(value, slope))
    assert (vimco[:, 1:].var(0) < plain[:, 1:].var(0) / 4).all()


def shared(p, q, data, k):
    """A twin: the baseline sees the lane's own draw."""
    log_w = jax.vmap(lambda _: ob.log_weight(p, q.simulate(), data))(jnp.arange(k))
    bound = jax.nn.logsumexp(log_w) - jnp.log(k)
    return vx.learning_signals(bound, bound - log_w, log_w)


def test_vimco_of_every_data_point():
    """A plate of bounds: each answers for its own draws."""

    def plate(t):
        one = lambda x: ob.vimco(coins(), guide(t, est.Score()), {"x": x}, 3)  # noqa: E731
        return jax.vmap(one)(jnp.full(8, X)).mean()

    single, many = estimates([of_coins(ob.vimco, est.Score()), plate], COINS, draws=20_000)
    check_mean(many - single, np.zeros(4))
    np.testing.assert_allclose(many.var(0), single.var(0) / 8, rtol=0.15)


@pytest.mark.slow
def test_vimco_leaves_enumeration_alone():
    value, slope = (
        vx.value_and_grad(of_coins(objective, est.Enumerate()))(jax.random.key(0), jnp.array(COINS))
        for objective in (ob.vimco, ob.iwelbo)
    )
    np.testing.assert_allclose(value[1], slope[1], rtol=1e-4)


def test_choices_before_the_lanes_answer_for_the_whole_bound():
    def f(t):
        a = vx.sample("a", d.Bernoulli(logits=t[0]), estimator=est.Score())

        def lane(c):
            z = vx.sample("z", d.Bernoulli(logits=t[1] + a), estimator=est.Score())
            return t[2] * (z - c) ** 2 + a

        w = jax.vmap(lane)(jnp.linspace(0, 1, 3))
        others = (w.sum() - w) / 2
        without = jnp.where(jnp.eye(3, dtype=bool), others[:, None], w)
        bound = jax.nn.logsumexp(w)
        return vx.learning_signals(bound, bound - jax.nn.logsumexp(without, 1), w)

    every = {"a": est.Enumerate(), "z": est.Enumerate()}
    value, slope = vx.value_and_grad(f, estimators=every)(jax.random.key(0), jnp.array(COINS))
    (draws,) = estimates([f], COINS)
    check_mean(draws, np.append(value, slope))


def test_learning_signals_are_the_value_elsewhere():
    def f(x):
        return vx.learning_signals(x.sum(), x, x)

    x = jnp.arange(3.0)
    assert f(x) == 3
    np.testing.assert_array_equal(jax.grad(f)(x), np.ones(3))
    np.testing.assert_array_equal(jax.vmap(f)(jnp.stack([x, 2 * x])), [3, 6])
    np.testing.assert_array_equal(jax.jit(jax.hessian(lambda x: f(x**2)))(x), 2 * np.eye(3))


def test_detached_measures_depend_on_their_choices_alone():
    def log_density(t, z):
        return normals(t).detach().log_density({"z": z, "w": z})

    t = jnp.array(THETA)
    slope = jax.grad(log_density, (0, 1))(t, 0.5)
    np.testing.assert_array_equal(slope[0], np.zeros(6))
    plain = jax.grad(lambda z: normals(t).log_density({"z": z, "w": z}))(0.5)
    np.testing.assert_allclose(slope[1], plain, rtol=1e-6)
