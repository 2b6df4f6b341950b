"""A flow's own draws are scored by the forward pass, where that changes no derivative."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import QUICKLY, check_biased, check_mean, estimates, exactly

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax import families
from varax.transforms import planning
from varax.transforms.inference import lockstep
from varax.transforms.law import Law

KEY = jax.random.key(0)
BASE = d.Normal(jnp.zeros(2), 1.0)
PARTS = (jnp.array([1.0, 0.5]), jnp.array([0.3, -1.0]), jnp.zeros(()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counted:
    """A planar flow that says which way it is evaluated on concrete values."""

    planar: families.Planar
    inverted = []  # noqa: RUF012
    shape, cond_shape = (2,), None

    def transform_and_log_det(self, x, condition=None):
        return self.planar.transform_and_log_det(x)

    def inverse_and_log_det(self, y, condition=None):
        jax.debug.callback(lambda: self.inverted.append(1))
        return self.planar.inverse_and_log_det(y)


def inversions(run):
    """How often the flow is inverted, and the value."""
    Counted.inverted.clear()
    value = jax.block_until_ready(jax.jit(run)())
    jax.effects_barrier()
    return len(Counted.inverted), value


# ---- where a draw may stand


def program(wrap, b, estimator=None):
    flow = d.Flow(BASE, b)

    def draw(measure):
        return vx.sample("z", measure, estimator=estimator)

    if wrap == "lanes":
        return jax.vmap(lambda t: draw(d.Flow(d.Normal(t * jnp.ones(2), 1.0), b)))(jnp.arange(3.0))
    if wrap == "scan":
        step = lambda c, _: ((z := draw(d.Flow(d.Normal(c, 1.0), b))), z)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(2), jnp.arange(3))[1]
    if wrap == "cond":
        other = lambda: vx.sample("z", BASE.to_event(1))  # noqa: E731
        return jax.lax.cond(jnp.asarray(0.3) > 0.2, lambda: draw(flow), other)
    if wrap == "vmapped cond":
        one = lambda i: jax.lax.cond(i < 2, lambda: draw(flow), lambda: jnp.zeros(2))  # noqa: E731
        return jax.vmap(one)(jnp.arange(3))
    if wrap == "scaled":
        return draw(vx.scaled(flow, 0.5))
    if wrap == "absent" or wrap == "present":
        return draw(vx.masked(flow, jnp.asarray(wrap == "present")))
    return draw(vx.masked(vx.scaled(flow, 3.0), jnp.asarray(True)) if wrap == "both" else flow)


WRAPS = ["plain", "lanes", "scan", "cond", "vmapped cond", "scaled", "absent", "present", "both"]


@pytest.mark.thin(3)
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_draw_is_not_inverted_and_has_the_density_of_the_inverse(wrap):
    @vx.model
    def guide(b):
        program(wrap, b)

    b = families.Planar(*PARTS)
    count, trace = inversions(lambda: guide(Counted(b)).simulate(KEY))
    assert count == 0
    np.testing.assert_allclose(
        trace.log_density, guide(b).log_density(trace.choices), rtol=1e-4, atol=1e-5
    )
    unscored = vx.seed(lambda: program(wrap, b))(KEY)  # a program that draws alone
    np.testing.assert_allclose(trace["z"], unscored, rtol=1e-5, atol=1e-6)
    count, _ = inversions(lambda: guide(Counted(b)).log_density(trace.choices))
    assert count > 0


@pytest.mark.thin(3)
@pytest.mark.parametrize("wrap", WRAPS)
def test_estimates_are_those_of_the_inverse(wrap, monkeypatch):
    """Value and gradient, the same key."""

    @vx.model
    def guide(b):
        program(wrap, b)

    def objective(b):
        q = guide(b).simulate()
        return -0.5 * ((q["z"] - 1) ** 2).sum() - q.log_density

    with jax.enable_x64(True):
        b = families.Planar(*(x.astype(float) for x in PARTS))
        run = lambda b: vx.value_and_grad(objective)(KEY, b)  # noqa: E731
        count, found = inversions(lambda: run(Counted(b)))
        assert count == 0
        monkeypatch.setattr(planning, "_forward", lambda plan: set())
        count, exact = inversions(lambda: run(Counted(b)))
        assert count > 0
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-8)


def test_each_lane_of_an_objective_has_its_own_noise():
    @vx.model
    def guide(b, shift):
        vx.sample("z", d.Flow(d.Normal(shift, 1.0), b))

    def objective(b):
        def one(shift):
            q = guide(b, shift).simulate()
            return q["z"], q.log_density

        return jax.vmap(one)(jnp.arange(6.0).reshape(3, 2))

    b = families.Planar(*PARTS)
    count, (z, log_q) = inversions(lambda: vx.expect(objective)(KEY, Counted(b)))
    assert count == 0 and len(np.unique(z.round(4), axis=0)) == 3
    for shift, y, lq in zip(np.arange(6.0).reshape(3, 2), z, log_q, strict=True):
        exact = guide(b, shift).log_density({"z": y})
        np.testing.assert_allclose(lq, exact, rtol=1e-4)


def test_nothing_passes_into_what_is_absent():
    """Not even NaN."""

    def objective(t):
        @vx.model
        def guide():
            broken = families.Planar(jnp.log(t) * jnp.ones(2), PARTS[1], PARTS[2])
            vx.sample("z", vx.masked(d.Flow(d.Normal(jnp.zeros(2), t), broken), t > 0))

        q = guide().simulate()
        return q["z"].sum() + q.log_density

    value, slope = vx.value_and_grad(objective)(KEY, -1.0)
    assert value == 0 and slope == 0


# ---- which draws


@dataclasses.dataclass(frozen=True)
class Stretch:
    """y = exp(a) x + b."""

    a: jax.Array
    b: jax.Array
    shape, cond_shape = (1,), None

    def transform_and_log_det(self, x, condition=None):
        return jnp.exp(self.a) * x + self.b, self.a

    def inverse_and_log_det(self, y, condition=None):
        jax.debug.callback(lambda: Counted.inverted.append(1))
        return (y - self.b) * jnp.exp(-self.a), -self.a


jax.tree_util.register_dataclass(Stretch, ["a", "b"], [])
THETA = (0.3, -0.2, 0.4, -0.5)


def stretched(theta):
    """N(exp(a) m + b, exp(a + s)) for theta = (m, s, a, b)."""
    return d.Flow(d.Normal(theta[:1], jnp.exp(theta[1])), Stretch(theta[2], theta[3]))


def objective(theta, estimator=None, *, jump=0.0):
    @vx.model
    def guide():
        vx.sample("z", stretched(theta), estimator=estimator)

    q = guide().simulate()
    y = q["z"][0]
    beyond = jnp.where(y > 0, jump, 0.0) if jump else 0.0
    return y**2 - q.log_density + beyond


def expectation(theta, jump=0.0):
    m, s, a, b = theta
    mean, sd = jnp.exp(a) * m + b, jnp.exp(a + s)
    entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) + a + s
    return mean**2 + sd**2 + entropy + jump * jax.scipy.stats.norm.cdf(mean / sd)


def by_address(estimator):
    def of(run, key, theta):
        value, slope = vx.value_and_grad(run, estimators={"z": estimator})(key, theta)
        return jnp.concatenate([value[None], slope])

    return of


def plain(run, key, theta):
    value, slope = vx.value_and_grad(run)(key, theta)
    return jnp.concatenate([value[None], slope])


HOW = {  # estimator on the site, how it is asked for, whether a jump is allowed, inversions
    "default": (None, plain, "goes over", 0),
    "reparam": (est.Reparam(), plain, "refused", 0),
    "reparam by address": (None, by_address(est.Reparam()), "refused", 0),
    "score on the site": (est.Score(), plain, "served", 1),
    "score by address": (None, by_address(est.Score()), "served", 1),
    "reparam, but score by address": (est.Reparam(), by_address(est.Score()), "served", 1),
}


@pytest.mark.parametrize("how", HOW)
def test_the_gradient_is_that_of_the_closed_form(how):
    estimator, of, jumps, inverted = HOW[how]
    smooth = lambda t: objective(t, estimator)  # noqa: E731
    jumping = lambda t: objective(t, estimator, jump=4.0)  # noqa: E731
    (draws,) = estimates([smooth], THETA, of)
    check_mean(draws, exactly(expectation, THETA))
    assert (inversions(lambda: of(smooth, KEY, jnp.array(THETA)))[0] > 0) == bool(inverted)
    if jumps == "refused":
        with pytest.raises(vx.errors.UnsoundEstimatorError, match=r"(?s)address: +z.*Score\(\)"):
            of(jumping, KEY, jnp.array(THETA))
        return
    (draws,) = estimates([jumping], THETA, of)
    exact = exactly(jumping_expectation, THETA)
    check_mean(draws, exact)
    assert inversions(lambda: of(jumping, KEY, jnp.array(THETA)))[0] > 0


def jumping_expectation(theta):
    return expectation(theta, jump=4.0)


def test_a_score_of_the_noise_would_miss_the_jump():
    """Why a choice with another estimator is drawn as it is."""

    def noisy(theta):
        flow = stretched(theta)
        x = vx.sample("z", flow.base_dist, estimator=est.Score())
        y, log_det = flow.forward(x)
        log_q = flow.base_dist.log_prob(x) - log_det
        return y[0] ** 2 - log_q + jnp.where(y[0] > 0, 4.0, 0.0)

    (draws,) = estimates([noisy], THETA, plain)
    check_biased(draws, exactly(jumping_expectation, THETA))


def test_what_cannot_serve_a_flow_cannot_serve_its_noise():
    with pytest.raises(vx.errors.EstimatorError, match="MeasureValued"):
        by_address(est.MeasureValued())(objective, KEY, jnp.array(THETA))


def test_a_declared_bias_is_that_of_the_value():
    """The derivative of y is left out, also in the parameters of f."""
    stopped = by_address(est.Biased(est.StopGradient()))
    grads = stopped(objective, KEY, jnp.array(THETA))
    _, exact = jax.value_and_grad(
        lambda t: -stretched(t).log_prob(jax.lax.stop_gradient(stretched(t).sample(KEY)))
    )(jnp.array(THETA))
    np.testing.assert_allclose(grads[1:], exact, rtol=1e-5)


def test_noise_without_a_derivative_is_drawn_through():
    """A base without a differentiable sampler: the score function, of y."""
    mixed = d.MixtureSameFamily(
        d.Categorical(probs=jnp.array([0.4, 0.6])),
        d.Normal(jnp.array([[-1.0, 1.0]]), 1.0),
    )

    @vx.model
    def guide(b):
        vx.sample("z", d.Flow(mixed, b))

    def run():
        f = lambda t: guide(Stretch(t, t)).simulate().log_density  # noqa: E731
        return vx.value_and_grad(f)(KEY, 0.2)

    assert inversions(run)[0] > 0
    assert inversions(lambda: guide(Stretch(0.1, 0.2)).simulate(KEY))[0] > 0


def test_in_another_program_the_address_is_that_of_the_value():
    """Also through a function that `jax.jit` has traced where the noise was wanted."""

    @vx.model
    def inner():
        vx.sample("z", stretched(jnp.array(THETA)))

    drawn = jax.jit(lambda: inner().simulate()["z"])

    @vx.model
    def outer():
        return drawn()

    y = jnp.array([0.7])

    def both():
        return drawn()[0], outer().log_density({"z": y})

    exact = stretched(jnp.array(THETA)).log_prob(y)
    z, log_q = vx.expect(both)(KEY)
    np.testing.assert_allclose(log_q, exact, rtol=1e-5)
    np.testing.assert_allclose(z, stretched(jnp.array(THETA)).sample(KEY)[0], rtol=1e-5)
    np.testing.assert_allclose(outer().log_density({"z": y}), exact, rtol=1e-5)


# ---- particles


@vx.model
def chain(theta, walk):
    """Three hidden steps; `walk(mean, scale)` is a normal law."""

    def step(z, _):
        z = vx.sample("z", walk(theta[0] * z, jnp.ones(1)))
        vx.sample("x", d.Normal(z + theta[1], 0.5).to_event(1))
        return z, None

    jax.lax.scan(step, jnp.zeros(1), jnp.arange(3))


@vx.model
def proposal(theta, kept, walk):
    def step(z, x):
        return vx.sample("z", walk(0.5 * z + theta[2] * x, jnp.exp(theta[3:]))), None

    jax.lax.scan(step, jnp.zeros(1), kept["x"])


def flow(mean, scale):
    return d.Flow(d.Normal(jnp.zeros(1), 1.0), Stretch(jnp.log(scale[0]), mean[0]))


def normal(mean, scale):
    return d.Normal(mean, scale).to_event(1)


THETA_CHAIN = jnp.array([0.8, 0.1, 0.4, -0.3])
X = jnp.array([[0.5], [1.0], [-0.3]])
USING = {
    "importance": lambda p: vx.importance(3, p),
    "prior": lambda p: vx.importance(3),
    "smc": lambda p: vx.smc(3, p),
    "bootstrap": lambda p: vx.smc(3),
}


def bounds(using, walk, own):
    """Value and gradient of an upper and a lower bound of log p(x), the same random numbers."""

    def measure(theta):
        how = USING[using](lambda kept: proposal(theta, kept, walk))
        return vx.marginal(chain(theta, own), "x", how)

    def upper(theta):
        q = measure(theta).simulate()
        return q.log_density + (q["x"] ** 2).sum()

    def lower(theta):
        return measure(theta).log_density({"x": X})

    def run(theta):
        return [vx.value_and_grad(f)(KEY, theta) for f in (upper, lower)]

    return jax.jit(run, compiler_options=QUICKLY)(THETA_CHAIN)


@pytest.mark.slow
@pytest.mark.parametrize("using", USING)
def test_particles_drawn_by_a_flow_are_those_of_its_law(using):
    """Affine flows of normals, in the proposal and in the model, beside the normals themselves."""
    with jax.enable_x64(True):
        found, exact = bounds(using, flow, flow), bounds(using, normal, normal)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)


def test_a_retained_particle_keeps_its_values(monkeypatch):
    """A run that one particle is given would lose them if its choices were of noise."""
    monkeypatch.delattr(lockstep.Retaining, "_is_forward")
    with jax.enable_x64(True):
        found, exact = bounds("smc", flow, flow), bounds("smc", normal, normal)
    assert abs(found[0][0] - exact[0][0]) > 1e-3


# ---- splines


def chosen(objective, *args):
    """The law that the only choice is drawn from, and its estimator's type."""
    _, plan = planning.planned(lambda: objective(*args))
    (site,) = plan.sites
    return Law(site, []).name, type(plan.estimator(site))


def scored(bijection, shape, scale):
    @vx.model
    def guide():
        vx.sample("z", d.Flow(d.Normal(jnp.zeros(shape), scale), bijection))

    q = guide().simulate()
    return -((q["z"] - 1) ** 2).sum() - q.log_density


def drawn(bijection, shape, scale):
    z = vx.sample("z", d.Flow(d.Normal(jnp.zeros(shape), scale), bijection))
    return (z**2).sum()


def test_a_spline_is_drawn_forward():
    transformer = families.rational_quadratic_spline(4, 3)
    spline = families.coupling(KEY, 2, 1, width=4, transformer=transformer)
    assert chosen(scored, spline, (2,), 1.5) == ("Independent", est.Reparam)


def test_a_spline_that_does_not_declare_its_bins_is_as_before():
    """flowjax's own. Scored, it has comparisons; drawn alone, none that the check would see."""
    from flowjax.bijections import RationalQuadraticSpline

    bare = RationalQuadraticSpline(knots=4, interval=3)
    assert chosen(scored, bare, (), 1.5) == ("Flow", est.Score)
    assert chosen(drawn, bare, (), 1.5) == ("Flow", est.Reparam)

    @vx.model
    def guide():
        drawn(bare, (), 1.5)

    def unscored():
        return guide().simulate()["z"] ** 2

    assert chosen(unscored) == ("Flow", est.Reparam)
