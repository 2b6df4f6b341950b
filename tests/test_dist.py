"""Varax's own distributions against closed forms, above all where NumPyro's gradients are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from scipy import stats

import varax as vx
from varax import dist as d
from varax.transforms.law import Law
from varax.transforms.site import make_site

LOGITS = np.array([-30.0, -2.0, -1e-6, 0.0, 1e-6, 2.0, 30.0])


@pytest.mark.parametrize("value", [0, 1])
def test_bernoulli_logits(value, x64):
    p = 1 / (1 + np.exp(-LOGITS))
    log_prob = lambda l: d.Bernoulli(logits=l).log_prob(value)  # noqa: E731
    exact = -np.logaddexp(0, -LOGITS) if value else -np.logaddexp(0, LOGITS)
    np.testing.assert_allclose(jax.vmap(log_prob)(LOGITS), exact, rtol=1e-10 if x64 else 1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(log_prob))(LOGITS), value - p, atol=1e-7)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(jax.grad(log_prob)))(LOGITS), -p * (1 - p), atol=1e-7
    )


@pytest.mark.parametrize("value", [0, 3, 10])
def test_binomial_logits(value, x64):
    p = 1 / (1 + np.exp(-LOGITS))
    log_prob = lambda l: d.Binomial(10, logits=l).log_prob(value)  # noqa: E731
    exact = stats.binom.logpmf(value, 10, p)[1:-1]  # p rounds to 0 and 1 at the ends
    np.testing.assert_allclose(jax.vmap(log_prob)(LOGITS)[1:-1], exact, rtol=1e-9 if x64 else 2e-5)
    np.testing.assert_allclose(jax.vmap(jax.grad(log_prob))(LOGITS), value - 10 * p, atol=1e-5)


def test_infinite_logits_and_values_outside():
    sure = d.Bernoulli(logits=jnp.array([jnp.inf, -jnp.inf]), validate_args=False)
    np.testing.assert_array_equal(sure.log_prob(jnp.array([1, 0])), [0.0, 0.0])
    np.testing.assert_array_equal(sure.log_prob(jnp.array([0, 1])), [-jnp.inf, -jnp.inf])
    assert abs(d.Binomial(3, logits=jnp.inf, validate_args=False).log_prob(3)) < 1e-6
    assert d.Binomial(3, logits=-jnp.inf, validate_args=False).log_prob(1) == -jnp.inf
    relaxed = d.Bernoulli(logits=0.3, validate_args=False)
    ends = relaxed.log_prob(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(relaxed.log_prob(0.25), ends @ jnp.array([0.75, 0.25]), rtol=1e-6)
    assert relaxed.log_prob(1.5) == relaxed.log_prob(-0.5) == relaxed.log_prob(2) == -jnp.inf
    assert d.Binomial(3, logits=0.3, validate_args=False).log_prob(4) == -jnp.inf


def test_the_reason_for_our_own():
    """NumPyro's gradient at zero; when this fails, NumPyro is mended and ours can go."""
    theirs = jax.grad(lambda l: npd.Bernoulli(logits=l).log_prob(1))(0.0)
    ours = jax.grad(lambda l: d.Bernoulli(logits=l).log_prob(1))(0.0)
    assert theirs == 1.0 and ours == 0.5


def test_the_rest_is_numpyro():
    assert d.Normal is npd.Normal and d.constraints is npd.constraints
    assert isinstance(d.Bernoulli(0.3), npd.BernoulliProbs)
    assert isinstance(d.Binomial(3, 0.3), npd.BinomialProbs)
    assert d.Binomial(3, logits=jnp.zeros(2)).to_event(1).log_prob(jnp.zeros(2)).shape == ()


@pytest.mark.parametrize("law", [{"probs": 0.3}, {"logits": -0.8}], ids=str)
def test_relaxed_coins_have_a_finite_density(law):
    """REBAR evaluates a model between the values of the support."""
    from varax import estimators as est

    def program(t):
        z = vx.sample("z", d.Bernoulli(logits=t), estimator=est.REBAR(0.5))
        return d.Bernoulli(**law).log_prob(z)

    draws = jax.vmap(lambda key: vx.grad(program)(key, 0.4))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    p, ends = jax.nn.sigmoid(0.4), d.Bernoulli(**law).log_prob(jnp.array([0, 1]))
    exact = p * (1 - p) * (ends[1] - ends[0])
    assert abs(draws.mean() - exact) < 5 * draws.std() / np.sqrt(20_000)


def test_a_support_that_depends_on_an_array_is_not_remembered():
    def law(n, logits):
        return Law(*make_site(("x",), "draw", d.Binomial(n, logits=logits)))

    counts = [jnp.array(n) for n in (3, 5)]

    def sizes(logits):
        return [len(law(n, logits).element_support()) for n in counts]

    assert jax.jit(lambda logits: jnp.array(sizes(logits)))(0.0).tolist() == [4, 6]


# ---- improper densities


def test_flat_is_one_on_its_support():
    assert d.Flat().log_prob(1e30) == 0 and d.Flat(3).log_prob(jnp.arange(3.0)).shape == (3,)
    positive = d.Flat((2,), d.constraints.positive)
    np.testing.assert_array_equal(positive.log_prob(jnp.array([0.5, -0.5])), [0.0, -np.inf])
    ordered = d.Flat((2, 3), d.constraints.ordered_vector)
    assert ordered.batch_shape == (2,) and ordered.event_shape == (3,)
    rows = jnp.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    np.testing.assert_array_equal(ordered.log_prob(rows), [0.0, -np.inf])


def test_restricted_is_its_base_inside():
    base = d.Normal(jnp.array([0.0, 1.0, 2.0]), 2.0)
    cut = d.Restricted(base, d.constraints.ordered_vector)
    assert cut.batch_shape == () and cut.event_shape == (3,)
    inside = np.array([-1.0, 0.5, 3.0])
    exact = stats.norm.logpdf(inside, [0, 1, 2], 2).sum()
    np.testing.assert_allclose(cut.log_prob(inside), exact, rtol=1e-6)
    assert cut.log_prob(inside[::-1]) == -np.inf
    one_by_one = d.Restricted(base, d.constraints.positive)
    assert one_by_one.batch_shape == (3,)
    exact = np.array([-np.inf, *stats.norm.logpdf(inside[1:], [1, 2], 2)])
    np.testing.assert_allclose(one_by_one.log_prob(inside), exact, rtol=1e-6)
    joint = d.Restricted(base.to_event(1), d.constraints.positive)
    assert joint.event_shape == (3,) and joint.log_prob(inside) == -np.inf
    np.testing.assert_allclose(
        joint.log_prob(abs(inside)), stats.norm.logpdf(abs(inside), [0, 1, 2], 2).sum(), rtol=1e-6
    )


@vx.model
def triangle():
    """Uniform on a > 0, b > 0, a + b < 1, its density 1 and not 2; and two ordered numbers."""
    a = vx.sample("a", d.Flat(support=d.constraints.unit_interval))
    vx.sample("b", d.Flat(support=d.constraints.interval(0.0, 1.0 - a)))
    vx.sample("mu", d.Restricted(d.Normal(jnp.zeros(2), 1.0), d.constraints.ordered_vector))


def test_improper_choices_in_a_program():
    inside = {"a": 0.3, "b": 0.6, "mu": np.array([-0.4, 0.2])}
    exact = stats.norm.logpdf(inside["mu"]).sum()
    np.testing.assert_allclose(triangle().log_density(inside), exact, rtol=1e-6)
    with pytest.raises(vx.errors.SupportError, match=r"address: +mu"):
        triangle().log_density(inside | {"mu": np.array([1.0, 0.0])})
    assert jax.jit(lambda b: triangle().log_density(inside | {"b": b}))(0.8) == -np.inf
    lanes = lambda: jax.vmap(  # noqa: E731
        lambda top: vx.sample("z", d.Flat(support=d.constraints.interval(0.0, top)))
    )(jnp.array([1.0, 2.0]))
    lanes = vx.model(lanes)()
    assert jax.jit(lanes.log_density)({"z": jnp.array([0.5, 1.5])}) == 0
    assert jax.jit(lanes.log_density)({"z": jnp.array([1.5, 0.5])}) == -np.inf


def test_the_mass_of_improper_choices_on_the_unconstrained_space():
    """The integral of exp(-potential) is the area of the support: 1/2, and 1/2 of the normals."""
    with jax.enable_x64(True):
        potential = triangle().potential()
        grid = jnp.linspace(-12, 12, 61)
        a, b = (x.ravel() for x in jnp.meshgrid(grid, grid))
        mu, gap = (x.ravel() for x in jnp.meshgrid(jnp.linspace(-8, 8, 61), grid))
        density = jax.jit(jax.vmap(lambda u: jnp.exp(-potential(u))))
        one = density({"a": a, "b": b, "mu": jnp.zeros((a.size, 2))}).sum() * 0.4**2
        at_zero = density({"a": a[:1] * 0, "b": b[:1] * 0, "mu": jnp.zeros((1, 2))})[0]
        u = {"a": jnp.zeros(mu.size), "b": jnp.zeros(mu.size), "mu": jnp.stack([mu, gap], 1)}
        two = density(u).sum() * (16 / 60) * 0.4
        np.testing.assert_allclose(one * two / at_zero, 0.25, rtol=1e-4)


def test_improper_choices_cannot_be_drawn():
    for law in (d.Flat(), d.Restricted(d.Normal(0.0, 1.0), d.constraints.positive)):
        alone = vx.model(lambda law=law: vx.sample("x", law))()
        with pytest.raises(vx.errors.CapabilityError, match=r"(?s)no sampler.*address: +x"):
            alone.simulate(jax.random.key(0))
        assert alone.capabilities == {vx.Capability.UNNORMALISED}
        assert alone.condition({"x": 1.0}).capabilities == {vx.Capability.UNNORMALISED}
    theirs = vx.model(lambda: vx.sample("x", d.ImproperUniform(d.constraints.real, (), ())))()
    assert theirs.capabilities == {vx.Capability.UNNORMALISED}
    with pytest.raises(vx.errors.ShapeError, match=r"(?s)fewer axes than its support.*at least 1"):
        d.Flat((), d.constraints.simplex)
    with pytest.raises(vx.errors.ShapeError, match="fewer axes than its support"):
        d.Restricted(d.Normal(0.0, 1.0), d.constraints.ordered_vector)


SOME, FEW = jnp.array([True, False, True]), jnp.array([True, False])
MASKED = {
    "independent": lambda: d.Normal(jnp.zeros(3), 1.0).mask(SOME).to_event(1),
    "expanded": lambda: d.Normal(jnp.zeros(3), 1.0).mask(SOME).expand([2, 3]),
    "independent, expanded": lambda: d.Normal(jnp.zeros(3), 1.0).mask(SOME).to_event(1).expand([2]),
    "over an event": lambda: d.Normal(jnp.zeros((2, 3)), 1.0).to_event(1).mask(FEW),
    "of vectors": lambda: d.MultivariateNormal(jnp.zeros((2, 3)), jnp.eye(3)).mask(FEW),
    "twice": lambda: d.Normal(jnp.zeros((2, 3)), 1.0).mask(SOME).to_event(1).mask(FEW),
    "a column": lambda: d.Normal(jnp.zeros((2, 1)), 1.0).mask(FEW[:, None]).expand([2, 3]),
    "nothing": lambda: d.Normal(jnp.zeros(3), 1.0).mask(False).to_event(1),
}


@pytest.mark.parametrize("name", MASKED)
def test_numpyros_masks_count_under_copies(name):
    """A density is NumPyro's, wherever its mask stands among `to_event` and `expand`."""
    law = MASKED[name]()

    @vx.model
    def program():
        vx.sample("x", law)

    x = jax.random.normal(jax.random.key(0), law.shape())
    unmasked = d.Normal(0.0, 1.0).log_prob(x).sum()
    found = program().log_density({"x": x})
    np.testing.assert_allclose(found, law.log_prob(x).sum(), rtol=1e-5)
    assert abs(found - unmasked) > 0.1


def test_integers_given_as_floats_are_integers():
    """Known ones, all of them whole."""

    @vx.model
    def program(k):
        vx.sample("p", d.Normal(0.0, 1.0))
        vx.sample("k", d.Categorical(probs=jnp.array([0.2, 0.3, 0.5])), obs=k)
        vx.sample("n", d.Poisson(2.0))

    exact = program(2).log_density({"p": 0.0, "n": 3})
    found = program(np.float64(2.0)).log_density({"p": 0.0, "n": np.float32(3.0)})
    np.testing.assert_allclose(found, exact)
