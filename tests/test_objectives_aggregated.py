"""Terms of a minibatch: decompositions, moments and distances against exact values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import check_biased, check_mean
from numpyro.distributions.kl import kl_divergence

import varax as vx
from varax import dist as d
from varax import objectives as ob

KEY = jax.random.key(0)
PRIOR = d.Normal(0.0, 1.0)
MEANS = jnp.array([[-1.0, 0.4], [0.3, 0.9], [0.8, -0.5], [1.5, 0.2], [-0.2, -1.1]])  # [5, 2]
SDS = jnp.array([[0.5, 0.9], [0.7, 0.6], [0.4, 0.8], [0.6, 0.5], [0.9, 0.7]])


def q_of(rows=slice(None)):
    return d.Normal(MEANS[rows], SDS[rows])


# ---- total correlation


def on_nodes(n=5, nodes=48):
    """Draws z_i on a quadrature grid of each q(z | x_i): [nodes^2, n, 2], weights [nodes^2]."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    noise = np.stack(np.meshgrid(x, x), -1).reshape(-1, 1, 2)
    weights = np.outer(w, w).ravel() / (2 * np.pi)
    return MEANS[:n] + SDS[:n] * noise, weights


def by_quadrature():
    """The three terms by sums over the five components, in the order of KLTerms."""
    grid, weights = on_nodes()

    def log_terms(z):  # [5, 2], one node of each component
        each = jnp.stack([q_of(j).log_prob(z) for j in range(5)])  # [j, i, d]
        log_q = jax.nn.logsumexp(each.sum(2), 0) - jnp.log(5)
        log_q_d = (jax.nn.logsumexp(each, 0) - jnp.log(5)).sum(1)
        own = q_of().log_prob(z).sum(1)
        log_p = PRIOR.log_prob(z).sum(1)
        return jnp.stack([own - log_q, log_q - log_q_d, log_q_d - log_p]).mean(1)

    return weights @ jax.vmap(log_terms)(grid)


@pytest.mark.slow_in_float64
@pytest.mark.parametrize("weights", ["stratified", "weighted"])
def test_the_three_terms_sum_to_the_divergence(weights, x64):
    """By quadrature on the full data; the sum telescopes for every weighting."""
    grid, w = on_nodes()
    found = jax.vmap(lambda z: jnp.stack(ob.decompose_kl(q_of(), z, PRIOR, 5, weights)))(grid)
    terms = w @ found
    exact = kl_divergence(q_of(), PRIOR).sum(1).mean()
    np.testing.assert_allclose(terms.sum(), exact, atol=1e-6 if x64 else 1e-5)
    if weights == "stratified":
        np.testing.assert_allclose(terms, by_quadrature(), atol=1e-6 if x64 else 1e-4)
        assert (terms > 0).all()


def minibatches(size):
    return np.array(list(itertools.combinations(range(5), size)))


@pytest.mark.thin(2)
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_stratified_weights_are_unbiased(size):
    """For q(z_0), averaged over all minibatches that hold point 0."""
    z = jnp.array([0.2, -0.4])
    exact = jnp.exp(q_of().log_prob(z).sum(1)).mean()
    batches = [b for b in minibatches(size) if 0 in b]

    def estimate(weights):
        rows = jnp.stack([q_of(jnp.array(b)).log_prob(z).sum(1) for b in batches])  # [n, B]
        log_q = jnp.broadcast_to(rows[:, None], (len(rows), size, size))
        found = jax.vmap(lambda x: ob.log_aggregated(x, 5, weights)[0])(log_q)  # 0 comes first
        return jnp.exp(found).mean()

    np.testing.assert_allclose(estimate("stratified"), exact, rtol=1e-5)
    assert abs(estimate("weighted") - exact) > 0.02  # the other weights are not


def test_tc_elbo_is_the_elbo_with_equal_weights():
    z = MEANS + 0.3
    terms = ob.decompose_kl(q_of(), z, PRIOR, 100)
    log_likelihood = jnp.arange(5.0)
    ratio = (q_of().log_prob(z) - PRIOR.log_prob(z)).sum(1)
    elbo = (log_likelihood - ratio).mean()
    np.testing.assert_allclose(ob.tc_elbo(log_likelihood, terms, 1.0), elbo, rtol=1e-5)
    heavier = ob.tc_elbo(log_likelihood, terms, beta=3.0, alpha=0.0, gamma=2.0)
    by_hand = 2 - 3 * terms.total_correlation - 2 * terms.dimension_wise_kl
    np.testing.assert_allclose(heavier, by_hand, rtol=1e-5)


def test_what_cannot_be_decomposed():
    with pytest.raises(vx.errors.ShapeError, match=r"leave out \.to_event"):
        ob.decompose_kl(q_of().to_event(1), MEANS, PRIOR, 5)
    with pytest.raises(vx.errors.ObjectiveError, match="n at least 5"):
        ob.decompose_kl(q_of(), MEANS, PRIOR, 3)
    with pytest.raises(vx.errors.ObjectiveError, match="one of stratified, weighted"):
        ob.log_aggregated(jnp.zeros((5, 5)), 5, "other")
    with pytest.raises(vx.errors.DrawCountError, match="at least 2"):
        ob.log_aggregated(jnp.zeros((1, 1)), 5)


# ---- moments


def dip_by_loops(mean, variance, off, on):
    covariance = np.cov(mean.T, bias=True) + (0 if variance is None else np.diag(variance.mean(0)))
    size = len(covariance)
    total = 0.0
    for i, j in itertools.product(range(size), range(size)):
        total += on * (covariance[i, i] - 1) ** 2 if i == j else off * covariance[i, j] ** 2
    return total


def finite_differences(f, x, step=1e-5):
    found = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        found[at] = (f(up) - f(down)) / (2 * step)
    return found


def test_dip_against_loops_and_finite_differences():
    mean, variance = np.asarray(MEANS, float), np.asarray(SDS, float) ** 2
    with jax.enable_x64(True):
        for objective, plain, args in (
            (ob.dip_i, lambda m: dip_by_loops(m, None, 7.0, 3.0), ()),
            (ob.dip_ii, lambda m: dip_by_loops(m, variance, 7.0, 3.0), (variance,)),
        ):
            value, slope = jax.value_and_grad(objective)(jnp.asarray(mean), *args, 7.0, 3.0)
            np.testing.assert_allclose(value, plain(mean), rtol=1e-12)
            np.testing.assert_allclose(slope, finite_differences(plain, mean), rtol=1e-7)
        slope = jax.grad(ob.dip_ii, 1)(jnp.asarray(mean), jnp.asarray(variance))
        by_hand = finite_differences(lambda v: dip_by_loops(mean, v, 10.0, 10.0), variance)
        np.testing.assert_allclose(slope, by_hand, rtol=1e-7)


def test_dip_of_full_covariances():
    diagonal = jax.vmap(jnp.diag)(SDS**2)
    np.testing.assert_allclose(ob.dip_ii(MEANS, diagonal), ob.dip_ii(MEANS, SDS**2), rtol=1e-6)


def test_dip_has_no_penalty_for_the_identity():
    x = jnp.sqrt(2.0) * jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    np.testing.assert_allclose(ob.dip_i(x), 0.0, atol=1e-10)


# ---- maximum mean discrepancy


@pytest.mark.parametrize("kernel", [ob.rbf(0.8), ob.imq(1.2)], ids=["rbf", "imq"])
def test_mmd_is_unbiased(kernel):
    """Zero in the mean for equal distributions, quadrature for others; a V-statistic is not."""

    def both(key, shift):
        one, other = jax.random.split(key)
        x, y = jax.random.normal(one, (6, 1)), shift + 0.7 * jax.random.normal(other, (5, 1))
        same = jax.random.normal(other, (5, 1))
        squared = (x - x.T) ** 2
        v = kernel(squared).mean() + kernel((same - same.T) ** 2).mean()
        v -= 2 * kernel((x - same.T) ** 2).mean()
        return ob.mmd(x, same, kernel), ob.mmd(x, y, kernel), v

    same, apart, twin = jax.vmap(both, (0, None))(jax.random.split(KEY, 20_000), 1.0)
    z = jnp.linspace(-9.0, 9.0, 601)
    weight = (d.Normal(0.0, 1.0).log_prob(z), d.Normal(1.0, 0.7).log_prob(z))
    p, q = (jnp.exp(w) * (z[1] - z[0]) for w in weight)
    gram = kernel((z[:, None] - z) ** 2)
    check_mean(np.asarray(same), 0.0)
    check_mean(np.asarray(apart), float((p - q) @ gram @ (p - q)))
    check_biased(np.asarray(twin), 0.0)


def test_mmd_of_the_default_kernel_and_of_shapes():
    x, y = jax.random.normal(KEY, (50, 3)), 2.0 + jax.random.normal(KEY, (40, 3))
    assert ob.mmd(x, y) == ob.mmd(x, y, ob.imq(6**0.5)) > 0.1
    with pytest.raises(vx.errors.ShapeError, match=r"x\[:, None\]"):
        ob.mmd(x[:, 0], y[:, 0])
    with pytest.raises(vx.errors.DrawCountError, match="at least 2"):
        ob.mmd(x[:1], y)


def test_infovae_has_the_elbo_as_a_special_case():
    log_likelihood, kl, far = jnp.arange(3.0), jnp.arange(3.0) + 0.5, jnp.asarray(0.7)
    np.testing.assert_allclose(ob.infovae(log_likelihood, kl, far, 0.0, 1.0), 1.0 - 1.5)
    by_hand = 1.0 - 0.75 * 1.5 - (0.25 + 10 - 1) * 0.7
    np.testing.assert_allclose(ob.infovae(log_likelihood, kl, far, 0.25, 10.0), by_hand, rtol=1e-6)


# ---- sliced Wasserstein


def test_sliced_wasserstein_of_normals():
    """In one dimension W2^2 = (m - m')^2 + (s - s')^2; samples on the quantiles."""
    u = (jnp.arange(4000) + 0.5) / 4000
    quantiles = d.Normal(0.0, 1.0).icdf(u)
    x = 0.5 + 1.5 * jax.random.permutation(KEY, quantiles)[:, None]
    y = -0.3 + 0.8 * quantiles[:, None]
    found = vx.seed(lambda: ob.sliced_wasserstein(x, y, 3))(KEY)
    np.testing.assert_allclose(found, 0.8**2 + 0.7**2, rtol=2e-3)


def test_sliced_wasserstein_of_shifted_samples(x64):
    """E_theta (theta' s)^2 = |s|^2 / D, for each number of directions; W2 of 1-D quantiles."""
    x = jax.random.normal(KEY, (20, 4))
    shift = jnp.array([1.0, -0.5, 0.2, 0.0])
    run = jax.vmap(vx.seed(lambda: ob.sliced_wasserstein(x + shift, x, 5)))
    draws = run(jax.random.split(KEY, 20_000))
    exact = float((shift**2).sum() / 4)
    check_mean(np.asarray(draws), exact)
    box = jax.vmap(vx.seed(lambda: in_a_box(x + shift, x, 5)))(jax.random.split(KEY, 20_000))
    check_biased(np.asarray(box), exact)


def in_a_box(x, y, projections):
    """A twin: directions that are not unit vectors."""
    theta = vx.sample("directions", d.Uniform(-jnp.ones((projections, 4)), 1.0))
    return jnp.mean((jnp.sort(x @ theta.T, 0) - jnp.sort(y @ theta.T, 0)) ** 2)


def test_gradients_of_a_minibatch_objective():
    """All terms in one program, under vx.value_and_grad and jit: the guide of InfoVAE's form."""

    def objective(params):
        q = d.Normal(params["mean"], jnp.exp(params["log_sd"]))
        z = vx.sample("z", q)
        prior = vx.sample("prior", d.Normal(jnp.zeros((5, 2)), 1.0))
        far = ob.mmd(z, prior) + ob.sliced_wasserstein(z, prior, 8)
        kl = kl_divergence(q, PRIOR).sum(1)
        tc = ob.decompose_kl(q, z, PRIOR, 50).total_correlation
        dip = ob.dip_ii(q.mean, q.variance, 0.1, 0.1)
        return ob.infovae(-((z - 1) ** 2).sum(1), kl, far, 0.3, 5.0) - tc - dip

    params = {"mean": MEANS, "log_sd": jnp.log(SDS)}
    estimate = jax.jit(vx.value_and_grad(objective))

    def at(step):  # the same draws: a directional derivative
        moved = jax.tree.map(lambda x: x + step * jnp.cos(x), params)
        return estimate(KEY, moved)[0]

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
        slopes = estimate(KEY, params)[1]
        along = sum(
            (g * jnp.cos(x)).sum()
            for g, x in zip(jax.tree.leaves(slopes), jax.tree.leaves(params), strict=True)
        )
        np.testing.assert_allclose((at(1e-6) - at(-1e-6)) / 2e-6, along, rtol=1e-5)


def test_samples_of_different_sizes_have_no_sorted_pairs():
    with pytest.raises(vx.errors.ShapeError, match=r"\[n, D\] and \[n, D\]"):
        vx.seed(lambda: ob.sliced_wasserstein(jnp.zeros((4, 2)), jnp.zeros((5, 2))))(KEY)
