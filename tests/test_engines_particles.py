"""SVGD, IVON and SGLD against posteriors in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradient_checks import FALSE_ALARM
from scipy import stats

import varax as vx
from varax import dist as d
from varax import errors
from varax.ppl.engines.svgd import RBF, Linear

KEY = jax.random.key(0)
COVARIANCE = ((2.0, 0.8), (0.8, 1.0))
M = (1.0, -2.0)  # tuples: JAX 0.10 keeps one device copy of a NumPy array in both precisions


@vx.model
def gaussian():
    vx.sample("x", d.MultivariateNormal(jnp.array(M), jnp.array(COVARIANCE)))


@vx.model
def positive():
    """A Gamma(3, 1) posterior: skewed on R."""
    x = vx.sample("x", d.Gamma(3.0, 1.0))
    vx.deterministic("square", x**2)


def fit(step, steps, params=None, **options):
    return vx.fit(step, params, steps=steps, key=KEY, progress=False, **options)


# ---- SVGD


def test_particles_with_a_linear_kernel_have_a_gaussians_moments(x64):
    """Liu and Wang 2018: at the fixed point mean and covariance are exact."""
    step = vx.engines.SVGD(gaussian(), optax.sgd(0.05), particles=20, kernel=Linear())
    x = fit(step, 1500).params
    tol = 1e-9 if x64 else 1e-3
    np.testing.assert_allclose(x.mean(0), M, atol=tol)
    np.testing.assert_allclose(np.cov(x.T, bias=True), COVARIANCE, atol=tol)


@pytest.mark.slow
def test_particles_with_the_usual_kernel_come_near():
    step = vx.engines.SVGD(gaussian(), optax.adam(0.1), particles=100)
    result = fit(step, 400)
    x = result.params
    np.testing.assert_allclose(x.mean(0), M, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, rtol=0.2)
    # at the fixed point the forces balance: none is left, in a mean that kernels weigh
    log_p = gaussian().potential().log_density
    slopes = jax.vmap(jax.grad(lambda u: log_p({"x": u})))(x)
    k, repulsion = RBF()(x)
    assert abs(k @ slopes + repulsion).max() / len(x) < 0.01
    draws = step.draws(result.state)
    np.testing.assert_array_equal(draws["x"][0], x)
    assert "SVGD, 100 particles" in repr(draws)


def test_coin_betting_needs_no_learning_rate():
    step = vx.engines.SVGD(gaussian(), optax.contrib.cocob(), particles=50)
    x = fit(step, 2000).params
    np.testing.assert_allclose(x.mean(0), M, atol=0.1)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, rtol=0.25)


@pytest.mark.parametrize("kernel", [RBF(0.7), Linear()])
def test_repulsion_is_the_kernels_derivative(kernel):
    x = jax.random.normal(KEY, (5, 2))

    def pair(a, b):
        near = jnp.exp(-((a - b) ** 2).sum() / 0.7)
        return near if isinstance(kernel, RBF) else 1 + a @ b

    k, repulsion = kernel(x)
    exact = jax.vmap(lambda b: jax.vmap(lambda a: pair(a, b))(x))(x)
    np.testing.assert_allclose(k, exact, rtol=1e-5)
    slopes = jax.vmap(lambda b: jax.vmap(lambda a: jax.grad(pair)(a, b))(x).sum(0))(x)
    np.testing.assert_allclose(repulsion, slopes, rtol=1e-4, atol=1e-5)


def test_the_median_bandwidth():
    x = jnp.array([[0.0], [1.0], [3.0]])  # squares of the distances 1, 4, 9
    k, _ = RBF()(x)
    np.testing.assert_allclose(k[0, 1], np.exp(-np.log(4.0) / 4.0), rtol=1e-6)
    assert np.isfinite(RBF()(jnp.ones((3, 2)))[1]).all()  # particles on one point


def test_a_posterior_of_particles_is_a_measure():
    step = vx.engines.SVGD(positive(), optax.adam(0.1), particles=40)
    state = fit(step, 200).state
    q = step.posterior(state)
    trace = q.simulate(KEY)
    draws = step.draws(state)
    np.testing.assert_allclose(trace.value["x"], draws["x"][0, trace["particle"]], rtol=1e-6)
    np.testing.assert_allclose(trace.log_density, -np.log(40.0), rtol=1e-6)
    assert (draws["x"] > 0).all()
    np.testing.assert_allclose(draws["square"], draws["x"] ** 2, rtol=1e-5)


# ---- IVON

CURVE, CENTRE = np.array([0.5, 4.0]), np.array([2.0, -1.0])


def quadratic(w):
    return 0.5 * (CURVE * (w["w"] - CENTRE) ** 2).sum()


def test_ivon_reaches_the_gaussian_of_a_quadratic_loss():
    """N points' mean loss and the prior N(0, 1 / (N delta)): precision N (a + delta), exactly."""
    n, decay = 100.0, 0.1
    step = vx.engines.IVON(
        quadratic,
        data_points=n,
        learning_rate=optax.cosine_decay_schedule(0.2, 6000),
        beta2=0.999,
        weight_decay=decay,
        draws=4,
    )
    result = fit(step, 6000, {"w": np.zeros(2)})
    np.testing.assert_allclose(result.params["w"], CURVE * CENTRE / (CURVE + decay), atol=0.01)
    sd = step.scale(result.state.memory["hessian"])["w"]
    np.testing.assert_allclose(sd, 1 / np.sqrt(n * (CURVE + decay)), rtol=0.04)
    q = step.posterior(result.state)
    assert q.addresses == {"w": (2,)}
    exact = d.Normal(result.params["w"], sd).log_prob(CENTRE).sum()
    np.testing.assert_allclose(q.log_density({"w": CENTRE}), exact, rtol=1e-5)
    assert q.simulate(KEY).value["w"].shape == (2,)


def test_ivon_follows_linear_regression_by_minibatch():
    """Isotropic features: the optimal diagonal Gaussian is the posterior itself (Shen et al.)."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(200, 3)))[0] * np.sqrt(200)  # X^T X = 200 I
    y = x @ [1.0, 0.0, -2.0] + rng.normal(size=200)

    def loss(net, batch):
        x, y = batch
        return 0.5 * ((net["f"](x @ net["layers"][0]["w"]) - y) ** 2).mean()

    step = vx.engines.IVON(
        loss,
        data_points=200,
        learning_rate=optax.cosine_decay_schedule(0.1, 4000),
        beta2=0.999,
        weight_decay=0.01,
        clip_radius=10.0,
    )
    start = {"layers": [{"w": np.zeros(3)}], "f": lambda z: z}
    result = fit(step, 4000, start, data=(x, y), batch_size=50)
    w = result.params["layers"][0]["w"]
    np.testing.assert_allclose(w, x.T @ y / 200 / 1.01, atol=0.02)
    sd = step.scale(result.state.memory["hessian"])["layers"][0]["w"]
    np.testing.assert_allclose(sd, 1 / np.sqrt(200 * 1.01), rtol=0.08)
    q = step.posterior(result.state)
    assert list(q.addresses) == ["layers/0/w"] and callable(q.simulate(KEY).value["f"])


def test_the_curvature_stays_positive():
    """A concave loss: h is pulled below zero and does not pass -delta."""
    step = vx.engines.IVON(
        lambda w: -jnp.cos(w).sum(), data_points=10.0, beta2=0.5, learning_rate=0.0
    )
    state = fit(step, 300, np.array([np.pi])).state
    assert state.memory["hessian"] + step.weight_decay > 0


# ---- SGLD


@pytest.mark.parametrize("precondition", [False, True])
def test_langevin_draws_have_a_gaussians_moments(precondition):
    """Without the preconditioner the law of the Euler scheme on a Gaussian is known exactly.

    With eigenvalue s of the covariance, the stationary variance is s / (1 - rate / (4 s)).
    """
    n, rate = 64, 0.1 if not precondition else 0.02
    step = vx.engines.SGLD(
        gaussian(), rate=rate, chains=n, keep=100, every=20, precondition=precondition, decay=0.999
    )
    draws = step.draws(fit(step, 3000).state)
    assert draws["x"].shape == (n, 100, 2) and draws.stats["lp"].shape == (n, 100)
    of_chains = np.asarray(draws["x"]).mean(1)
    t = stats.t.isf(FALSE_ALARM / 4, n - 1)
    assert (abs(of_chains.mean(0) - M) < t * of_chains.std(0, ddof=1) / 8).all()
    s, vectors = np.linalg.eigh(COVARIANCE)
    euler = (vectors * s / (1 - rate / (4 * s))) @ vectors.T
    x = np.asarray(draws["x"]) - M
    squares = (x[..., :, None] * x[..., None, :]).mean(1).reshape(n, 4)
    error = abs(squares.mean(0) - euler.ravel()) / (squares.std(0, ddof=1) / 8)
    if precondition:
        np.testing.assert_allclose(squares.mean(0).reshape(2, 2), COVARIANCE, rtol=0.2)
    else:
        assert (error < stats.t.isf(FALSE_ALARM / 8, n - 1)).all()
        plain = abs(squares.mean(0) - 1.15 * euler.ravel()) / (squares.std(0, ddof=1) / 8)
        assert (plain > stats.t.isf(FALSE_ALARM / 8, n - 1)).any()  # the test sees 15 per cent


def test_the_last_draws_are_kept_in_order():
    step = vx.engines.SGLD(gaussian(), rate=1e-6, chains=2, keep=3, every=2)
    state, seen = step.init(KEY, np.zeros((2, 2))), []
    for i in range(9):
        state, _ = step.step(jax.random.fold_in(KEY, i), state, None)
        if i % 2:
            seen.append(state.params)
        kept = step.kept(state)
        whole = seen[-(3 if i % 2 or len(seen) < 3 else 2) :]
        assert kept.shape[1] == len(whole)
        for j, x in enumerate(whole):
            np.testing.assert_array_equal(kept[:, j], x)
    assert step.posterior(state).simulate(KEY)["particle"] < 4
    with pytest.raises(errors.StepError, match=r"(?s)kept no draw.*at least 2 steps.*0 steps"):
        step.draws(step.init(KEY, None))


def test_refusals():
    def refuse(match, make):
        with pytest.raises(errors.StepError, match=match):
            make()

    refuse(r"(?s)IVON cannot.*data_points > 0", lambda: vx.engines.IVON(abs, data_points=0))
    refuse("0 <= beta2 < 1", lambda: vx.engines.IVON(abs, data_points=1, beta2=1.0))
    refuse("keep=0", lambda: vx.engines.SGLD(gaussian(), rate=0.1, keep=0))
    svgd = vx.engines.SVGD(gaussian(), optax.sgd(0.1))
    refuse(r"(?s)no particles.*\(2,\)", lambda: svgd.init(KEY, np.zeros(2)))
