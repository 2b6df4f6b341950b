"""The potential: log Jacobians by `jax.jacobian`, round trips, integrals, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import varax as vx
from varax import dist as d
from varax import errors
from varax.transforms.choices import flatten, nest

KEY = jax.random.key(0)
ROWS, COLUMNS = np.tril_indices(3, -1)


@vx.model
def supports():
    """Every kind of support, one of them moved by an earlier choice."""
    x = vx.sample("real", d.Normal(0.3, 2.0))
    s = vx.sample("positive", d.Gamma(2.0, 1.5))
    vx.sample("unit", d.Beta(2.0, 3.0))
    vx.sample("interval", d.Uniform(-1.0, 2.5))
    vx.sample("moved", d.Uniform(x, x + s))
    vx.sample("above", d.TruncatedNormal(x, s, low=x - 1.0))
    vx.sample("simplex", d.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    vector = d.Normal(x * jnp.ones(3), s).to_event(1)
    vx.sample("ordered", d.TransformedDistribution(vector, d.transforms.OrderedTransform()))
    grow = [d.transforms.OrderedTransform(), d.transforms.ExpTransform()]
    vx.sample("positive_ordered", d.TransformedDistribution(vector, grow))
    vx.sample("corr", d.LKJCholesky(3, 2.0))
    vx.sample("several", d.LogNormal(x, jnp.ones((2, 3))))
    vx.sample("y", d.Normal(x, s), obs=0.7)


@vx.model
def inner(m):
    t = vx.sample("t", d.LogNormal(m, 1.0))
    vx.sample("w", d.Uniform(0.0, t))
    return t


@vx.model
def structures():
    """Lanes, scans, nesting, powers, a cond and a factor."""
    m = vx.sample("m", d.Normal(0.0, 1.0))
    s = jax.vmap(lambda i: vx.sample("s", d.Uniform(0.0, jnp.exp(m) + i)))(jnp.arange(3.0))

    def step(x, i):
        x = vx.sample("x", d.LogNormal(0.5 * jnp.log(x), 0.3))
        lane = jax.vmap(lambda s: vx.sample("both", d.Dirichlet(x + s * jnp.ones(3))))
        return x, lane(s[:2] + i)

    x, _ = jax.lax.scan(step, 1.0, jnp.arange(2.0))

    def chain(s):
        def step(carry, _):
            return vx.sample("chain", d.TruncatedNormal(carry, 1.0, low=-s)), None

        return jax.lax.scan(step, 0.0, None, length=2)[0]

    jax.vmap(chain)(s)
    t = vx.sample("inner", inner(m))
    vx.sample("lanes", vx.Measure(lambda: jax.vmap(lambda a: inner(a).program())(s), "lanes"))
    vx.sample("tempered", vx.scaled(inner(0.0), 0.3))
    vx.sample("power", vx.scaled(d.HalfNormal(x), 2.0))
    jax.lax.cond(
        x > 1,
        lambda: vx.sample("c", d.Uniform(0.0, x)),
        lambda: vx.sample("c", d.Uniform(-1.0, 1.0)),
    )
    vx.factor("f", -(t**2))


FREE = {  # coordinates of a value on its support
    "simplex": lambda x: x[..., :-1],
    "both": lambda x: x[..., :-1],
    "corr": lambda x: x[..., ROWS, COLUMNS],
}


def coordinates(choices):
    flat = flatten(choices)
    return jnp.concatenate([jnp.ravel(FREE.get(a[-1], lambda x: x)(flat[a])) for a in flat])


def in_order(potential, choices):
    """Choices in the order of the potential's addresses."""
    flat = flatten(choices)
    return nest({a: flat[a] for a in (tuple(n.split("/")) for n in potential.shapes)})


@pytest.mark.parametrize("model", [supports, structures], ids=lambda m: m.function.__name__)
def test_log_density_is_the_change_of_variables(model, x64):
    """log p(T(u), data) + log |det dT/du|; T is inverted."""
    measure = model()
    potential = measure.potential()
    vector = jax.random.uniform(KEY, (potential.size,), float, -1.0, 1.0)

    @jax.jit
    def everything(vector):
        u = potential.unravel(vector)
        choices = potential.constrain(u)
        jacobian = jax.jacobian(
            lambda v: coordinates(in_order(potential, potential.constrain(potential.unravel(v))))
        )(vector)
        back = potential.ravel(potential.unconstrain(choices))
        return choices, potential.log_density(u), potential(u), jacobian, back

    choices, log_density, value, jacobian, back = everything(vector)
    log_det = np.linalg.slogdet(np.asarray(jacobian, float))[1]
    tol = 1e-9 if x64 else 2e-4
    np.testing.assert_allclose(log_density, measure.log_density(choices) + log_det, rtol=tol)
    np.testing.assert_allclose(value, -log_density)
    np.testing.assert_allclose(back, vector, atol=1e-8 if x64 else 2e-3)


ONE_OR_TWO = {
    "real": lambda: vx.sample("z", d.Normal(0.5, 1.0)),
    "positive": lambda: vx.sample("z", d.Gamma(2.0, 1.0)),
    "interval": lambda: vx.sample("z", d.Uniform(-1.0, 3.0)),
    "simplex": lambda: vx.sample("z", d.Dirichlet(jnp.array([1.5, 2.0, 2.5]))),
    "correlation": lambda: vx.sample("z", d.LKJCholesky(2, 1.5)),
    "moved": lambda: vx.sample("z", d.Uniform(0.0, vx.sample("x", d.Gamma(3.0, 1.0)))),
    "lanes": lambda: jax.vmap(lambda a: vx.sample("z", d.Beta(a, 2.0)))(jnp.array([1.5, 3.0])),
}


@pytest.mark.parametrize("name", ONE_OR_TWO)
def test_density_on_the_unconstrained_space_integrates_to_one(name):
    with jax.enable_x64(True):
        potential = vx.model(ONE_OR_TWO[name])().potential()
        grid = jnp.linspace(-25.0, 25.0, 401)
        axes = jnp.meshgrid(*[grid] * potential.size, indexing="ij")
        points = jnp.stack(axes, -1).reshape(-1, potential.size)
        values = jax.jit(jax.vmap(lambda v: potential.log_density(potential.unravel(v))))(points)
        cell = (grid[1] - grid[0]) ** potential.size
        np.testing.assert_allclose(jnp.exp(values).sum() * cell, 1.0, rtol=1e-5)


def test_vectors_and_names():
    potential = structures().potential()
    assert list(potential.shapes)[:4] == ["m", "s", "x", "both"]
    assert potential.shapes["both"] == (2, 2, 2) and potential.shapes["chain"] == (2, 3)
    assert potential.size == sum(np.prod(s, dtype=int) for s in potential.shapes.values())
    vector = jnp.linspace(-1.0, 1.0, potential.size)
    u = potential.unravel(vector)
    np.testing.assert_array_equal(potential.ravel(u), vector)
    for name, number in zip(potential.names, vector, strict=True):
        address, _, index = name.partition("[")
        value = flatten(u)[tuple(address.split("/"))]
        assert value[tuple(map(int, index[:-1].split(","))) if index else ()] == number
    assert "both[1,0,1]" in potential.names and "inner/t" in potential.names
    np.testing.assert_allclose(
        potential.factors(u)["f"], -(potential.constrain(u)["inner"]["t"] ** 2), rtol=1e-6
    )
    assert repr(potential) == f"Potential(structures, D={potential.size})"


def test_gradient_and_batches():
    with jax.enable_x64(True):
        potential = supports().potential()
        vectors = jax.random.uniform(KEY, (3, potential.size), float, -1.0, 1.0)
        us = jax.vmap(potential.unravel)(vectors)
        value, grad = jax.jit(jax.vmap(jax.value_and_grad(potential)))(us)
        grads = jax.vmap(potential.ravel)(grad)
        alone = jax.jit(lambda v: potential(potential.unravel(v)))
        np.testing.assert_allclose(value, [alone(v) for v in vectors], rtol=1e-12)
        direction = np.linspace(-1.0, 1.0, potential.size)
        step = 1e-5 * direction
        slopes = [(alone(v + step) - alone(v - step)) / 2e-5 for v in vectors]
        np.testing.assert_allclose(grads @ direction, slopes, rtol=1e-6)


def test_potentials_of_traced_models():
    """Made inside jit and grad, from data and parameters."""

    @vx.model
    def program(scale, y):
        z = vx.sample("z", d.HalfNormal(scale))
        vx.deterministic("double", 2 * z)
        vx.sample("y", d.Normal(z, 1.0), obs=y)

    def value(scale, u):
        return program(scale, jnp.array(0.3)).potential()({"z": u})

    def by_hand(scale, u):
        z = jnp.exp(u)
        return -d.HalfNormal(scale).log_prob(z) - d.Normal(z, 1.0).log_prob(0.3) - u

    found = jax.jit(jax.value_and_grad(value, (0, 1)))(1.5, 0.2)
    expected = jax.value_and_grad(by_hand, (0, 1))(1.5, 0.2)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(found)), jax.tree.leaves(expected), 1e-5)
    recorded = program(1.5, 0.3).potential().recorded({"z": 0.2})
    np.testing.assert_allclose(recorded["double"], 2 * jnp.exp(0.2))
    np.testing.assert_allclose(recorded["y"], 0.3)


def test_conditioned_measures_and_those_without_choices():
    measure = inner(0.0)
    given = measure.condition({"w": 0.4}).potential()
    assert given.shapes == {"t": ()}
    expected = measure.log_density({"t": jnp.exp(0.3), "w": 0.4}) + 0.3
    np.testing.assert_allclose(given.log_density({"t": 0.3}), expected, rtol=1e-5)
    nothing = measure.condition({"t": 1.0, "w": 0.4}).potential()
    assert nothing.size == 0 and nothing.ravel({}).shape == (0,)
    np.testing.assert_allclose(nothing({}), -measure.log_density({"t": 1.0, "w": 0.4}))


# ---- errors


def sample(measure):
    return vx.model(lambda: vx.sample("z", measure()))


def loop():
    jax.lax.while_loop(lambda x: x < 3.0, lambda x: vx.sample("z", d.Normal(x, 1.0)), 0.0)


def branches():
    def up():
        return vx.sample("z", d.Normal(0.0, 1.0))

    jax.lax.cond(vx.sample("b", d.Normal(0.0, 1.0)) > 0, up, lambda: 0.0)


def vmapped_branches():
    def either(b):
        return jax.lax.cond(b, lambda: vx.sample("z", d.Normal(0.0, 1.0)), lambda: 0.0)

    jax.vmap(either)(jnp.array([True, False]))


def estimate():
    vx.sample("m", vx.marginal(inner(0.0), keep=("w",), using=vx.importance(3)))


def image():
    noise = vx.model(lambda: vx.sample("u", d.Normal(jnp.zeros(2), 1.0)))
    vx.sample("m", vx.constrain(noise(), inner(0.0)))


C = errors.CapabilityError
REFUSED = {
    "discrete": (sample(lambda: d.Poisson(2.0)), C, "address:  z.*got:.*discrete.*logsumexp"),
    "masked": (
        sample(lambda: vx.masked(d.Normal(0.0, 1.0), True)),
        C,
        "address:  z.*always present.*masked, or in a branch.*outside the mask",
    ),
    "branch": (vx.model(branches), C, "address:  z.*masked, or in a branch"),
    "branch of a lane": (vx.model(vmapped_branches), C, "address:  z.*masked, or in a branch"),
    "loop": (vx.model(loop), errors.LoopDensityError, "address:  z.*lax.scan"),
    "estimate": (vx.model(estimate), C, "exact density; that of marginal.*is not"),
    "image": (vx.model(image), C, "makes itself.*address:  m/t.*constrain.*sample its noise"),
    "support": (sample(lambda: d.ProjectedNormal(jnp.ones(2))), C, "z.*ProjectedNormal.*register"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_potential(name):
    model, kind, match = REFUSED[name]
    with pytest.raises(kind, match=f"(?s){match}"):
        model().potential()


def test_points_that_do_not_fit():
    potential = inner(0.0).potential()
    for u in ({"t": 0.0}, {"t": 0.0, "w": jnp.zeros(2)}, {"t": 0.0, "w": 0.0, "v": 0.0}):
        with pytest.raises(errors.ShapeError, match=r"(?s)not a point.*inner.*t: \(\), w: \(\)"):
            potential(u)
    with pytest.raises(errors.ShapeError, match=r"(?s)not a vector.*\(2,\).*\(3,\)"):
        potential.unravel(jnp.zeros(3))
    with pytest.raises(errors.AddressError, match="Choices are a dict"):
        potential(jnp.zeros(2))
    with pytest.raises(errors.MissingAddressError, match=r"unconstrain: missing \{w\}"):
        potential.unconstrain({"t": 1.0})
    with pytest.raises(errors.UnknownAddressError, match=r"unconstrain: unknown \{v\}"):
        potential.unconstrain({"t": 1.0, "w": 0.5, "v": 1.0})
    with pytest.raises(errors.ShapeError, match=r"(?s)address:  w.*\(2,\)"):
        potential.unconstrain({"t": 1.0, "w": jnp.ones(2)})
