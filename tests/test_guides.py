"""Guides for free, against posteriors that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradient_checks import check_mean

import varax as vx
from varax import dist as d
from varax.ppl.guides import find_start

KEY = jax.random.key(0)
N = 40
RNG = np.random.default_rng(0)
HEIGHT = 1500.0 + 100.0 * RNG.normal(size=N)  # far from zero, on another scale than the others
SHARE = 1e-3 * RNG.normal(size=N)
X = np.stack([np.ones(N), HEIGHT, SHARE], 1)  # [N, 3]
NOISE = 2.0
Y = X @ np.array([3.0, 0.02, 400.0]) + NOISE * RNG.normal(size=N)


@vx.model
def regression():
    beta = vx.sample("beta", d.Normal(jnp.zeros(3), jnp.array([100.0, 1.0, 1e4])))
    vx.sample("y", d.Normal(X @ beta, NOISE), obs=Y)


def exact():
    """Mean, covariance and log evidence of `regression`."""
    prior = np.diag([1e4, 1.0, 1e8])
    cov = np.linalg.inv(X.T @ X / NOISE**2 + np.linalg.inv(prior))
    total = X @ prior @ X.T + NOISE**2 * np.eye(N)
    logdet = np.linalg.slogdet(2 * np.pi * total)[1]
    return cov @ X.T @ Y / NOISE**2, cov, -0.5 * (logdet + Y @ np.linalg.solve(total, Y))


MEAN, COV, EVIDENCE = exact()


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def start(float64):
    return find_start(regression().potential(), KEY)


def test_the_start_is_the_posterior_of_a_linear_model_whatever_the_units(start):
    scale = np.asarray(start.scale)
    sd = np.sqrt(np.diag(COV))
    np.testing.assert_allclose((start.center - MEAN) / sd, 0, atol=1e-6)
    np.testing.assert_allclose(scale @ scale.T / sd / sd[:, None], COV / sd / sd[:, None], 1e-6)
    precision = np.diag(np.linalg.inv(COV))
    np.testing.assert_allclose(start.conditional, 1 / np.sqrt(precision), rtol=1e-6)
    np.testing.assert_allclose(start.elbo, EVIDENCE, atol=0.5)  # 32 draws


@pytest.mark.parametrize("kind", ["full_rank", "structured", "laplace"])
def test_a_guide_that_is_the_posterior_has_the_evidence_as_elbo_without_variance(kind, start):
    guide = vx.autoguide(regression(), kind, start=start)
    params = guide.init(KEY)
    keys = jax.random.split(KEY, 20)
    value, grads = jax.vmap(lambda key: vx.value_and_grad(guide.elbo)(key, params))(keys)
    np.testing.assert_allclose(value, EVIDENCE, atol=1e-5)
    for gradient in jax.tree.leaves(grads):
        np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.thin(2)
@pytest.mark.parametrize("kind", ["mean_field", "low_rank", "flow"])
def test_another_guide_has_a_lower_elbo_and_a_gradient(kind, start):
    guide = vx.autoguide(regression(), kind, start=start, draws=100)
    params = guide.init(KEY)
    value, grads = vx.value_and_grad(guide.elbo)(KEY, params)
    assert value < EVIDENCE - 0.02
    largest = max(jnp.abs(g).max() for g in jax.tree.leaves(grads) if g is not None)
    assert largest > 0.01


def test_mean_field_finds_the_optimal_scales(start):
    """KL(q || p) with independent q is least at sd_i = 1 / sqrt(inv(Cov)_ii)."""
    guide = vx.autoguide(regression(), "mean_field", start=start, draws=16)
    wrong = jax.tree.map(lambda x: x + 0.5, guide.init(KEY))
    schedule = optax.cosine_decay_schedule(0.05, 1000)
    result = vx.fit(guide.elbo, wrong, optax.adam(schedule), 1000, KEY, progress=False)
    q = guide.family.distribution(result.params)
    best = 1 / np.sqrt(np.diag(np.linalg.inv(COV)))
    np.testing.assert_allclose(np.sqrt(q.variance) / best, 1, atol=0.02)
    np.testing.assert_allclose((q.mean - MEAN) / np.sqrt(np.diag(COV)), 0, atol=0.1)


@vx.model
def hierarchy():
    mu = vx.sample("mu", d.Normal(0.0, 5.0))
    tau = vx.sample("tau", d.HalfNormal(5.0))

    def group(y):
        theta = vx.sample("theta", d.Normal(mu, tau))
        vx.sample("y", d.Normal(theta, 3.0), obs=y)

    jax.vmap(group)(jnp.array([4.0, -3.0, 7.0, 1.0]))


KINDS = ["mean_field", "full_rank", "low_rank", "structured", "flow", "laplace"]


@pytest.mark.thin(4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_guide_is_a_measure_over_the_models_choices(kind):
    """Its ELBO is that of `vx.objectives.elbo`, and its two densities agree."""
    guide = vx.autoguide(hierarchy(), kind, draws=2)
    params = guide.init(KEY)
    q = guide(params)
    trace = q.simulate(KEY)
    assert {k: x.shape for k, x in trace.choices.items()} == {"mu": (), "tau": (), "theta": (4,)}
    assert trace["tau"] > 0
    np.testing.assert_allclose(q.log_density(trace.choices), trace.log_density, rtol=1e-6)

    def by_measures(params):
        return vx.objectives.elbo(hierarchy(), guide(params), {})

    keys = jax.random.split(KEY, 4000)
    ours = jax.jit(jax.vmap(lambda k: vx.expect(guide.elbo)(k, params)))(keys)
    theirs = jax.jit(jax.vmap(lambda k: vx.expect(by_measures)(k, params)))(keys)
    check_mean(ours - theirs, 0.0)


def test_a_structured_guide_follows_the_models_graph():
    parents = vx.autoguide(hierarchy(), "structured").family.parents
    expected = np.zeros((6, 6), bool)
    expected[1, 0] = True  # mu and tau have children in common
    expected[2:, :2] = True  # theta_i depends on mu and tau, not on the other lanes
    np.testing.assert_array_equal(parents, expected)


def test_a_structured_guide_of_a_chain_is_a_chain():
    @vx.model
    def walk():
        def step(x, y):
            x = vx.sample("x", d.Normal(x, 1.0))
            vx.sample("y", d.Normal(x, 1.0), obs=y)
            return x, None

        jax.lax.scan(step, 0.0, jnp.arange(5.0))

    guide = vx.autoguide(walk(), "structured")
    np.testing.assert_array_equal(guide.family.parents, np.eye(5, k=-1, dtype=bool))
    value = vx.expect(guide.elbo)(KEY, guide.init(KEY))
    # the posterior is Gaussian with this graph: exact, by the Kalman filter's evidence
    cov = np.minimum.outer(np.arange(1, 6), np.arange(1, 6)) + np.eye(5)
    y = np.arange(5.0)
    evidence = -0.5 * (np.linalg.slogdet(2 * np.pi * cov)[1] + y @ np.linalg.solve(cov, y))
    np.testing.assert_allclose(value, evidence, atol=1e-6)


@pytest.mark.slow
def test_a_structured_guide_is_a_funnel_where_the_posterior_is_one():
    """theta | tau ~ N(0, tau): no Gaussian comes near, conditional normals with scales do."""

    @vx.model
    def funnel():
        tau = vx.sample("tau", d.LogNormal(0.0, 1.0))
        vx.sample("theta", d.Normal(jnp.zeros(3), tau))

    schedule = optax.cosine_decay_schedule(0.05, 1500)
    bounds = {}
    for kind in ("structured", "full_rank"):
        guide = vx.autoguide(funnel(), kind, draws=8)
        result = vx.fit(
            guide.elbo, guide.init(KEY), optax.adam(schedule), 1500, KEY, progress=False
        )
        bounds[kind] = result.history[-200:].mean()
    assert bounds["structured"] > -0.02  # log Z = 0
    assert bounds["full_rank"] < -0.2


@pytest.mark.slow
def test_minibatches():
    """With a function from a batch to a measure, `elbo` has the batch."""

    @vx.model
    def model(rows):
        beta = vx.sample("beta", d.Normal(jnp.zeros(3), jnp.array([100.0, 1.0, 1e4])))
        likelihood = d.Normal(rows["x"] @ beta, NOISE)
        vx.sample("y", vx.scaled(likelihood, N / len(rows["x"])), obs=rows["y"])

    data = {"x": X, "y": Y}
    guide = vx.autoguide(model, "full_rank", batch=data)
    value = vx.expect(guide.elbo)(KEY, guide.init(KEY), data)
    np.testing.assert_allclose(value, EVIDENCE, atol=1e-5)
    result = vx.fit(
        guide.elbo,
        guide.init(KEY),
        optax.adam(1e-3),
        200,
        KEY,
        data=data,
        batch_size=20,
        progress=False,
    )
    q = guide.family.distribution(result.params)
    np.testing.assert_allclose((q.mean - MEAN) / np.sqrt(np.diag(COV)), 0, atol=0.5)


@pytest.mark.slow
def test_an_amortised_guide_learns_every_points_posterior():
    """x ~ N(z, 1), z ~ N(0, 3): the posterior of z is N(0.9 x, 0.9), the evidence N(0, sqrt 10)."""
    x = 3.0 * np.random.default_rng(1).normal(size=256)

    @vx.model
    def point(x):
        z = vx.sample("z", d.Normal(0.0, 3.0))
        vx.sample("x", d.Normal(z, 1.0), obs=x)

    guide = vx.amortise(point, x, width=16, depth=1)
    schedule = optax.cosine_decay_schedule(0.02, 1500)
    result = vx.fit(
        guide.elbo,
        guide.init(KEY),
        optax.adam(schedule),
        1500,
        KEY,
        data=x,
        batch_size=64,
        progress=False,
    )
    evidence = d.Normal(0.0, np.sqrt(10.0)).log_prob(x).mean()
    bound = vx.expect(guide.elbo)(KEY, result.params, x)
    assert evidence - 0.01 < bound < evidence + 0.002
    mean = jax.vmap(lambda x: guide.distribution(result.params, x).mean)(
        jnp.linspace(-6.0, 6.0, 13)
    )
    np.testing.assert_allclose(mean[:, 0], 0.9 * jnp.linspace(-6.0, 6.0, 13), atol=0.1)
    z = guide(result.params, x[0]).simulate(KEY)["z"]
    assert z.shape == ()


# ---- bad input


def test_there_is_no_such_kind():
    with pytest.raises(vx.errors.GuideKindError, match="mean_field, full_rank"):
        vx.autoguide(regression(), "meanfield")


def test_a_model_that_was_not_called():
    with pytest.raises(vx.errors.CapabilityError, match="a model called with its arguments"):
        vx.autoguide(regression, "full_rank")
    with pytest.raises(vx.errors.CapabilityError, match="from a data point"):
        vx.amortise(regression(), X)


def test_nothing_to_guide():
    @vx.model
    def known():
        vx.sample("y", d.Normal(0.0, 1.0), obs=1.0)

    with pytest.raises(vx.errors.GuideKindError, match="a choice to guide"):
        vx.autoguide(known(), "full_rank")


def test_a_discrete_choice():
    @vx.model
    def switch():
        k = vx.sample("k", d.Bernoulli(0.3))
        vx.sample("y", d.Normal(k, 1.0), obs=1.0)

    with pytest.raises(vx.errors.CapabilityError, match="discrete"):
        vx.autoguide(switch(), "mean_field")


def test_a_structured_guide_for_too_many_dimensions():
    @vx.model
    def wide():
        vx.sample("z", d.Normal(jnp.zeros(201), 1.0))

    with pytest.raises(vx.errors.GuideKindError, match="1 to 200 dimensions"):
        vx.autoguide(wide(), "structured")
    guide = vx.autoguide(wide(), "low_rank", rank=2)
    np.testing.assert_allclose(guide.start.center, 0, atol=1e-5)
    np.testing.assert_allclose(guide.start.conditional, 1, rtol=1e-5)


def test_nowhere_finite():
    @vx.model
    def broken():
        x = vx.sample("x", d.Normal(0.0, 1.0))
        vx.sample("y", d.Normal(0.0, jnp.log(0.0 * x)), obs=1.0)

    with pytest.raises(vx.errors.InitialisationError, match="y"):
        vx.autoguide(broken(), "mean_field")


def linear(columns, y):
    """A regression with flat priors."""

    @vx.model
    def model():
        beta = vx.sample("beta", d.ImproperUniform(d.constraints.real, (), (columns.shape[1],)))
        sigma = vx.sample("sigma", d.ImproperUniform(d.constraints.positive, (), ()))
        vx.sample("y", d.Normal(columns @ beta, sigma), obs=y)

    return model()


def test_collinear_predictors():
    columns = np.stack([np.ones(N), HEIGHT, 2 * HEIGHT - 3], 1)
    with pytest.raises(
        vx.errors.UnboundedDensityError,
        match=r"(?s)beta\[1\], beta\[2\] can change together.*collinear",
    ):
        vx.autoguide(linear(columns, Y), "full_rank")
    assert vx.autoguide(linear(columns[:, :2], Y), "full_rank").potential.size == 3


def test_constant_data():
    with pytest.raises(
        vx.errors.UnboundedDensityError, match=r"(?s)still rises.*sigma.*data that are constant"
    ):
        vx.autoguide(linear(np.ones((N, 1)), np.full(N, 3.0)), "full_rank")


def test_amortised_is_a_kind_for_functions_of_a_point():
    @vx.model
    def point(x):
        z = vx.sample("z", d.Normal(0.0, 3.0))
        vx.sample("x", d.Normal(z, 1.0), obs=x)

    guide = vx.autoguide(point, "amortised", batch=np.linspace(-1.0, 1.0, 5))
    assert isinstance(guide, vx.AmortisedGuide)
    with pytest.raises(vx.errors.GuideKindError, match=r"function of one data point"):
        vx.autoguide(regression(), "amortised")
    with pytest.raises(vx.errors.CapabilityError, match="no example"):
        vx.autoguide(point, "amortised")
