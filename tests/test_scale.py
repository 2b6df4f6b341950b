"""Programs of thousands of sites: no recursion limit, code linear in the number of sites."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import ENUMERATE, REPARAM, SCORE, check_exact, exactly, gradient, label

import varax as vx
from varax import dist as d

KEY = jax.random.key(0)
LAWS = {"normal": lambda u: d.Normal(u, 1.0), "coin": lambda u: d.Bernoulli(logits=u)}


def chain(n, law, estimator):
    """n sites in a Python loop, each depending on the one before."""

    def program(theta):
        x, total = 0.0, 0.0
        for i in range(n):
            x = vx.sample(f"x{i}", LAWS[law](theta * x), estimator=estimator)
            total = total + jnp.sin(x + i)
        return total

    return program


def equations(jaxpr):
    """How many equations a jaxpr has, those of its sub-jaxprs included."""
    return sum(1 + sum(map(equations, subjaxprs(eqn))) for eqn in jaxpr.eqns)


def subjaxprs(eqn):
    for param in eqn.params.values():
        for item in param if isinstance(param, (tuple, list)) else (param,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr


def assert_linear(program, at):
    """Equally many equations for each further site."""
    sizes = [equations(jax.make_jaxpr(vx.grad(program(n)))(KEY, 0.3).jaxpr) for n in at]
    slopes = np.diff(sizes) / np.diff(at)
    assert slopes[0] == slopes[1], dict(zip(at, sizes, strict=True))


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "law, estimators", [("normal", REPARAM), ("normal", SCORE), ("coin", SCORE)], ids=label
)
def test_code_is_linear_in_the_sites(law, estimators):
    assert_linear(lambda n: chain(n, law, estimators[0]), [100, 200, 400])


def test_code_of_enumerated_sites_is_linear():
    """The number of paths doubles with every site, the code does not."""
    assert_linear(lambda n: chain(n, "coin", ENUMERATE[0]), [3, 6, 12])


def test_code_after_an_enumerated_site_is_linear():
    def program(n):
        def run(theta):
            z = vx.sample("z", d.Bernoulli(logits=theta), estimator=ENUMERATE[0])
            return chain(n, "normal", REPARAM[0])(theta * z)

        return run

    assert_linear(program, [25, 50, 100])


@pytest.mark.slow
def test_two_thousand_sites():
    """More sites than Python has stack frames, with the gradient that the formula gives.

    Not under jit: XLA's own time grows with more than the square of so long a program.
    """

    def program(theta):
        total, on = 0.0, []
        for i in range(1000):
            total += vx.sample(f"x{i}", d.Normal(theta, 1.0))
            on.append(vx.sample(f"z{i}", d.Bernoulli(logits=theta), estimator=SCORE[0]))
        on = sum(on)
        return total + on, on

    assert sys.getrecursionlimit() < 2000
    (value, on), slope = vx.value_and_grad(program, has_aux=True)(KEY, 0.3)
    p = 1 / (1 + np.exp(-0.3))
    assert abs(value - 1000 * (0.3 + p)) < 5 * np.sqrt(1000 * (1 + p * (1 - p)))
    # a score meets what its choice can influence: the coins, and of the normals nothing
    np.testing.assert_allclose(slope, 1000 + on * (1 - p), rtol=1e-4)


def test_twelve_enumerated_sites_against_brute_force(x64):
    n = 12
    paths = np.array(list(itertools.product([0.0, 1.0], repeat=n)))  # [4096, n]
    before = np.pad(paths, ((0, 0), (1, 0)))[:, :n]

    def expectation(theta):
        logits = theta[0] * before
        log_p = (paths * logits - jax.nn.softplus(logits)).sum(1)
        return jnp.exp(log_p) @ jnp.sin(paths + np.arange(n)).sum(1)

    program = chain(n, "coin", ENUMERATE[0])
    found = jax.jit(gradient, static_argnums=0)(lambda t: program(t[0]), KEY, jnp.array([0.3]))
    check_exact(np.asarray(found), exactly(expectation, (0.3,)))
