"""The soundness check: what jumps is refused where it jumps, what does not is accepted.

That the two lists of programs are rightly classified is checked against quadrature.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy.special import ndtri
from sound_programs import KNOTS, SOUND, THREE
from unsound_programs import UNSOUND

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax.transforms.errors import UnsoundEstimatorError
from varax.transforms.smooth import assume_smooth
from varax.transforms.soundness import unsound, violations
from varax.transforms.staging import stage

THETA = 0.3


def is_pathwise(site):
    return isinstance(site.estimator, est.Reparam)


def found(program, pathwise=is_pathwise, **options):
    """`{address: violation}` of a program."""
    jaxpr = stage(program).jaxpr
    sites = {}

    def seen(site):
        sites[id(site)] = site.address[-1]
        return pathwise(site)

    return {sites[i]: v for i, v in violations(jaxpr, seen, **options).items()}


def draw(address="x", mean=THETA, estimator=est.Reparam()):  # noqa: B008
    return vx.sample(address, d.Normal(mean, 1.0), estimator=estimator)


def marked(function):
    """`file:line` of the line that `# here` marks, or of a function of one line."""
    code = inspect.unwrap(getattr(function, "__wrapped__", function)).__code__
    lines, first = inspect.getsourcelines(code)
    at = [n for n, text in enumerate(lines, first) if text.rstrip().endswith("# here")]
    return f"{code.co_filename}:{at[0] if at else first} "


@pytest.mark.parametrize("name", UNSOUND)
def test_a_jump_is_refused_at_its_line(name):
    operation, f = UNSOUND[name]
    violation = found(lambda: f(draw()))["x"]
    assert violation.operation == operation
    assert violation.line.startswith(marked(f))


@pytest.mark.parametrize("name", SOUND)
def test_a_continuous_program_is_accepted(name):
    assert found(lambda: SOUND[name](draw())) == {}


# ---- several sites


def where_positive(x):
    return jnp.where(x > 0, 1.0, 0.0)


def test_a_parameter_of_a_pathwise_site_reaches_what_that_site_reaches():
    def program():
        x = draw()
        return where_positive(draw("y", mean=x))

    assert set(found(program)) == {"x", "y"}
    assert set(found(program, direct=True)) == {"y"}  # x is sound once y is not pathwise


@pytest.mark.parametrize("estimator", [est.Score(), est.Enumerate()], ids=["score", "enumerate"])
def test_a_parameter_of_another_site_does_not(estimator):
    def program():
        coin = vx.sample("coin", d.Bernoulli(logits=draw()), estimator=estimator)
        return jnp.where(coin == 1, 3.0, 1.0)

    assert found(program) == {}


def test_a_parameter_that_jumps_is_refused_where_the_site_weighs():
    def program():
        x = draw()
        y = draw("y", mean=where_positive(x), estimator=est.Score())
        return jnp.cos(y)

    assert found(program)["x"].operation == "comparison `>`"


def test_a_parameter_of_a_dead_site_does_not_matter():
    def program():
        x = draw()
        draw("y", mean=where_positive(x), estimator=est.Score())
        return jnp.cos(x)

    assert found(program) == {}


def test_each_site_is_reported_with_its_own_first_operation():
    def program():
        x, y, z = draw("x"), draw("y"), draw("z")
        return jnp.floor(x) + jnp.sign(y + x) + z

    assert {k: v.operation for k, v in found(program).items()} == {"x": "floor", "y": "sign"}


def test_only_pathwise_sites_are_reported():
    def program():
        return where_positive(draw(estimator=est.Score())) + where_positive(draw("y"))

    assert set(found(program)) == {"y"}
    assert found(program, pathwise=lambda _: False) == {}


def chain(step):
    def body(carry, knot):
        x = draw(mean=carry)
        return step(x, knot), x

    return lambda: lax.scan(body, 0.0, KNOTS)[0]


def lanes(step):
    return lambda: jax.vmap(lambda knot: step(draw(mean=knot), knot))(KNOTS).sum()


def branch(step):
    return lambda: lax.cond(KNOTS[0] < 0, lambda k: step(draw(mean=k), k), jnp.cos, 1.0)


def looped(step):
    return lambda: lax.fori_loop(0, 3, lambda i, y: step(draw(mean=y), y), 0.0)


def under_jit(step):
    return lambda: jax.jit(lambda k: step(draw(mean=k), k))(1.0) * 2.0


def under_checkpoint(step):
    return lambda: jax.checkpoint(lambda k: step(draw(mean=k), k))(1.0) * 2.0


@pytest.mark.parametrize("region", [chain, lanes, branch, looped, under_jit, under_checkpoint])
def test_sites_in_regions(region):
    assert found(region(lambda x, k: jnp.tanh(x) * k)) == {}
    violation = found(region(lambda x, k: jnp.tanh(x) * (x > k)))["x"]
    assert violation.operation == "comparison `>`"


def test_a_value_that_leaves_a_region_is_followed():
    for region in (lanes, under_jit, under_checkpoint, branch):
        assert set(found(lambda r=region: jnp.floor(r(lambda x, k: x * k)()))) == {"x"}


def test_a_cached_jaxpr_reports_the_line_of_each_use():
    def first():
        return draw() % 1.0

    def second():
        return draw() % 1.0

    lines = [found(program)["x"].line for program in (first, second)]
    assert [line.split("(")[-1] for line in lines] == ["first)", "second)"]


def test_a_trusted_use_of_a_cached_function_does_not_cover_another():
    assert found(lambda: jnp.interp(draw(), KNOTS, KNOTS)) == {}
    violation = found(lambda: jnp.searchsorted(KNOTS, draw()) * 1.0)["x"]
    assert violation.operation == "searchsorted"
    assert found(lambda: jnp.interp(draw(), KNOTS, KNOTS)) == {}


def test_models_are_accepted():
    @vx.model
    def model():
        scale = vx.sample("scale", d.Gamma(2.0, 1.0))
        z = vx.sample("z", d.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
        vx.sample("y", d.Normal(jax.nn.elu(z), scale).to_event(1))

    @vx.model
    def guide(theta):
        vx.sample("scale", d.LogNormal(theta, 1.0), estimator=est.Reparam())
        vx.sample("z", d.Normal(jnp.zeros(3), 1.0).to_event(1), estimator=est.Reparam())

    def log_weight():
        q = guide(THETA).simulate()
        return model().log_density(q.choices | {"y": THREE}) - q.log_density

    assert found(log_weight) == {}
    assert found(lambda: jax.nn.logsumexp(jnp.stack([log_weight(), 0.0]))) == {}


def test_a_users_density_is_looked_into():
    class Steps(d.Distribution):
        support = d.constraints.real

        def log_prob(self, value):
            return jnp.where(value > 0.0, -1.0, -2.0)  # here

        def sample(self, key, sample_shape=()):
            return jnp.zeros(sample_shape)

    @vx.model
    def model():
        vx.sample("x", Steps())

    violation = found(lambda: model().log_density({"x": draw()}))["x"]
    assert violation.operation == "comparison `>`"
    assert violation.line.startswith(marked(Steps.log_prob))


def test_a_branch_of_ones_own_may_depend_on_parameters_but_not_jump_with_them():
    def slopes(theta, offset):
        return lambda: jnp.where((x := draw()) > 0, x, theta * x + offset)

    def traced(offset):
        results = []
        jax.make_jaxpr(lambda theta: results.append(found(slopes(theta, offset))))(0.5)
        return results[0]

    assert traced(0.0) == {}
    assert set(traced(0.1)) == {"x"}


def test_outputs_that_are_no_floats_do_not_matter():
    assert found(lambda: (draw() ** 2, draw("y") > 0)) == {}


# ---- what is declared, and the error


def test_assume_smooth_is_an_identity():
    tree = {"a": THREE, "b": (jnp.arange(3), THREE > 0)}
    same = jax.jit(assume_smooth)(tree)
    assert jax.tree.all(
        jax.tree.map(lambda x, y: (x == y).all() and x.dtype == y.dtype, tree, same)
    )

    def f(x):
        return assume_smooth(x) ** 3

    assert jax.grad(jax.grad(jax.jit(f)))(2.0) == 12.0
    assert jax.hessian(f)(2.0) == 12.0
    assert jax.jvp(f, (2.0,), (1.0,))[1] == 12.0
    assert (jax.vmap(jax.grad(f))(THREE) == 3 * THREE**2).all()
    assert (jax.vmap(lambda x, y: assume_smooth((x, y)), (0, None))(THREE, 1.0)[0] == THREE).all()
    assert jax.grad(lambda x: lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0])(1.0) == 9.0


def test_assume_smooth_stops_the_check_for_a_value_or_a_mask():
    assert found(lambda: jnp.floor(assume_smooth(draw()))) == {}
    assert found(lambda: jnp.where(assume_smooth(draw() > 0), 1.0, 0.0)) == {}
    assert set(found(lambda: assume_smooth(draw()) + jnp.floor(draw("y")))) == {"y"}


def test_the_error_says_where_and_what_to_do():
    jaxpr = stage(lambda: where_positive(draw())).jaxpr
    site = jaxpr.eqns[0].params["site"]
    error = unsound(site, violations(jaxpr, is_pathwise)[id(site)], ["Score()"])
    assert isinstance(error, UnsoundEstimatorError)
    assert error.address == "x" and error.where == site.line
    for text in ("comparison `>`", "where_positive", "estimator=Score()", "vx.assume_smooth"):
        assert text in str(error)


def test_a_library_function_around_the_operation_is_named():
    violation = found(lambda: jax.random.bernoulli(jax.random.key(0), jnp.exp(draw())) * 1.0)["x"]
    assert violation.inside == "bernoulli"
    assert found(lambda: where_positive(draw()))["x"].inside is None


# ---- the classification itself: pathwise gradients of a normal's mean against quadrature


def biases(functions):
    """Per function of x ~ N(theta, 1): |mean pathwise gradient - quadrature|, over its size."""
    n = 20_000
    noise = ndtri((jnp.arange(n) + 0.5) / n)  # stratified: the mean has hardly any noise
    grid = jnp.linspace(-8.0, 8.0, 40_001)
    score = grid * jnp.exp(-(grid**2) / 2) / jnp.sqrt(2 * jnp.pi) * (grid[1] - grid[0])

    def derivative(name, f):
        if name == "while_predicate":  # has no reverse mode
            return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
        return jax.grad(lambda x: jnp.asarray(f(x), float))

    def both(name, f):
        path = jax.lax.map(derivative(name, f), THETA + noise, batch_size=1000).mean()
        values = jax.lax.map(f, THETA + grid, batch_size=1000)
        exact = jnp.sum(jnp.where(jnp.isfinite(values), values, 0.0) * score)
        return jnp.stack([path, exact])

    every = jax.jit(lambda: jnp.stack([both(name, f) for name, f in functions.items()]))
    path, exact = np.asarray(every()).T
    return dict(zip(functions, abs(path - exact) / (1 + abs(exact)), strict=True))


@pytest.mark.slow
def test_accepted_programs_have_right_pathwise_gradients():
    others = {
        "straight_through",  # biased as declared
        "gamma_draw",  # right on average over keys
        "spence",  # JAX's derivative of it is NaN
    }
    found = biases({k: f for k, f in SOUND.items() if k not in others})
    assert {k: b for k, b in found.items() if not b < 2e-3} == {}


def test_refused_programs_have_wrong_pathwise_gradients():
    found = biases({k: f for k, (_, f) in UNSOUND.items()})
    assert {k: b for k, b in found.items() if not b > 1e-2} == {}


# ---- through the engine


def test_grad_refuses_an_unsound_pathwise_estimator():
    def objective(theta):
        return where_positive(draw(mean=theta))

    with pytest.raises(UnsoundEstimatorError, match="comparison `>`"):
        vx.grad(objective)(jax.random.key(0), 0.3)


def test_grad_falls_back_by_default():
    def objective(theta):
        return where_positive(draw(mean=theta, estimator=None))

    keys = jax.random.split(jax.random.key(0), 50_000)
    grads = jax.jit(jax.vmap(vx.grad(objective), (0, None)))(keys, 0.3)
    exact = np.exp(-(0.3**2) / 2) / np.sqrt(2 * np.pi)
    assert abs(grads.mean() - exact) < 5 * grads.std() / np.sqrt(len(keys))


def test_grad_accepts_what_the_user_declares():
    def objective(theta):
        x = draw(mean=theta)
        return assume_smooth(jnp.where(x > 0, x, 0.0)) ** 2

    assert np.isfinite(vx.grad(objective)(jax.random.key(0), 0.3))


def test_guards_of_densities_do_not_hide_an_importance_weighted_bound():
    """A default stays pathwise where a density with guarded infinities goes through logsumexp."""

    @vx.model
    def model(w):
        z = vx.sample("z", d.Normal(jnp.zeros(2), 1.0))
        vx.sample("x", d.Binomial(16, logits=z * w))
        vx.sample("b", d.Bernoulli(logits=z + w))

    @vx.model
    def guide(w):
        vx.sample("z", d.Normal(w * jnp.ones(2), 1.0))

    data = {"x": jnp.array([3.0, 4.0]), "b": jnp.array([0.0, 1.0])}
    report = vx.check(lambda w: vx.objectives.iwelbo(model(w), guide(w), data, 3), 0.5, draws=4)
    assert report["z"].estimator == est.Reparam()
