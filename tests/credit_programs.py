"""Programs with choices in every arrangement, and their exact expectations by enumeration."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from control_flow_forms import couple
from gradient_checks import check_biased, check_mean, estimates, gradient, hessian
from jax import lax

import varax as vx
from varax import dist as d
from varax import estimators as est
from varax.transforms import axis_rules

THETA = (0.4, 0.7)
X = np.array([1.0, -0.5, 2.0])
SCORE = est.Score()
LATER = {0: "", 1: "<", -1: ">"}


def coin(address, logit, estimator=SCORE):
    return 1.0 * vx.sample(address, d.Bernoulli(logits=logit), estimator=estimator)


@dataclasses.dataclass(frozen=True)
class Given(est.Score):
    """The score function at values that are given, `[*shape, runs]`."""

    values: object = None

    def draw(self, key, law):
        run = lax.axis_index("varax_runs") if self.particles > 1 else 0
        x = jnp.asarray(self.values)[..., run]
        log_p = law.log_prob(x)
        return est.Drawn(x, log_p - lax.stop_gradient(log_p), super().draw(key, law).baseline)


U = np.array([0.3, -0.8, 0.5, 1.1])


# ---- parts


def array(t, x):
    """In the precision of t, and not a constant that functions traced in either have in common."""
    return jnp.array(x, t.dtype)


def costs_of(z, t):
    return jnp.sin(2 * z + t[1]) * array(t, X) + 3 * z * t[0]


def plate_of(draw, t, address="z", start=0.0, lanes=X):
    return jax.vmap(lambda u: draw(address, t[0] * u + start))(array(t, lanes))


def derivatives(program, key, theta):
    """An estimate of the values and gradients of a list of objectives, [n, 1 + p]."""
    values, pull = jax.vjp(lambda t: jnp.stack(vx.expect(program)(key, t)), theta)
    (slopes,) = jax.vmap(pull)(jnp.eye(len(values), dtype=values.dtype))
    return jnp.concatenate([values[:, None], slopes], 1)


def kept_axes(eqn):
    """An analysis that is wrong: every axis that may have been kept was kept."""
    out = eqn.outvars[0].aval.shape
    return [
        {i: axis_rules.Along(i) for i, n in enumerate(v.aval.shape) if v.aval.shape == out}
        for v in eqn.invars
    ]


# ---- programs: several choices, in every arrangement

PROGRAMS = {}


def program(function):
    """`function(draw, t)`, where `draw(address, logit)` is a coin."""
    PROGRAMS[function.__name__] = function
    return function


@program
def plates_nested(draw, t):
    def outer(u):
        z = draw("z", t[0] * u)
        x = jax.vmap(lambda v: draw("x", t[1] * v + z))(array(t, [0.5, -1.0]))
        return jnp.sin(x).sum() * z + x[0] + couple(z, x[1]) + x.sum() ** 2 * t[0]

    return jax.vmap(outer)(array(t, [1.0, -0.5])).sum()


def step_of(draw, t, mix=lambda x: x):
    def step(carry, u):
        x, total = carry
        x = draw("x", t[0] * x + t[1] * u)
        return (mix(x), total + couple(x, u) + x * t[0]), None

    return step


@program
def chain_with_costs(draw, t):
    start = (jnp.ones((), t.dtype), jnp.zeros((), t.dtype))
    return lax.scan(step_of(draw, t), start, array(t, X))[0][1]


@program
def chain_in_reverse(draw, t):
    def step(x, u):
        x = draw("x", t[0] * x + t[1] * u)
        return x, jax.jit(costs_of)(x, t).sum() * u

    _, ys = lax.scan(step, jnp.ones((), t.dtype), array(t, X), reverse=True)
    return ys @ array(t, [1.0, 2.0, -1.0])


@program
def plate_in_a_scan(draw, t):
    """The lanes of a step read each other's last state."""

    def step(carry, u):
        x, total = carry
        x = jax.vmap(lambda x, v: draw("x", t[0] * x + t[1] * u * v))(x[::-1], array(t, [1.0, 2.0]))
        return (x, total + jnp.sin(x + u) * t[1]), None

    start = jnp.ones(2, t.dtype)
    return lax.scan(step, (start, 0 * start), array(t, [1.0, -0.5]))[0][1].sum()


@program
def scan_in_a_plate(draw, t):
    def lane(v):
        start = (jnp.ones((), t.dtype), jnp.zeros((), t.dtype))
        return lax.scan(step_of(draw, t), start, v * array(t, [1.0, -0.5]))[0][1]

    return jax.vmap(lane)(array(t, [1.0, 2.0])).sum()


@program
def scan_in_a_scan(draw, t):
    def outer(carry, u):
        (x, total), _ = lax.scan(step_of(draw, t), carry, u * array(t, [1.0, -0.5]))
        return (x, total), x

    start = (jnp.ones((), t.dtype), jnp.zeros((), t.dtype))
    (_, total), ys = lax.scan(outer, start, array(t, [1.0, 0.3]))
    return total + jnp.sin(ys).sum()


@program
def branch_in_a_lane(draw, t):
    def lane(u):
        return lax.cond(u > 0, lambda: draw("a", t[0] * u), lambda: 2 * draw("b", t[1]))

    return costs_of(jax.vmap(lane)(array(t, X)), t).sum()


@program
def plate_in_a_checkpoint(draw, t):
    y = plate_of(draw, t, "y")
    return jax.checkpoint(lambda t: costs_of(plate_of(draw, t), t).sum())(t) * y.mean() + y.sum()


@program
def parameters_of_other_lanes(draw, t):
    z = plate_of(draw, t)
    y = jax.vmap(lambda z, u: draw("y", 2 * z + t[1] * u))(z[::-1], array(t, X))
    return (jnp.exp(y) * array(t, X)).sum()


@program
def product_of_plates(draw, t):
    y, z = plate_of(draw, t, "y"), plate_of(draw, t, "z", t[1])
    return costs_of(y, t).sum() * z.mean() + (y * z * array(t, X)).sum()


@program
def selected_lane(draw, t):
    """A choice points at another plate's draw."""
    z = plate_of(draw, t)
    at = draw("a", t[1]).astype(int) + draw("b", t[0]).astype(int)
    return jnp.exp(z)[at] * array(t, X)[at] + z[0]


@program
def written_lane(draw, t):
    z = plate_of(draw, t)
    at = draw("a", t[1]).astype(int)
    return (z.at[at].set(3 * z[2] * t[0]).at[2].add(at) * array(t, X)).sum()


@program
def carry_that_mixes(draw, t):
    def step(x, u):
        x = jax.vmap(lambda x, v: draw("x", t[0] * x + t[1] * v * u))(x, array(t, [1.0, -2.0]))
        return array(t, [[0.0, 1.0], [2.0, 0.5]]) @ x, x[0] * u

    last, ys = lax.scan(step, jnp.ones(2, t.dtype), array(t, [1.0, -0.5]))
    return jnp.exp(last).sum() + ys.sum()


@program
def later_choices_are_shared(draw, t):
    """A choice whose parameter couples the lanes, used in each lane."""
    z = plate_of(draw, t)
    a = draw("a", z.sum() - t[1])
    return (jnp.sin(z + 2 * a) * array(t, X)).sum()


@program
def early_and_late(draw, t):
    """Step costs that look ahead: the total of the draws so far, and their last one."""
    start = (jnp.ones((), t.dtype), jnp.zeros((), t.dtype))

    def step(carry, u):
        x, total = carry
        x = draw("x", t[0] * x + t[1] * u)
        return (x, total + x), (x, total)

    (last, total), (xs, before) = lax.scan(step, start, array(t, X))
    return (xs * before * array(t, X)).sum() + (xs * last).sum() + jnp.exp(total / 2)


@program
def batch_with_rows(draw, t):
    """[2, 3] coins, the three of a row coupled."""
    z = draw("z", t[0] * array(t, X) * array(t, [[1.0], [-0.7]]))
    return (jnp.sin(z.sum(1) + t[1]) + z[:, 0]).sum()


@program
def batch_with_columns(draw, t):
    """[2, 3] coins, the two of a column coupled, and the columns of a term."""
    z = draw("z", t[0] * array(t, X) * array(t, [[1.0], [-0.7]]))
    return (jnp.prod(z + 1, 0) * array(t, X)).sum() + (jnp.cumsum(z, 1) ** 2).sum()


@program
def results_of_one_call(draw, t):
    """A jitted function of two plates with a result for each."""
    y, z = plate_of(draw, t, "y"), plate_of(draw, t, "z", t[1])
    f, g = jax.jit(lambda y, z: (jnp.sin(2 * y), jnp.cos(z)))(y, z)
    return (f * array(t, X)).sum() + g.sum()


@program
def constants_beside_terms(draw, t):
    a, b = draw("a", t[0]), draw("b", t[1])
    terms = a * array(t, X) + b * array(t, [2.0, 1.0, -1.0])
    return jnp.concatenate([terms + 1, array(t, X)]).sum()


@program
def fills_beside_terms(draw, t):
    """What padding, an index out of bounds and a mask fill in is added once."""
    terms = draw("a", t[0]) * array(t, X) + draw("b", t[1]) * array(t, [2.0, 1.0, -1.0])
    read = terms.at[jnp.array([0, 9])].get(mode="fill", fill_value=3.0)
    masked = lax.select(jnp.array([True, False, True]), terms, array(t, X))
    return read.sum() + masked.sum() + lax.pad(terms, array(t, 5.0), [(1, 0, 0)]).sum()


# ---- exact expectations: the densities and values of all outcomes


def outcomes(function, t):
    """`value` and log density of every outcome of a program of coins."""
    model = vx.model(lambda: function(drawing(None), t))
    shapes = jax.eval_shape(lambda: model().simulate(jax.random.key(0)).choices)
    sizes = {a: int(np.prod(x.shape)) for a, x in shapes.items()}
    every = np.array(list(itertools.product([0, 1], repeat=sum(sizes.values()))))
    parts = np.split(every, np.cumsum(list(sizes.values()))[:-1], axis=1)
    choices = {
        a: jnp.asarray(part.reshape(len(every), *x.shape), x.dtype)
        for (a, x), part in zip(shapes.items(), parts, strict=True)
    }

    def one(choices):
        trace, log_density = model().generate(jax.random.key(0), choices)
        return trace.value, log_density

    return jax.vmap(one)(choices)


@functools.cache
def exactly(function, of=gradient):
    """Derivatives of the expectation, in float64.

    A choice that is absent counts twice in every outcome, equally often in all.
    """

    def mean(t):
        values, log_densities = outcomes(function, t)
        weights = jnp.exp(log_densities)
        values = jnp.stack(jax.tree.leaves(values))  # [outputs, outcomes]
        return values @ weights / jax.lax.stop_gradient(weights.sum())

    with jax.enable_x64(True):
        t = jnp.array(THETA)
        if of is hessian:
            return np.asarray(jax.jit(jax.hessian(mean))(t))[0]
        values, slopes = jax.jit(lambda t: (mean(t), jax.jacobian(mean)(t)))(t)
        found = np.concatenate([values[:, None], slopes], 1)
        return found if of is derivatives else found[0]


def drawing(estimator, **others):
    """Coins; `others` by address."""

    def draw(address, logit):
        return coin(address, logit, others.get(address, estimator))

    return draw


def check_program(name, right, twins, of=gradient):
    """Each of `right` and of `twins` is the estimator, and those of some addresses."""
    exact, function = exactly(PROGRAMS[name], of), PROGRAMS[name]
    programs = [lambda t, e=e, o=o: function(drawing(e, **o), t) for e, o in [*right, *twins]]
    found = estimates(programs, THETA, of)
    for draws in found[: len(right)]:
        check_mean(draws, exact)
    for draws in found[len(right) :]:
        check_biased(draws, exact)


def alone(*estimators):
    return [(e, {}) for e in estimators]
