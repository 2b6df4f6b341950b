"""Path derivatives of a flow's density: `d.Flow.draw(address, path=True)`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import check_biased, check_mean, estimates, exactly
from test_flows_forward import KEY, THETA, expectation, plain, stretched

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import families


def forward(theta, path, target=None):
    y, log_q = stretched(theta).draw("z", path=path)
    return (y[0] ** 2 if target is None else target.log_prob(y)) - log_q


def test_a_path_derivative_is_unbiased_and_leaves_the_value():
    whole, path = (lambda t, p=p: forward(t, p) for p in (False, True))
    theta = jnp.array(THETA)
    np.testing.assert_allclose(vx.expect(path)(KEY, theta), vx.expect(whole)(KEY, theta))
    (draws,) = estimates([path], THETA, plain)
    check_mean(draws, exactly(expectation, THETA))


def test_without_its_jacobian_a_path_derivative_is_biased():
    """The broken twin: the score at the noise in the place of the score at the value."""

    def wrong(theta):
        flow = stretched(theta)
        x = vx.sample("z", flow.base_dist, estimator=est.Reparam())
        y, _ = flow.forward(x)
        score = jax.lax.stop_gradient(jax.grad(flow.base_dist.log_prob)(x))
        return y[0] ** 2 - (score * y).sum()

    (draws,) = estimates([wrong], THETA, plain)
    check_biased(draws, exactly(expectation, THETA))


def test_a_path_derivative_has_no_variance_where_the_flow_is_the_target():
    theta = jnp.array(THETA)
    target = stretched(theta)
    keys = jax.random.split(KEY, 100)
    for path in (False, True):
        f = lambda t, path=path: forward(t, path, target)  # noqa: E731
        values, grads = jax.vmap(lambda key, f=f: vx.value_and_grad(f)(key, theta))(keys)
        np.testing.assert_allclose(values, 0, atol=1e-5)
        assert (jnp.abs(grads).max() < 1e-4) == path


def network(spline):
    transformer = families.rational_quadratic_spline() if spline else None
    return families.inverse_autoregressive(KEY, 3, 1, transformer=transformer)


@pytest.mark.thin(2)
@pytest.mark.parametrize("spline", [False, True])
def test_the_score_of_a_draw_is_that_of_the_inverse(spline):
    flow = d.Flow(d.Normal(jnp.zeros(3), 1.0), network(spline))
    x = jax.random.normal(jax.random.key(1), (3,))
    exact = jax.grad(flow.log_prob)(flow.forward(x)[0])
    np.testing.assert_allclose(flow.score_at(x), exact, rtol=1e-4, atol=1e-5)


def test_networks_of_relus_have_path_derivatives():
    """Their Jacobians jump, and no objective sees that."""

    def objective(b, path):
        y, log_q = d.Flow(d.Normal(jnp.zeros(3), 1.0), b).draw("z", path=path)
        return -((y - 1) ** 2).sum() - log_q

    flow, keys = network(spline=False), jax.random.split(KEY, 1000)

    def gradients(path):
        one = lambda key: vx.value_and_grad(lambda b: objective(b, path))(key, flow)[1]  # noqa: E731
        leaves = jax.tree.leaves(jax.jit(jax.vmap(one))(keys))
        return jnp.concatenate([g.reshape(len(keys), -1) for g in leaves], 1)

    check_mean(gradients(True) - gradients(False), 0.0)
