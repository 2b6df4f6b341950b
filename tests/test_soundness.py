"""The soundness check: what jumps is refused where it jumps, what does not is accepted.

That the two lists of programs are rightly classified is checked against quadrature.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import varax as vx
from jax import lax
from jax.scipy.special import ndtri
from sound_programs import KNOTS, SOUND, THREE, spread
from unsound_programs import UNSOUND
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


def test_accepted_programs_have_right_pathwise_gradients():
    declared = {"straight_through", "gamma_draw"}
    with jax.enable_x64(True):
        found = biases({k: f for k, f in SOUND.items() if k not in declared})
    assert {k: b for k, b in found.items() if not b < 2e-3} == {}


def test_refused_programs_have_wrong_pathwise_gradients():
    right_by_chance = {"custom_vjp", "fixed_by_symmetry"}
    with jax.enable_x64(True):
        found = biases({k: f for k, (_, f) in UNSOUND.items() if k not in right_by_chance})
    assert {k: b for k, b in found.items() if not b > 1e-2} == {}
