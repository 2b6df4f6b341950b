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
