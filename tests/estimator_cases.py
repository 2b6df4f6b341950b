"""Laws with known expectations, and estimates from one estimator alone, without the engine.

The objective couples elements through G(s) = s + s^2 / 2 + s^3 / 6, s the sum of h(x_e, theta) over
the elements of a group. Elements are independent, so the cumulants of s are sums of those of
h(x_e), which quadrature over one element's density, written here by hand, gives exactly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from gradient_checks import DRAWS, QUICKLY, check_biased, check_mean
from jax.lax import stop_gradient
from jax.nn import log_softmax, softplus
from jax.scipy.special import betaln, gammaln

from varax import dist as d
from varax import estimators as est
from varax.ppl.onehot import OneHotCategorical
from varax.transforms.site import make_site

THETA = (0.3, -0.4)

# ---- the ways in which elements may be coupled: (lanes, batch, coupled)

LAYOUTS = {
    "joint": ((), (3,), (True,)),
    "apart": ((), (3,), (False,)),
    "lanes": ((2,), (2,), (False, True)),
}


def offsets(layout):
    """What tells elements apart, [*lanes, *batch]."""
    lanes, batch, _ = LAYOUTS[layout]
    n = int(np.prod(lanes + batch))
    return np.linspace(-0.5, 0.6, n).reshape(lanes + batch)


# ---- laws: distribution of (theta, offsets), log density by hand, nodes and their weights

GRID = np.linspace(-30, 30, 2401)
STEP = GRID[1] - GRID[0]
REAL = (GRID, np.full(GRID.shape, STEP))
POSITIVE = (np.exp(GRID), STEP * np.exp(GRID))
UNIT = (1 / (1 + np.exp(-GRID)), STEP / (2 + np.exp(GRID) + np.exp(-GRID)))
LEGENDRE = np.polynomial.legendre.leggauss(60)


def counts(n):
    return np.arange(float(n)), np.ones(n)


@dataclasses.dataclass(frozen=True)
class Case:
    """A law of one element given theta and its offset s."""

    make: object
    log_p: object  # (x, theta, s) -> log density
    nodes: tuple
    h: object = None  # (x, theta) -> what the objective adds up over elements
    number: object = None  # (value with an event) -> x
    place: object = None  # (node, theta, s) -> x, where the support depends on theta


def cost_of_scalar(x, t):
    return jnp.sin(2 * x) / 2 + 0.4 * jnp.exp(t[1]) * x


def three(t, s):
    return jnp.stack([t[0] + s, t[1] - s + 0 * t[0], 0 * t[0] + 0 * s], -1)


def normal(x, loc, scale):
    return -(((x - loc) / scale) ** 2) / 2 - jnp.log(scale) - np.log(2 * np.pi) / 2


def gamma(x, a, b):
    return a * jnp.log(b) + (a - 1) * jnp.log(x) - b * x - gammaln(a)


def loc(t, s):
    return t[0] + s


def scale(t, s):
    return jnp.exp(t[1] - s)


def logistic(x):
    return -x - 2 * softplus(-x)


CASES = {
    "normal": Case(
        lambda t, s: d.Normal(loc(t, s), scale(t, s)),
        lambda x, t, s: normal(x, loc(t, s), scale(t, s)),
        REAL,
    ),
    "lognormal": Case(
        lambda t, s: d.LogNormal(loc(t, s), scale(t, s)),
        lambda x, t, s: normal(jnp.log(x), loc(t, s), scale(t, s)) - jnp.log(x),
        POSITIVE,
        lambda x, t: jnp.sin(2 * x) / 2 + 0.4 * jnp.exp(t[1]) * jnp.log1p(x),
    ),
    "exponential": Case(
        lambda t, s: d.Exponential(jnp.exp(t[0] + s)),
        lambda x, t, s: t[0] + s - jnp.exp(t[0] + s) * x,
        POSITIVE,
    ),
    "gumbel": Case(
        lambda t, s: d.Gumbel(loc(t, s), scale(t, s)),
        lambda x, t, s: (
            -(x - loc(t, s)) / scale(t, s)
            - jnp.exp(-(x - loc(t, s)) / scale(t, s))
            - jnp.log(scale(t, s))
        ),
        REAL,
    ),
    "logistic": Case(
        lambda t, s: d.Logistic(loc(t, s), scale(t, s) / 2),
        lambda x, t, s: logistic((x - loc(t, s)) / scale(t, s) * 2) - jnp.log(scale(t, s) / 2),
        REAL,
    ),
    "laplace": Case(
        lambda t, s: d.Laplace(0.0 * s, scale(t, s) / 2),
        lambda x, t, s: -x / scale(t, s) * 2 - jnp.log(scale(t, s) / 2),
        POSITIVE,
        lambda x, t: x**2 / 4,
    ),
    "uniform": Case(
        lambda t, s: d.Uniform(loc(t, s), loc(t, s) + scale(t, s)),
        lambda x, t, s: np.log(0.5) + 0 * x,  # of the nodes
        LEGENDRE,
        place=lambda x, t, s: loc(t, s) + scale(t, s) * (x + 1) / 2,
    ),
    "gamma": Case(
        lambda t, s: d.Gamma(jnp.exp(t[0] + s), jnp.exp(t[1] + 1)),
        lambda x, t, s: gamma(x, jnp.exp(t[0] + s), jnp.exp(t[1] + 1)),
        POSITIVE,
    ),
    "beta": Case(
        lambda t, s: d.Beta(jnp.exp(t[0] + s), jnp.exp(t[1] - s)),
        lambda x, t, s: (
            (jnp.exp(t[0] + s) - 1) * jnp.log(x)
            + (jnp.exp(t[1] - s) - 1) * jnp.log1p(-x)
            - betaln(jnp.exp(t[0] + s), jnp.exp(t[1] - s))
        ),
        UNIT,
    ),
    "poisson": Case(
        lambda t, s: d.Poisson(jnp.exp(t[0] + s)),
        lambda x, t, s: x * (t[0] + s) - jnp.exp(t[0] + s) - gammaln(x + 1),
        counts(60),
    ),
    "bernoulli": Case(
        lambda t, s: d.Bernoulli(jax.nn.sigmoid(2 * t[0] + s)),
        lambda x, t, s: x * (2 * t[0] + s) - softplus(2 * t[0] + s),
        counts(2),
    ),
    "bernoulli-logits": Case(
        lambda t, s: d.Bernoulli(logits=2 * t[0] + s),
        lambda x, t, s: x * (2 * t[0] + s) - softplus(2 * t[0] + s),
        counts(2),
    ),
    "categorical": Case(
        lambda t, s: d.Categorical(jax.nn.softmax(three(t, s))),
        lambda x, t, s: log_softmax(three(t, s))[x.astype(int)],
        counts(3),
    ),
    "categorical-logits": Case(
        lambda t, s: d.Categorical(logits=three(t, s)),
        lambda x, t, s: log_softmax(three(t, s))[x.astype(int)],
        counts(3),
    ),
    "one-hot": Case(
        lambda t, s: OneHotCategorical(logits=three(t, s)),
        lambda x, t, s: log_softmax(three(t, s))[x.astype(int)],
        counts(3),
        number=lambda x: x @ np.arange(3.0),
    ),
    "binomial": Case(
        lambda t, s: d.Binomial(4, logits=t[0] + s),
        lambda x, t, s: (
            gammaln(5.0)
            - gammaln(x + 1)
            - gammaln(5 - x)
            + x * (t[0] + s)
            - 4 * softplus(t[0] + s)
        ),
        counts(5),
    ),
}


# ---- exact values


def total(s):
    """What the objective does to the sum over a group."""
    return s + s**2 / 2 + s**3 / 6


def exact_mean(name, layout, theta):
    case, (_, _, coupled) = CASES[name], LAYOUTS[layout]
    nodes, weights = case.nodes

    def cumulants(s):
        x = case.place(nodes, theta, s) if case.place else nodes
        h = (case.h or cost_of_scalar)(x, theta)
        p = weights * jnp.exp(case.log_p(nodes, theta, s))
        m1, m2, m3 = p @ h, p @ h**2, p @ h**3
        return jnp.stack([m1, m2 - m1**2, m3 - 3 * m1 * m2 + 2 * m1**3])

    s = offsets(layout)
    each = jax.vmap(cumulants)(s.ravel()).reshape((*s.shape, 3))
    axes = tuple(i for i, c in enumerate(coupled) if c)
    a, b, c = jnp.moveaxis(each.sum(axes) if axes else each, -1, 0)
    return (a + (b + a**2) / 2 + (c + 3 * b * a + a**3) / 6).sum()


@functools.cache
def exact(name, layout, theta=THETA):
    """Value and gradient, [1 + p], in float64."""
    with jax.enable_x64(True):
        t = jnp.array(theta)
        value, slope = jax.jit(jax.value_and_grad(lambda t: exact_mean(name, layout, t)))(t)
        return np.concatenate([value[None], slope])


# ---- estimates


def law_of(measure_of, parameters, estimator, lanes, coupled):
    """The law of a site with lanes; `parameters` is a tree of arrays with the lanes in front."""
    first = jax.tree.map(lambda x: x[(0,) * len(lanes)], parameters)

    def operands(parameters):
        return make_site(("x",), "draw", measure_of(parameters), estimator=estimator)[1]

    site, _ = make_site(("x",), "draw", measure_of(first), estimator=estimator)
    for _ in lanes:
        operands = jax.vmap(operands)
    operands = operands(parameters)
    mapped = ((True,) * len(operands),) * len(lanes)
    extras, site = site.extras, dataclasses.replace(site, lanes=lanes, mapped=mapped)
    assert not (extras and lanes), "arrays of estimators are tested without lanes"
    return est.Law(site, operands, coupled)


def surrogate(law, estimator, key, cost, broken=()):
    """The estimate whose derivatives are those of sum_g E[cost_g(x)]; `cost` gives `[*groups]`."""
    estimator.serve(law)
    stop = {part: stop_gradient if part in broken else lambda x: x for part in ("values", "weights")}
    if isinstance(estimator, est.Direct):
        value, log_weight, _ = estimator.draw(key, law)
        assert value.shape == law.site.shape and value.dtype == law.site.value.dtype
        if log_weight is None:
            return cost(stop["values"](value)).sum()
        assert log_weight.shape == law.elements
        weight = stop["weights"](jnp.exp(law.couple(log_weight)))
        return (weight * cost(stop["values"](value))).sum()
    values, weights, control = estimator.branch(key, law)
    assert values.shape == (estimator.count(law), *law.site.shape)
    assert values.dtype == law.site.value.dtype
    assert weights.shape == (estimator.count(law), *law.groups)
    found = (stop["weights"](weights) * jax.vmap(cost)(stop["values"](values))).sum()
    return found if control is None else found + control.sum()


def program(name, layout, estimator, broken=()):
    """`(key, theta) -> estimate` for a case in a layout."""
    case, (lanes, _, coupled) = CASES[name], LAYOUTS[layout]
    s = jnp.asarray(offsets(layout), float)

    def estimate(key, theta):
        law = law_of(lambda s: case.make(theta, s), s, estimator, lanes, coupled)

        def cost(x):
            x = case.number(x) if case.number else x.astype(float)
            h = (case.h or cost_of_scalar)(x, theta)
            return total(law.couple(h))

        return surrogate(law, estimator, key, cost, broken)

    return estimate


def value_and_slope(estimate):
    def one(key, theta):
        value, slope = jax.value_and_grad(estimate, 1)(key, theta)
        return jnp.concatenate([value[None], slope])

    return one


def estimates(programs, theta=THETA, draws=DRAWS, seed=0):
    """Independent values and gradients of each program, [draws, 1 + p]; compiled together."""
    keys = jax.random.split(jax.random.key(seed), draws)

    def one(key, theta):
        return [value_and_slope(p)(key, theta) for p in programs]

    run = jax.jit(jax.vmap(one, in_axes=(0, None)), compiler_options=QUICKLY)
    return [np.asarray(x) for x in run(keys, jnp.asarray(theta, float))]


def check_case(name, estimator, broken, layouts=tuple(LAYOUTS)):
    """The mean is right in all layouts, and wrong in the first where a part's derivative is lost."""
    programs = [program(name, layout, estimator) for layout in layouts]
    twin = program(name, layouts[0], estimator, broken)
    *right, wrong = estimates([*programs, twin])
    for layout, draws in zip(layouts, right, strict=True):
        check_mean(draws, exact(name, layout))
    check_biased(wrong, exact(name, layouts[0]))
