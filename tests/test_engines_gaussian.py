"""Gaussian steps: exact on Gaussian posteriors; their moments, retraction and square roots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import check_biased, check_mean

import varax as vx
from varax import dist as d
from varax import errors
from varax.ppl.engines import gaussian

KEY = jax.random.key(0)
A = ((2.0, 0.8, 0.3), (0.8, 1.0, 0.0), (0.3, 0.0, 0.5))  # a precision
M = (1.0, -2.0, 0.5)  # tuples: JAX 0.10 keeps one device copy of a NumPy array in both precisions
Gaussian, Wasserstein = vx.engines.NaturalGradientGaussian, vx.engines.BuresWasserstein


@vx.model
def target():
    law = d.MultivariateNormal(jnp.array(M), precision_matrix=jnp.array(A))
    vx.sample("x", law)


X = np.random.default_rng(0).normal(size=(40, 2))
LABELS = (X @ [1.5, -1.0] + np.random.default_rng(1).logistic(size=40) > 0).astype(int)


@vx.model
def logistic():
    beta = vx.sample("beta", d.Normal(jnp.zeros(2), 1.5))
    vx.sample("y", d.Bernoulli(logits=X @ beta), obs=LABELS)


@vx.model
def positive():
    """A Gamma(5, 2) posterior."""
    vx.sample("rate", d.Gamma(5.0, 2.0))


def fit(step, steps, params=None):
    return vx.fit(step, params, steps=steps, key=KEY, progress=False)


@pytest.mark.parametrize("rank", ["full", "diag"])
def test_a_natural_step_of_rate_one_reaches_a_gaussian_posterior(rank, x64):
    start = {"mean": np.full(3, 5.0), "precision": np.eye(3) if rank == "full" else np.ones(3)}
    step = Gaussian(target(), rate=1.0, rank=rank, draws=2)
    state = fit(step, 1, start).state
    tol = 1e-10 if x64 else 1e-5
    precision = np.array(A) if rank == "full" else np.diag(A)
    np.testing.assert_allclose(state.params["precision"], precision, rtol=tol, atol=tol)
    if rank == "full":  # a diagonal step solves with the diagonal alone
        np.testing.assert_allclose(state.params["mean"], M, rtol=tol, atol=tol)
    last = fit(step, 60, start)
    np.testing.assert_allclose(last.params["mean"], M, rtol=10 * tol, atol=10 * tol)
    if rank == "full":  # log Z of a normalised density is 0, with any draws
        np.testing.assert_allclose(last.history[-1], 0.0, atol=10 * tol)


@pytest.mark.slow
def test_a_wasserstein_flow_converges_linearly_to_a_gaussian_posterior(x64):
    """Diao et al.: the KL falls by a constant factor, and never rises for rates up to 1 / L."""
    top = np.linalg.eigvalsh(A).max()
    step = Wasserstein(target(), rate=1 / top, draws=2)
    start = {"mean": np.full(3, 5.0), "covariance": 9 * np.eye(3)}
    result = fit(step, 150, start)
    tol = 1e-8 if x64 else 1e-4
    np.testing.assert_allclose(result.params["mean"], M, atol=tol)
    np.testing.assert_allclose(result.params["covariance"], np.linalg.inv(A), rtol=tol, atol=tol)
    state, errors_ = step.init(KEY, start), []
    for _ in range(12):
        mean, s = (np.asarray(state.params[k], float) for k in ("mean", "covariance"))
        kl = 0.5 * ((np.array(A) * s).sum() - 3 + (mean - M) @ A @ (mean - M))
        errors_.append(kl - 0.5 * np.linalg.slogdet(np.array(A) @ s)[1])
        state, _ = step.step(KEY, state, None)
    assert (np.diff(errors_) < 0).all()


def optimum():
    """Mean and covariance of the best Gaussian for `logistic`, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    mean, precision = np.zeros(2), np.eye(2)
    for _ in range(60):
        s = np.linalg.inv(precision)
        at, sd = X @ mean, np.sqrt(np.einsum("ni,ij,nj->n", X, s, X))
        p = 1 / (1 + np.exp(-(at[:, None] + sd[:, None] * nodes)))
        precision = X.T @ (X * ((p * (1 - p)) @ weights)[:, None]) + np.eye(2) / 1.5**2
        mean = mean - np.linalg.solve(precision, X.T @ (p @ weights - LABELS) + mean / 1.5**2)
    return mean, precision


@pytest.mark.parametrize("hessian", ["exact", "stein"])
@pytest.mark.parametrize("kind", [Gaussian, Wasserstein])
def test_logistic_regression_finds_the_best_gaussian(kind, hessian):
    mean, precision = optimum()
    s = np.linalg.inv(precision)
    rate = {Gaussian: lambda t: 0.5 / (1 + t / 50), Wasserstein: lambda t: 0.06 / (1 + t / 50)}
    step = kind(logistic(), rate=rate[kind], draws=32, hessian=hessian)
    result = fit(step, 1500)
    found = result.params.get("covariance")
    found = np.linalg.inv(result.params["precision"]) if found is None else found
    sd = np.sqrt(np.diag(s))
    assert (abs(result.params["mean"] - mean) < 0.05 * sd).all()
    tol = 0.03 if hessian == "exact" else 0.12  # a noise of the last steps
    np.testing.assert_allclose(found / np.outer(sd, sd), s / np.outer(sd, sd), atol=tol)


def test_the_posterior_is_a_measure_of_the_choices():
    """Its density is that of the Gaussian's image, and its own draws have it."""
    step = Gaussian(positive(), draws=16, rate=lambda t: 0.5 / (1 + t / 50))
    state = fit(step, 300).state
    q = step.posterior(state)
    assert q.addresses == {"rate": ()}
    mean, sd = state.params["mean"][0], 1 / np.sqrt(state.params["precision"][0, 0])
    exact = d.LogNormal(mean, sd).log_prob(3.0)
    np.testing.assert_allclose(q.log_density({"rate": 3.0}), exact, rtol=1e-5)
    trace = q.simulate(KEY)
    np.testing.assert_allclose(trace.log_density, q.log_density(trace.choices), rtol=1e-5)
    # of log x for x ~ Gamma(a, b), E_q[b e^u] = a and the precision is a
    np.testing.assert_allclose(2 * np.exp(mean + sd**2 / 2), 5.0, rtol=0.03)
    np.testing.assert_allclose(sd**-2, 5.0, rtol=0.06)
    diagonal = Gaussian(target(), rank="diag")
    start = diagonal.init(KEY, None)
    assert diagonal.posterior(start).simulate(KEY)["x"].shape == (3,)
    flow = Wasserstein(target())
    assert flow.posterior(flow.init(KEY, None)).simulate(KEY)["x"].shape == (3,)


def quartic(u):
    return -0.1 * (u**4).sum() - 0.5 * u[0] * u[1] ** 2 + u[1]


MEAN, ROOT = np.array([0.3, -0.5]), np.array([[0.8, 0.0], [0.3, 0.5]])


def by_quadrature(root):
    """E_q of gradient and Hessian of -log p, flat."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    w = np.outer(weights, weights).ravel() / weights.sum() ** 2
    with jax.enable_x64(True):
        x = jnp.asarray(MEAN + grid @ root.T)
        g, h = jax.vmap(jax.grad(quartic))(x), jax.vmap(jax.hessian(quartic))(x)
        return -np.concatenate([w @ g, np.einsum("n,nij->ij", w, h).ravel()])


@pytest.mark.thin(2)
@pytest.mark.parametrize("hessian", ["exact", "stein"])
@pytest.mark.parametrize("rank", ["full", "diag"])
def test_moments_are_unbiased(hessian, rank):
    root = ROOT if rank == "full" else np.diag([0.8, 0.5])
    scale = root if rank == "full" else np.diag(root)
    exact = by_quadrature(root)
    keep = np.arange(6) if rank == "full" else np.array([0, 1, 2, 5])

    def one(key, twist):
        found = gaussian.moments(
            lambda u: quartic(u) * twist, jnp.asarray(MEAN), jnp.asarray(scale), key, 2, hessian
        )
        return jnp.concatenate([found.gradient, found.hessian.ravel()])

    keys = jax.random.split(KEY, 20_000)
    draws = np.asarray(jax.jit(jax.vmap(one, (0, None)))(keys, 1.0))
    check_mean(draws, exact[keep])
    check_biased(draws * 1.05, exact[keep])


def test_precisions_stay_positive_and_square_roots_are_roots(x64):
    tol = 1e-10 if x64 else 1e-4
    root = np.asarray(gaussian.square_root(jnp.array(A)))
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(A), rtol=tol, atol=tol)
    np.testing.assert_allclose(root, np.tril(root))
    hessian = jnp.array(A) - 3 * jnp.eye(3)  # not positive: the plain step leaves the cone
    assert np.linalg.eigvalsh(hessian).min() < 0
    for rate in (0.1, 1.0):
        new = gaussian.next_precision(jnp.array(A), hessian, rate)
        assert np.linalg.eigvalsh(new).min() > 0
    small = 0.2  # a step that is sound is taken as it is
    new = gaussian.next_precision(jnp.array(A), jnp.eye(3), small)
    exact = (1 - small) * np.array(A) + small * np.eye(3)
    np.testing.assert_allclose(new, exact, rtol=tol, atol=tol)
    # continued with the same value and slope
    at, slope = jax.value_and_grad(gaussian.retract)(-gaussian.KEPT - 1e-6)
    np.testing.assert_allclose([at, slope], [1 - gaussian.KEPT, 1.0], atol=1e-3)
    assert (gaussian.next_precision(jnp.ones(2), jnp.array([-50.0, 2.0]), 1.0) > 0).all()


def test_minibatches_estimate_the_whole_posterior():
    """A mean of N(theta, 1) data with a conjugate prior, ten points a step out of 200."""
    y = np.random.default_rng(2).normal(1.0, 1.0, 200)

    @vx.model
    def model(batch):
        theta = vx.sample("theta", d.Normal(0.0, 1.0))
        law = d.Normal(jnp.broadcast_to(theta, batch.shape), 1.0)
        vx.sample("y", vx.scaled(law, 200 / len(batch)), obs=batch)

    step = Gaussian(model, rate=lambda t: 1 / (1 + t), draws=2)
    start = {"mean": np.zeros(1), "precision": np.eye(1)}
    result = vx.fit(step, start, steps=400, key=KEY, data=y, batch_size=10, progress=False)
    np.testing.assert_allclose(result.params["precision"], [[201.0]], rtol=1e-3)
    np.testing.assert_allclose(result.params["mean"], y.sum() / 201, atol=0.01)
    with pytest.raises(errors.StepError, match=r"(?s)needs all data.*step.posterior\(state, model"):
        step.posterior(result.state)
    assert step.posterior(result.state, model(y)).addresses == {"theta": ()}
    with pytest.raises(errors.StepError, match="there are no data"):
        vx.fit(step, start, steps=1, key=KEY, progress=False)
    with pytest.raises(errors.StepError, match="needs all data, or a start"):
        vx.fit(step, None, steps=1, key=KEY, data=y, progress=False)


def test_refusals():
    def refuse(match, make):
        with pytest.raises(errors.StepError, match=match):
            make()

    refuse(r"(?s)no posterior.*model\(data\)", lambda: Gaussian(3))
    refuse(r'(?s)"full" or "diag".*low', lambda: Gaussian(target(), rank="low"))
    refuse(r"(?s)hessian=None, draws=0", lambda: Gaussian(target(), draws=0))
    refuse(r'(?s)hessian "exact", "stein"', lambda: Wasserstein(target(), hessian="numerical"))
    start = {"mean": np.zeros(3), "precision": np.ones(3)}
    refuse(r"(?s)no precisions.*\(3, 3\).*\(3,\)", lambda: Gaussian(target()).init(KEY, start))
    refuse(r"(?s)no means", lambda: Gaussian(target()).init(KEY, {"mean": np.zeros((3, 1))}))
