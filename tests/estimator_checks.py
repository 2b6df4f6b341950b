"""Estimates from one estimator alone, without the engine, and what they should be.

The objective couples elements through G(s) = s + s^2 / 2 + s^3 / 6, s the sum of h(x_e, theta) over
the elements of a group. Elements are independent, so the cumulants of s are sums of those of
h(x_e), which quadrature over one element's density gives exactly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from estimator_cases import CASES, LAYOUTS, MASK, THETA, cost_of_scalar, offsets
from gradient_checks import DRAWS, QUICKLY, check_biased, check_mean
from jax.lax import stop_gradient

from varax import estimators as est
from varax.transforms.measures import Masked
from varax.transforms.site import make_site

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
    each = each * MASK[:, None] if layout == "masked" else each
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
    stop = {
        part: stop_gradient if part in broken else lambda x: x for part in ("values", "weights")
    }
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
        def measure(s):
            found = case.make(theta, s)
            return Masked(found, MASK) if layout == "masked" else found

        law = law_of(measure, s, estimator, lanes, coupled)

        def cost(x):
            x = case.number(x) if case.number else x.astype(float)
            h = (case.h or cost_of_scalar)(x, theta)
            return total(law.couple(h * MASK if layout == "masked" else h))

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
    """The mean is right in all layouts, and wrong in the first without derivatives of a part."""
    programs = [program(name, layout, estimator) for layout in layouts]
    twin = program(name, layouts[0], estimator, broken)
    *right, wrong = estimates([*programs, twin])
    for layout, draws in zip(layouts, right, strict=True):
        check_mean(draws, exact(name, layout))
    check_biased(wrong, exact(name, layouts[0]))
