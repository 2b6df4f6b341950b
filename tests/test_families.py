"""Flows in programs, mixtures, implicit distributions and what the documents say about them."""

import dataclasses
import re
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import NoScore, check, check_biased, check_mean, estimates, exactly
from scipy import stats

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import families

KEY = jax.random.key(0)
BASE = d.Normal(jnp.zeros(2), 1.0)
PLANAR = families.planar(KEY, 2, 3, scale=0.8)


# ---- flows in programs


def test_each_lane_has_its_own_parameters_and_draw():
    """An amortised planar flow: its arrays are a network's output."""
    net = 0.5 * jax.random.normal(KEY, (5, 3))
    inputs = jax.random.normal(jax.random.key(1), (7, 3))

    def flow(x):
        return d.Flow(BASE, families.Planar(*jnp.split(net @ x, [2, 4])))

    @vx.model
    def plate():
        jax.vmap(lambda x: vx.sample("z", flow(x)))(inputs)

    trace = plate().simulate(KEY)
    assert trace["z"].shape == (7, 2)
    each = [flow(x).log_prob(z) for x, z in zip(inputs, trace["z"], strict=True)]
    np.testing.assert_allclose(trace.log_density, sum(each), rtol=1e-5)
    np.testing.assert_allclose(plate().log_density(trace.choices), sum(each), rtol=1e-5)
    noise = jnp.stack(
        [flow(x).transforms[0].inv(z) for x, z in zip(inputs, trace["z"], strict=True)]
    )
    assert len(np.unique(noise.round(4), axis=0)) == 7


def test_a_condition_is_that_of_its_lane():
    bijection = families.inverse_autoregressive(KEY, 2, 2, condition_dim=3, width=8)
    floats, rest = eqx.partition(bijection, eqx.is_inexact_array)
    bijection = eqx.combine(jax.tree.map(lambda x: x + 0.2, floats), rest)
    conditions = jax.random.normal(KEY, (4, 3))
    y = jax.random.normal(jax.random.key(1), (4, 2))

    @vx.model
    def plate():
        jax.vmap(lambda c: vx.sample("y", d.Flow(BASE, bijection, c)))(conditions)

    x, log_det = jax.vmap(bijection.inverse_and_log_det)(y, conditions)
    exact = BASE.log_prob(x).sum() + log_det.sum()
    np.testing.assert_allclose(plate().log_density({"y": y}), exact, rtol=1e-5)
    swapped = plate().log_density({"y": y[::-1]})
    assert abs(swapped - exact) > 0.01


def test_observed_masked_scaled_and_batched():
    flow = d.Flow(BASE, PLANAR)
    y = jnp.array([0.4, -1.0])
    lp = flow.log_prob(y)

    @vx.model
    def program(mask):
        vx.sample("seen", flow, obs=y)
        vx.sample("half", vx.scaled(flow, 0.5))
        vx.sample("maybe", vx.masked(flow, mask))

    for mask, total in ((True, 2.5 * lp), (False, 1.5 * lp)):
        found = program(mask).log_density({"half": y, "maybe": y})
        np.testing.assert_allclose(found, total, rtol=1e-5)
    np.testing.assert_allclose(flow.log_prob(jnp.stack([y, 2 * y]))[0], lp, rtol=1e-5)
    assert flow.sample(KEY, (3, 4)).shape == (3, 4, 2) and flow.batch_shape == ()
    draw, parts = flow.sample_with_intermediates(KEY)
    np.testing.assert_allclose(flow.log_prob(draw, parts), flow.log_prob(draw), rtol=1e-4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Affine:
    """y = exp(w) x + b, with the fields of a planar flow."""

    w: jax.Array
    u: jax.Array
    b: jax.Array
    shape, cond_shape = (2,), None

    def transform_and_log_det(self, x, condition=None):
        return jnp.exp(self.w) * x + self.b, self.w.sum()

    def inverse_and_log_det(self, y, condition=None):
        return (y - self.b) * jnp.exp(-self.w), -self.w.sum()


def test_bijections_with_the_same_fields_are_not_taken_for_each_other():
    """JAX's tree structures of dataclasses are equal where the fields are."""
    arrays = (jnp.array([0.3, -0.5]), jnp.array([1.0, 0.2]), jnp.array(0.1))
    y = jnp.array([0.4, -1.0])

    @vx.model
    def program(bijection):
        vx.sample("y", d.Flow(BASE, bijection))

    for make in (families.Planar, Affine, families.Planar):
        x, log_det = make(*arrays).inverse_and_log_det(y)
        exact = BASE.log_prob(x).sum() + log_det
        found = program(make(*arrays)).log_density({"y": y})
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_a_flow_on_a_base_with_parameters_is_trained_in_both():
    def elbo(t):
        flow = d.Flow(d.Normal(t[:2], jnp.exp(t[2:4])), PLANAR)
        z, log_q = flow.draw("x")
        return -0.5 * (z**2).sum() - log_q

    def exact(t, nodes=80):
        x, w = np.polynomial.hermite_e.hermegauss(nodes)
        x, w = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2), np.outer(w, w).ravel()
        planar = jax.tree.map(lambda p: p.astype(t.dtype), PLANAR)

        def inside(x):
            z, log_det = planar.transform_and_log_det(t[:2] + jnp.exp(t[2:4]) * x)
            return -0.5 * (z**2).sum() + log_det

        entropy = 1 + np.log(2 * np.pi) + t[2:4].sum()
        return jax.vmap(inside)(jnp.asarray(x)) @ jnp.asarray(w / w.sum()) + entropy

    theta = (0.3, -0.2, 0.1, -0.3)
    (draws,) = estimates([elbo], theta, draws=20_000)
    check_mean(draws, exactly(exact, theta))


def test_other_strategies_and_replay_see_the_noise():
    def program(t):
        z = vx.sample("z", d.Flow(d.Normal(t, 1.0), PLANAR))
        return (z**2).sum()

    t = jnp.array([0.2, -0.1])
    points = jax.random.normal(KEY, (100_000, 2))
    draws = jax.vmap(lambda x: (PLANAR.transform_and_log_det(t + x)[0] ** 2).sum())(points)

    def drawn(t):
        return (d.Flow(d.Normal(t, 1.0), PLANAR).draw("x")[0] ** 2).sum()

    for f in (program, drawn):
        found = vx.expect(f, using=vx.strategies.QuasiMonteCarlo(4096))(KEY, t)
        assert abs(found - draws.mean()) < 5 * draws.std() / np.sqrt(100_000) + 1e-2

    @vx.model
    def chain():
        a = vx.sample("a", d.Normal(0.0, 1.0))
        vx.sample("z", d.Flow(d.Normal(jnp.stack([a, a]), 1.0), PLANAR))

    trace = chain().simulate(KEY)
    np.testing.assert_allclose(
        chain().replay(trace).simulate()["z"], trace["z"], rtol=1e-4, atol=1e-5
    )
    inverse = PLANAR.inverse_and_log_det(trace["z"])[0]
    moved = PLANAR.transform_and_log_det(inverse + 1.0)[0]
    shifted = chain().do({"a": trace["a"] + 1.0}).replay(trace).simulate()["z"]
    np.testing.assert_allclose(shifted, moved, rtol=1e-4, atol=1e-5)


# ---- mixtures


def two(t):
    return d.MixtureSameFamily(d.Categorical(logits=t[:2]), d.Normal(t[2:4], jnp.exp(t[4:6])))


def mixture_elbo(t, estimator):
    @vx.model
    def guide():
        vx.sample("z", two(t), estimator=estimator)

    q = guide().simulate()
    return -0.5 * (q["z"] - 1) ** 2 - q.log_density


def exact_mixture_elbo(t):
    z = jnp.linspace(-10, 10, 4001)
    log_q = two(t).log_prob(z)
    return jnp.trapezoid(jnp.exp(log_q) * (-0.5 * (z - 1) ** 2 - log_q), z)


@dataclasses.dataclass(frozen=True)
class ImplicitInPart(est.Implicit):
    """A broken twin: the path leaves out weights (0), means (1) or scales (2)."""

    left_out: int = 0

    def draw(self, key, law):
        operands = list(law.operands)
        operands[self.left_out] = jax.lax.stop_gradient(operands[self.left_out])
        return super().draw(key, dataclasses.replace(law, operands=operands))


TWINS = {est.Implicit(): [ImplicitInPart(left_out=i) for i in range(3)], est.Score(): [NoScore()]}


@pytest.mark.parametrize("right", TWINS, ids=["Implicit", "Score"])
def test_mixtures_in_a_guide(right):
    theta = (0.0, 0.5, -1.0, 1.0, 0.0, -0.3)
    check(mixture_elbo, exact_mixture_elbo, theta, (right,), *((twin,) for twin in TWINS[right]))


def test_density_of_a_mixture():
    z = 0.7
    exact = np.log(0.3 * stats.norm.pdf(z, -1, 0.5) + 0.7 * stats.norm.pdf(z, 2, 1.5))
    t = jnp.log(jnp.array([0.3, 0.7, np.exp(-1), np.exp(2), 0.5, 1.5]))

    @vx.model
    def program():
        vx.sample("z", two(t))

    np.testing.assert_allclose(program().log_density({"z": z}), exact, rtol=1e-5)


# ---- implicit distributions


@pytest.mark.parametrize(("k", "dim", "noise"), [(5, 3, 0.0), (3, 3, 0.0), (3, 5, 0.4)])
def test_linear_generators_have_the_entropy_of_their_gaussian(k, dim, noise, x64):
    a = jax.random.normal(KEY, (dim, k))
    generator = lambda e: a @ e + 1.0  # noqa: E731
    found = families.linearised_entropy(generator, jnp.ones(k), noise)
    cov = np.asarray(a @ a.T, float) + noise**2 * np.eye(dim)
    exact = dim / 2 * np.log(2 * np.pi * np.e) + np.linalg.slogdet(cov)[1] / 2
    assert abs(found - exact) < (1e-9 if x64 else 1e-5)


def test_the_elbo_of_a_linear_generator_is_the_gaussian_one():
    """Value and gradient: the entropy has no noise, the rest is that of any pathwise draw."""

    def elbo(t):
        a = t.reshape(2, 2)
        e = vx.sample("e", BASE)
        return -0.5 * (a @ e) @ (a @ e) + families.linearised_entropy(lambda e: a @ e, e)

    def exact(t):
        a = t.reshape(2, 2)
        entropy = 1 + np.log(2 * np.pi) + jnp.linalg.slogdet(a)[1]
        return -0.5 * (a**2).sum() + entropy

    def no_determinant(t):
        return elbo(t) - families.linearised_entropy(lambda e: t.reshape(2, 2) @ e, jnp.ones(2))

    theta = (1.0, 0.3, -0.4, 0.8)
    draws, twin = estimates([elbo, no_determinant], theta, draws=20_000)
    check_mean(draws, exactly(exact, theta))
    check_biased(twin, exactly(exact, theta))


def test_the_mean_over_noise_is_the_entropy_of_an_injective_generator():
    def generator(e):
        return e + 0.5 * jnp.sin(e)

    e = jax.random.normal(KEY, (100_000, 1))
    each = jax.vmap(lambda e: families.linearised_entropy(generator, e))(e)
    x, w = np.polynomial.hermite_e.hermegauss(60)
    exact = 0.5 * np.log(2 * np.pi * np.e) + w @ np.log1p(0.5 * np.cos(x)) / w.sum()
    check_mean(np.asarray(each)[:, None], np.array([exact]))


def test_implicit_draws_are_pathwise():
    def second_moment(t):
        x = vx.sample("x", d.Implicit(BASE, Shift(t)))
        return (x**2).sum()

    def exact(t):
        return (t[0] + t[1] + t[2]) ** 2 + t[0] ** 2 + t[1] ** 2 + 0 * t[2]

    (draws,) = estimates([second_moment], (0.5, -0.3, 0.2), draws=20_000)
    assert draws.shape == (20_000, 4) and np.isfinite(draws).all()
    mean = (0.5**2 + 0.3**2 + 0.2**2) + 0.2**2  # x = (t0 e0 + t1 e1 + t2, t2)
    check_mean(draws[:, :1], np.array([mean]))
    check_mean(draws[:, 1:], np.array([2 * 0.5, 2 * -0.3, 4 * 0.2]))


class Shift(eqx.Module):
    """(t_0 e_0 + t_1 e_1 + t_2, t_2): a generator with a function among its leaves."""

    t: jax.Array
    wrap: object = jnp.asarray

    def __call__(self, e):
        return self.wrap(jnp.stack([self.t[:2] @ e + self.t[2], self.t[2]]))


# ---- errors


def test_messages():
    errors = vx.errors
    with pytest.raises(errors.ShapeError, match=r"base of shape \(2,\)(.|\n)*\(3,\) of Normal"):
        d.Flow(d.Normal(jnp.zeros(3), 1.0), PLANAR)
    with pytest.raises(errors.ShapeError, match=r"no condition(.|\n)*shape"):
        d.Flow(BASE, PLANAR, jnp.zeros(3))
    conditional = families.coupling(KEY, 2, 1, condition_dim=3)
    with pytest.raises(errors.ShapeError, match=r"a condition of shape \(3,\)(.|\n)*no condition"):
        d.Flow(BASE, conditional)
    from flowjax.bijections import Planar

    without = d.Flow(BASE, Planar(KEY, dim=2))
    assert without.sample(KEY).shape == (2,)
    with pytest.raises(errors.NoInverseError, match=r"Planar(.|\n)*Flow\.draw"):
        without.log_prob(jnp.zeros(2))
    value, log_q = vx.seed(lambda: without.draw("x"))(KEY)
    assert value.shape == (2,) and np.isfinite(log_q)
    with pytest.raises(errors.NotReparameterizableError, match="rsample"):
        vx.seed(lambda: d.Flow(two(jnp.zeros(6)), Scalar()).draw("x"))(KEY)


class Scalar:
    """The identity, of one number."""

    shape, cond_shape = (), None

    def transform_and_log_det(self, x, condition=None):
        return x, jnp.zeros_like(x)


jax.tree_util.register_static(Scalar)


def test_messages_of_implicit_distributions():
    implicit = d.Implicit(BASE, lambda e: e)
    with pytest.raises(vx.errors.NoDensityError, match=r"Sampleable(.|\n)*linearised_entropy"):
        implicit.log_prob(jnp.zeros(2))

    @vx.model
    def guide():
        vx.sample("z", implicit)

    with pytest.raises(vx.errors.NoDensityError, match="no density"):
        guide().simulate(KEY)
    with pytest.raises(vx.errors.ShapeError, match="noise > 0, or at least 5 inputs"):
        families.linearised_entropy(lambda e: jnp.tile(e, 2)[:5], jnp.ones(3))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flowjax.bijections", None)
    monkeypatch.setitem(sys.modules, "flowjax", None)
    for make in (families.coupling, families.masked_autoregressive):
        with pytest.raises(vx.errors.MissingExtraError, match=r"pip install 'varax\[flows\]'"):
            make(KEY, 2)
    assert families.radial(KEY, 2, 3).shape == (2,)  # what needs nothing works


# ---- documents


def test_the_document_runs_as_printed():
    text = (Path(__file__).resolve().parents[1] / "docs" / "families.md").read_text()
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    params, many = scope["result"].params, vx.strategies.MonteCarlo(2000)
    both = [vx.expect(scope[name], using=many)(KEY, params) for name in ("elbo", "elbo_forward")]
    np.testing.assert_allclose(*both, rtol=1e-4)
    assert both[0] > -1.5  # log 1 is the truth, and the start is below -3
    assert scope["tight"] > scope["loose"]
    assert abs(vx.expect(scope["mixed_elbo"], using=many)(KEY, scope["t"])) < 0.1  # exact: 0
    assert np.isfinite(scope["value"])
