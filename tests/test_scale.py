"""Programs of thousands of sites: no recursion limit, code linear in the number of sites."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import ENUMERATE, REPARAM, SCORE, label, mean_coin

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


def code_size(program):
    return equations(jax.make_jaxpr(vx.grad(program))(KEY, 0.3).jaxpr)


def assert_affine(sizes, at):
    """Equal steps for equal numbers of sites."""
    slopes = np.diff(sizes) / np.diff(at)
    np.testing.assert_allclose(slopes, slopes[0], rtol=0.01)


@pytest.mark.parametrize(
    "law, estimators", [("normal", REPARAM), ("normal", SCORE), ("coin", SCORE)], ids=label
)
def test_code_is_linear_in_the_sites(law, estimators):
    at = [100, 200, 400]
    assert_affine([code_size(chain(n, law, estimators[0])) for n in at], at)


def test_code_of_enumerated_sites_is_linear():
    """The number of paths doubles with every site, the code does not."""
    at = [3, 6, 12]
    assert_affine([code_size(chain(n, "coin", ENUMERATE[0])) for n in at], at)


def test_code_of_direct_sites_after_an_enumerated_one_is_linear():
    def program(n):
        def run(theta):
            z = vx.sample("z", d.Bernoulli(logits=theta), estimator=ENUMERATE[0])
            return chain(n, "normal", REPARAM[0])(theta * z)

        return run

    at = [50, 100, 200]
    assert_affine([code_size(program(n)) for n in at], at)


@pytest.mark.parametrize("law, estimators", [("normal", REPARAM), ("coin", SCORE)], ids=label)
def test_two_thousand_sites(law, estimators):
    """Staged, differentiated, compiled and run; more sites than Python has stack frames."""
    assert sys.getrecursionlimit() <= 2000
    n = 2000
    program = chain(n, law, estimators[0])
    gradient = jax.jit(
        vx.value_and_grad(program), compiler_options={"xla_backend_optimization_level": 0}
    )
    value, slope = gradient(KEY, 0.3)
    assert abs(value) < n
    assert np.isfinite(slope)


def test_two_thousand_sites_are_exact_where_the_sum_is_known():
    """A sum of 2,000 normals of mean theta: each gradient is 2,000."""

    def program(theta):
        return sum(vx.sample(f"x{i}", d.Normal(theta, 1.0)) for i in range(2000))

    value, slope = vx.value_and_grad(program)(KEY, jnp.array(0.5))
    assert slope == 2000
    assert abs(value - 1000) < 4.9 * np.sqrt(2000)


def test_twelve_enumerated_sites_against_brute_force(x64):
    n = 12

    def expectation(theta):  # forwards over (x, expected total so far and x): 2 states
        prob = jnp.array([1.0, 0.0])
        total = 0.0
        for i in range(n):
            on = prob @ jax.nn.sigmoid(theta * jnp.arange(2.0))
            prob = jnp.stack([1 - on, on])
            total += prob @ jnp.sin(jnp.arange(2.0) + i)
        return total
    found = vx.value_and_grad(chain(n, "coin", ENUMERATE[0]))(KEY, jnp.array(0.3))
