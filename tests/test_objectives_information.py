"""Mutual information on correlated Gaussians, and bottlenecks, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradient_checks import check_biased, check_mean
from linear_gaussian import log_mean_exp

import varax as vx
from varax import dist as d
from varax import objectives as ob

KEY = jax.random.key(0)
DIMENSIONS, BATCH, BATCHES = 20, 64, 4000


def correlation(nats, dimensions=DIMENSIONS):
    return jnp.sqrt(1 - jnp.exp(-2 * nats / dimensions))


def scores_of(x, y, rho):
    """The best critic, log p(y | x) / p(y): [K, K]."""
    squared = ((y**2).sum(1) * rho**2 + ((x * rho) ** 2).sum(1)[:, None]) / 2 - rho * x @ y.T
    return -x.shape[1] / 2 * jnp.log(1 - rho**2) - squared / (1 - rho**2)


def pairs(key, rho, dimensions=DIMENSIONS, batch=BATCH):
    one, other = jax.random.split(key)
    x = jax.random.normal(one, (batch, dimensions))
    return x, rho * x + jnp.sqrt(1 - rho**2) * jax.random.normal(other, x.shape)


ESTIMATORS = {
    "dv": ob.donsker_varadhan,
    "nwj": lambda f: ob.nwj(1 + f),
    "infonce": ob.infonce,
    "smile": ob.smile,
}


@functools.cache
def draws_of(nats, dimensions=DIMENSIONS):
    """Each estimator with the best critic, and what is linear in the product: [BATCHES]."""
    rho = correlation(nats * dimensions / DIMENSIONS, dimensions)

    @jax.jit
    def run(key):
        f = scores_of(*pairs(key, rho, dimensions), rho)
        values = {name: estimate(f) for name, estimate in ESTIMATORS.items()}
        values["product"] = jnp.exp(jnp.diagonal(f).mean() - values["dv"])
        return values

    found = jax.lax.map(run, jax.random.split(KEY, BATCHES), batch_size=100)
    return {name: np.asarray(x) for name, x in found.items()}


def test_the_critic_is_the_density_ratio():
    x, y = pairs(KEY, 0.6, 3, 5)
    conditional = d.Normal(0.6 * x[:, None], 0.8).log_prob(y).sum(2)
    np.testing.assert_allclose(
        scores_of(x, y, 0.6), conditional - d.Normal(0.0, 1.0).log_prob(y).sum(1), rtol=1e-4
    )


def test_bounds_have_the_right_mean():
    draws = draws_of(2)
    check_mean(draws["nwj"], 2.0)
    check_mean(draws["product"], 1.0)
    check_biased(draws["infonce"], 2.0)
    assert draws["infonce"].mean() < 2.0
    check_biased(np.asarray(draws["nwj"]) + 1 / np.e, 2.0)


def test_nwj_is_below_for_another_critic():
    def twice(key):
        f = scores_of(*pairs(key, correlation(2.0)), correlation(2.0))
        return ob.nwj(f), ob.nwj(1 + 0.5 * f), ob.nwj(2 + f)

    for draws in jax.lax.map(twice, jax.random.split(KEY, 500), batch_size=100):
        assert draws.mean() + 5 * draws.std() / np.sqrt(500) < 2.0


@pytest.mark.thin(2)
@pytest.mark.parametrize("nats", [2, 4, 6, 8, 10])
def test_infonce_is_at_most_log_k(nats):
    draws = draws_of(nats)["infonce"]
    assert (draws <= np.log(BATCH) + 1e-5).all()
    assert draws.mean() < nats
    assert nats < 8 or draws.mean() > 0.95 * np.log(BATCH)


@pytest.mark.slow
def test_the_variance_of_nwj_grows_exponentially():
    """Song and Ermon 2020, theorem 2: that of E_product[e^f] at least like exp(I)."""
    log_var = [np.log(draws_of(nats)["product"].var()) for nats in (1, 2, 3, 4)]
    assert (np.diff(log_var) > 1.0).all()
    assert draws_of(10)["nwj"].var() > 100 * draws_of(2)["nwj"].var()
    assert draws_of(10)["smile"].var() < 20 * draws_of(2)["smile"].var()


@pytest.mark.parametrize("nats", [2, 4, 6, 8, 10])
def test_smile_has_less_error_than_nwj(nats):
    error = {name: np.mean((x - nats) ** 2) for name, x in draws_of(nats).items()}
    assert error["smile"] < error["nwj"]


def test_smile_without_a_clip_is_donsker_varadhan():
    f = scores_of(*pairs(KEY, 0.5), 0.5)
    np.testing.assert_allclose(ob.smile(f, 1e4), ob.donsker_varadhan(f), rtol=1e-6)
    by_hand = jnp.diagonal(f).mean() - log_mean_exp(jnp.clip(f, -2, 2)[~np.eye(BATCH, dtype=bool)])
    np.testing.assert_allclose(ob.smile(f, 2.0), by_hand, rtol=1e-5)


def test_jensen_shannon_is_largest_at_the_density_ratio():
    def slope(key):
        f = scores_of(*pairs(key, correlation(1.0)), correlation(1.0))
        return jax.grad(lambda a: ob.jensen_shannon(a[0] * f + a[1]))(jnp.array([1.0, 0.0]))

    check_mean(np.asarray(jax.lax.map(slope, jax.random.split(KEY, BATCHES), batch_size=100)), 0.0)
    x, y = pairs(KEY, 0.0, 1, 8)
    np.testing.assert_allclose(ob.jensen_shannon(0 * x @ y.T), -2 * np.log(2), rtol=1e-6)


# ---- self-consistency (Song and Ermon 2020, section 5.2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_independence_has_no_information(name, x64):
    f = scores_of(*pairs(KEY, 0.0), 0.0)
    np.testing.assert_allclose(ESTIMATORS[name](f), 0.0, atol=1e-12 if x64 else 1e-6)


@pytest.mark.slow
def test_data_processing_and_additivity():
    """Half of the dimensions have half of the information; what saturates is not additive."""
    whole, half = draws_of(2), draws_of(2, DIMENSIONS // 2)
    check_mean(half["nwj"], 1.0)
    assert half["smile"].mean() < whole["smile"].mean()
    np.testing.assert_allclose(2 * half["smile"].mean(), whole["smile"].mean(), rtol=0.1)
    whole, half = draws_of(10), draws_of(10, DIMENSIONS // 2)
    assert 2 * half["infonce"].mean() > 1.5 * whole["infonce"].mean()


@pytest.mark.parametrize("estimate", [*ESTIMATORS.values(), ob.jensen_shannon])
def test_scores_are_square(estimate):
    with pytest.raises(vx.errors.ShapeError, match=r"scores \[K, K\]"):
        estimate(jnp.zeros((3, 2)))


# ---- variational information bottleneck


def test_vib_traces_the_information_curve():
    """max I(z; y) - beta I(z; x) for Gaussians, I(z; y) = -1/2 log(1 - rho^2 (1 - exp(-2 R)))."""
    rho = 0.9

    @vx.model
    def predictor(t):
        z = vx.sample("z", d.Normal(0.0, jnp.exp(t["r"])))
        vx.sample("y", d.Normal(t["b"] * z, jnp.exp(t["s"])))

    @vx.model
    def encoder(t, x):
        vx.sample("z", d.Normal(t["a"] * x, 1.0))

    def objective(t, beta):
        x = vx.sample("x", d.Normal(0.0, 1.0))
        y = vx.sample("y", d.Normal(rho * x, jnp.sqrt(1 - rho**2)))
        return ob.vib(predictor(t), encoder(t, x), {"y": y}, beta, analytic_kl=True)

    exactly = vx.value_and_grad(objective, using=vx.strategies.Quadrature(3))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 2000))

    @jax.jit
    def fit(beta):
        def step(carry, _):
            t, state = carry
            slope = exactly(KEY, t, beta)[1]
            updates, state = optimizer.update(jax.tree.map(jnp.negative, slope), state)
            return (optax.apply_updates(t, updates), state), None

        t = {"r": jnp.zeros(()), "b": jnp.ones(()), "s": jnp.zeros(()), "a": jnp.ones(())}
        t, _ = jax.lax.scan(step, (t, optimizer.init(t)), None, length=2000)[0]
        return t, exactly(KEY, t, beta)[0]

    entropy = 0.5 * np.log(2 * np.pi * np.e)
    rate = np.linspace(0, 5, 100_001)
    information = -np.log(1 - rho**2 * (1 - np.exp(-2 * rate))) / 2
    for beta in (0.1, 0.3):
        t, value = fit(beta)
        curve = information - beta * rate
        found = np.log(1 + t["a"] ** 2) / 2
        np.testing.assert_allclose(value + entropy, curve.max(), rtol=0.01)
        np.testing.assert_allclose(found, rate[curve.argmax()], rtol=0.01)


# ---- Cauchy-Schwarz


def normal_at_zero(variance):
    """Density at 0 of normals of these covariances."""
    variance = np.atleast_2d(variance)
    return 1 / np.sqrt(np.linalg.det(2 * np.pi * variance))


def quantiles(n):
    return d.Normal(0.0, 1.0).icdf((jnp.arange(n) + 0.5) / n)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_cauchy_schwarz_of_normals(scale):
    """-2 log int p q + log int p^2 + log int q^2, the kernel's variance / 2 added to both."""
    m, s, noise = 0.8, 0.6, scale**2 / 2
    x, y = quantiles(2000)[:, None], m + s * quantiles(1500)[:, None]
    v, w = 1 + noise, s**2 + noise
    cross = np.exp(-(m**2) / 2 / (v + w)) * normal_at_zero(v + w)
    exact = np.log(normal_at_zero(2 * v) * normal_at_zero(2 * w)) - 2 * np.log(cross)
    found = ob.cauchy_schwarz(x, y, ob.rbf(scale))
    np.testing.assert_allclose(found, exact, rtol=5e-3)
    np.testing.assert_allclose(ob.cauchy_schwarz(x, x), 0.0, atol=1e-6)


def test_cauchy_schwarz_information_of_normals():
    """For correlation rho, after the kernels' noise; zero on a product of samples."""
    one, other = (g.ravel() for g in jnp.meshgrid(quantiles(50), quantiles(50)))
    x, t = one[:, None], other[:, None]
    np.testing.assert_allclose(ob.cs_information(x, t), 0.0, atol=1e-5)
    rho, noise = 0.8, 0.5**2 / 2
    kernel = ob.rbf(0.5)
    found = ob.cs_information(x, rho * x + np.sqrt(1 - rho**2) * t, kernel, kernel)
    joint = np.array([[1.0, rho], [rho, 1.0]]) + noise * np.eye(2)
    apart = np.eye(2) * (1 + noise)
    exact = np.log(normal_at_zero(2 * joint) * normal_at_zero(2 * apart))
    exact -= 2 * np.log(normal_at_zero(joint + apart))
    np.testing.assert_allclose(found, exact, rtol=0.03)


def test_cauchy_schwarz_prediction():
    """Zero for perfect predictions; otherwise that of the sums written out."""
    x, y = (jax.random.normal(k, (12, 2)) for k in jax.random.split(KEY))
    y_hat = y + 0.5 * jnp.sin(3 * x)
    np.testing.assert_allclose(ob.cs_prediction(x, y, y), 0.0, atol=1e-5)
    found = ob.cs_prediction(x, y, y_hat, ob.rbf(0.7), ob.rbf(1.3))

    def k(a, b, scale):
        return np.exp(-np.sum((np.asarray(a) - np.asarray(b)) ** 2) / (2 * scale**2))

    def s(a, b):
        total = 0.0
        for j in range(12):
            row = [k(x[j], x[i], 0.7) for i in range(12)]
            total += sum(row[i] * k(a[j], b[i], 1.3) for i in range(12)) / sum(row) ** 2
        return total

    exact = np.log(s(y, y)) + np.log(s(y_hat, y_hat)) - 2 * np.log(s(y_hat, y))
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-6)
    assert found > 0.01


def test_a_bottleneck_trades_prediction_for_compression():
    x = jax.random.normal(KEY, (40, 1))
    y = jnp.sin(2 * x)
    total = ob.cs_bottleneck(x, x, y, y, 0.5)
    np.testing.assert_allclose(total, 0.5 * ob.cs_information(x, x), rtol=1e-4)
    assert ob.cs_bottleneck(x, 0 * x, y, y, 0.5) < 1e-5 < total
    assert ob.cs_bottleneck(x, x, y, 0 * y, 0.0) > 0.05
