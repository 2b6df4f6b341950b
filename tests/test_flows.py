"""Every family of flows: quadrature, Jacobian matrices, plain JAX by hand."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import QUICKLY, Frozen, check_biased, check_mean

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import families

KEY = jax.random.key(0)
MAKE = {
    "planar": lambda: families.planar(KEY, 2, 4, scale=1.0),
    "radial": lambda: families.radial(KEY, 2, 4),
    "coupling": lambda: families.coupling(KEY, 2, 2, width=8),
    "inverse_autoregressive": lambda: families.inverse_autoregressive(KEY, 2, 2, width=8),
    "masked_autoregressive": lambda: families.masked_autoregressive(KEY, 2, 2, width=8),
    "spline": lambda: families.coupling(
        KEY, 2, 2, width=8, transformer=families.rational_quadratic_spline(5, 4)
    ),
}
FAMILIES = pytest.mark.parametrize("name", MAKE)


@functools.cache
def bijection(name, x64=False):
    """Of a family, with parameters that are not those it begins with."""
    with jax.enable_x64(x64):
        floats, rest = eqx.partition(MAKE[name](), eqx.is_inexact_array)
        leaves, tree = jax.tree.flatten(floats)
        keys = jax.random.split(jax.random.key(5), len(leaves))
        size = 0.1 if name == "spline" else 0.3  # what the grid below resolves
        moved = [
            x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
        ]
        return eqx.combine(tree.unflatten(moved), rest)


def base():
    return d.Normal(jnp.array([0.3, -0.2]), jnp.array([1.0, 0.8]))


def flow(b):
    return d.Flow(base(), b)


GRID = np.linspace(-10, 10, 801, dtype=np.float32)
CELL = (GRID[1] - GRID[0]) ** 2


def statistics(y):
    """What is compared of draws and densities."""
    return jnp.stack([y[..., 0], y[..., 1], y[..., 0] ** 2, y[..., 0] * y[..., 1], y[..., 1] ** 2])


@functools.cache
def by_quadrature(name):
    """Integral of the density, of the density without the determinant, and E[statistics]."""
    q = flow(bijection(name))

    @jax.jit
    def run():
        y = jnp.stack(jnp.meshgrid(GRID, GRID), -1).reshape(-1, 2)
        p = jnp.exp(q.log_prob(y)) * CELL
        bare = jnp.exp(q.base_dist.log_prob(q.transforms[0].inv(y))) * CELL
        return p.sum(), bare.sum(), (statistics(y) * p).sum(1)

    return [np.asarray(x) for x in run()]


@pytest.mark.thin(3)
@FAMILIES
def test_the_density_integrates_to_one(name):
    total, bare, _ = by_quadrature(name)
    assert abs(total - 1) < 1e-3
    assert abs(bare - 1) > 1e-2  # the determinant matters here


@pytest.mark.thin(2)
@FAMILIES
def test_draws_follow_the_density(name):
    q, exact = flow(bijection(name)), by_quadrature(name)[2]
    draws = jax.jit(lambda: jax.vmap(q.sample)(jax.random.split(KEY, 50_000)))()
    check_mean(np.asarray(statistics(draws).T), exact)
    unpushed = jax.vmap(q.base_dist.sample)(jax.random.split(KEY, 50_000))
    check_biased(np.asarray(statistics(unpushed).T), exact)


@pytest.mark.thin(2)
@FAMILIES
def test_forward_and_inverse_agree(name, x64):
    """Also with the determinant of the Jacobian matrix, and of two batches at once."""
    q = flow(bijection(name, x64))
    f = q.transforms[0]

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(x):
        y, log_det = f.call_with_intermediates(x)
        back, log_det_back = f.inverse_and_log_det(y)
        jacobian = jax.vmap(jax.vmap(jax.jacfwd(lambda x: f(x))))(x)
        return y, log_det, back, log_det_back, jnp.linalg.slogdet(jacobian)[1]

    x = base().sample(KEY, (3, 4))
    y, log_det, back, log_det_back, exact = run(x)
    tol = {"rtol": 1e-9, "atol": 1e-9} if x64 else {"rtol": 2e-3, "atol": 2e-3}
    np.testing.assert_allclose(back, x, **tol)
    np.testing.assert_allclose(log_det, exact, **tol)
    np.testing.assert_allclose(log_det_back, -exact, **tol)
    np.testing.assert_allclose(q.log_prob(y), base().log_prob(x).sum(-1) - exact, **tol)


def log_p(z):
    return -0.5 * (z**2).sum() - 0.2 * z[0] * z[1] ** 2 * jnp.exp(-0.1 * z[1] ** 2)


@vx.model
def guide(b, estimator=None):
    vx.sample("z", flow(b), estimator=estimator)


def elbo(b, estimator=None):
    q = guide(b, estimator).simulate()
    return log_p(q["z"]) - q.log_density, q["z"]


def forward_elbo(b):
    z, log_q = flow(b).draw("x")
    return log_p(z) - log_q, z


def flat(grads):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)])


@pytest.mark.thin(3)
@FAMILIES
def test_gradients_are_those_of_plain_jax(name):
    """The same noise, and the forward pass written by hand."""
    with jax.enable_x64(True):
        floats, rest = eqx.partition(bijection(name, True), eqx.is_inexact_array)

        def by_hand(floats, x):
            y, log_det = eqx.combine(floats, rest).transform_and_log_det(x)
            return log_p(y) - base().log_prob(x).sum() + log_det

        @functools.partial(jax.jit, compiler_options=QUICKLY)
        def run(floats):
            def of(f, *args):
                return lambda floats: f(eqx.combine(floats, rest), *args)

            ours = [
                vx.value_and_grad(of(*f), has_aux=True)(jax.random.key(1), floats)
                for f in ((elbo,), (forward_elbo,), (elbo, Frozen()))
            ]
            x = flow(eqx.combine(floats, rest)).transforms[0].inv(ours[0][0][1])
            return ours, jax.value_and_grad(by_hand)(floats, x)

        (ours, forward, frozen), (value, slope) = run(floats)
        for (found, _), grads in (ours, forward):
            np.testing.assert_allclose(found, value, rtol=1e-8)
            np.testing.assert_allclose(flat(grads), flat(slope), rtol=1e-6, atol=1e-7)
        assert abs(flat(frozen[1]) - flat(slope)).max() > 1e-2  # the path matters here


@FAMILIES
def test_a_flow_may_be_pathwise(name):
    """The check of soundness goes through every family."""
    pathwise = vx.expect(lambda: elbo(bijection(name), est.Reparam())[0])
    assert jax.eval_shape(pathwise, KEY).shape == ()


def test_a_density_that_jumps_is_refused():
    """A planar flow with a leaky rectifier has a determinant that is constant on either side."""
    from flowjax.bijections import Planar

    leaky = Planar(KEY, dim=2, negative_slope=0.1)
    with pytest.raises(vx.errors.UnsoundEstimatorError, match="Score"):
        jax.eval_shape(lambda: vx.expect(lambda: elbo(leaky, est.Reparam())[0])(KEY))


def test_a_spline_is_continuous_where_its_bins_meet():
    """What its class declares: value and derivative, also at the ends."""
    with jax.enable_x64(True):
        spline = families.rational_quadratic_spline(5, 4)
        floats, rest = eqx.partition(spline, eqx.is_inexact_array)
        moved = jax.tree.map(lambda x: x + jax.random.normal(KEY, x.shape), floats)
        spline = eqx.combine(moved, rest)
        import paramax

        for knots, method in (
            (paramax.unwrap(spline).x_pos, spline.transform_and_log_det),
            (paramax.unwrap(spline).y_pos, spline.inverse_and_log_det),
        ):
            at = jnp.asarray(knots)
            left, right = (jax.vmap(method)(at + e) for e in (-1e-9, 1e-9))
            np.testing.assert_allclose(left[0], right[0], atol=1e-7)
            inside = slice(1, -1)  # outside it is the identity, with slope 1
            np.testing.assert_allclose(left[1][inside], right[1][inside], atol=1e-6)
