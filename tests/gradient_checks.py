"""What the gradient tests share: the statistics, exact expectations, and broken twins.

`check(program, expectation, theta, right, broken)` is the whole method: the mean of many estimates
of value and gradient agrees with the exact ones, and the same test fails with a broken estimator
in the place of the right one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

import varax as vx
from varax import estimators as est

FALSE_ALARM = 1e-6  # per assertion
DRAWS = 50_000
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling takes seconds, running does not

# ---- statistics


def tolerance(dtype):
    """Relative and absolute error of arithmetic, for what has no noise."""
    return 1e-10 if dtype == np.float64 else 1e-5


def check_mean(draws, exact):
    """The mean of `draws` [n, ...] is `exact`: a two-sided z-test over all coordinates."""
    excess = _excess(draws, exact)
    assert (excess <= 1).all(), _report(draws, exact, excess)


def check_biased(draws, exact):
    """The same test fails, by a finite amount: the test can see a broken estimator."""
    assert np.isfinite(draws).all(), "a twin is to be biased, not undefined"
    excess = _excess(draws, exact)
    assert (excess > 1).any(), f"the twin passes: {_report(draws, exact, excess)}"


def check_exact(draws, exact):
    """Every draw is `exact` up to arithmetic."""
    tol = tolerance(draws.dtype)
    np.testing.assert_allclose(draws, np.broadcast_to(exact, draws.shape), rtol=tol, atol=tol)


def _excess(draws, exact):
    """Per coordinate, the error of the mean in units of what chance and rounding allow."""
    rounding = tolerance(draws.dtype) * (1 + np.abs(exact))
    draws = np.asarray(draws, np.float64)
    sd = draws.std(0, ddof=1)
    z = -ndtri(FALSE_ALARM / (2 * sd.size))
    return np.abs(draws.mean(0) - exact) / (z * sd / np.sqrt(len(draws)) + rounding)


def _report(draws, exact, excess):
    draws = np.asarray(draws, np.float64)
    se = draws.std(0, ddof=1) / np.sqrt(len(draws))
    return f"mean {draws.mean(0)}, standard error {se}, exact {exact}, excess {excess}"


# ---- estimates and exact derivatives at theta [p]


def gradient(program, key, theta):
    """An estimate of value and gradient, [1 + p]."""
    value, slope = vx.value_and_grad(program)(key, theta)
    return jnp.concatenate([value[None], slope])


def hessian(program, key, theta):
    """An estimate of the second derivatives, [p, p]."""
    return jax.hessian(lambda t: vx.expect(program)(key, t))(theta)


def estimates(programs, theta, of=gradient, draws=DRAWS, seed=0):
    """Independent estimates of each program, [draws, ...]; compiled together, to save time."""
    keys = jax.random.split(jax.random.key(seed), draws)

    def one(key, theta):
        return [of(program, key, theta) for program in programs]

    run = jax.jit(jax.vmap(one, in_axes=(0, None)), compiler_options=QUICKLY)
    return [np.asarray(x) for x in run(keys, jnp.asarray(theta, float))]


@functools.lru_cache(maxsize=256)
def exactly(expectation, theta, of=gradient):
    """The derivatives of an expectation known in closed form, in float64."""
    with jax.enable_x64(True):
        if of is hessian:
            return np.asarray(jax.jit(jax.hessian(expectation))(jnp.array(theta)))
        value, slope = jax.jit(jax.value_and_grad(expectation))(jnp.array(theta))
        return np.concatenate([value[None], slope])


def with_estimators(program, *estimators):
    """The program of theta alone."""
    return lambda theta: program(theta, *estimators)


def check(program, expectation, theta, right, *twins, of=gradient):
    """`program(theta, *right)` has the expectation's derivatives; with a twin it has not."""
    programs = [with_estimators(program, *e) for e in (right, *twins)]
    exact = exactly(expectation, tuple(theta), of)
    draws, *biased = estimates(programs, theta, of)
    check_mean(draws, exact)
    if all(isinstance(e, est.Enumerate) for e in right):
        check_exact(draws, exact)
    for twin in biased:
        check_biased(twin, exact)


def label(x):
    """A test's id for an estimator, alone or with its twins, for a precision, a function."""
    if isinstance(x, tuple):
        x = x[0]
    if isinstance(x, bool):
        return "float64" if x else "float32"
    if x is None or isinstance(x, est.Estimator):
        return "Default" if x is None else type(x).__name__
    return getattr(x, "__name__", None)


# ---- exact expectations: E[g(x)], g of scalars


def mean_coin(g, logit):
    """x is 1 with the log odds `logit`, else 0."""
    p = jax.nn.sigmoid(logit)
    return p * g(1.0) + (1 - p) * g(0.0)


def mean_normal(g, mean, sd, nodes=24):
    """Gauss-Hermite quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return w @ jax.vmap(g)(mean + sd * x) / np.sqrt(2 * np.pi)


# ---- broken twins


class NoScore(est.Score):
    """Forgets the score term."""

    def draw(self, key, law):
        return est.Drawn(super().draw(key, law).value)


class DoubleScore(est.Score):
    """Counts the score term twice."""

    def draw(self, key, law):
        value, log_weight, _ = super().draw(key, law)
        return est.Drawn(value, 2 * log_weight)


class Frozen(est.Reparam):
    """Forgets the path."""

    def draw(self, key, law):
        return est.Drawn(jax.lax.stop_gradient(law.rsample(key)))


@dataclasses.dataclass(frozen=True)
class SharedLanes(est.Direct):
    """All lanes see the first one's noise; each lane alone has the right law if all are alike."""

    inner: est.Direct

    def draw(self, key, law):
        value, log_weight, _ = self.inner.draw(key, law)
        return est.Drawn(jnp.broadcast_to(value[:1], value.shape), log_weight)


class FrozenWeights(est.Enumerate):
    """Forgets that the probabilities depend on parameters."""

    def branch(self, key, law):
        values, weights, _ = super().branch(key, law)
        return est.Branches(values, jax.lax.stop_gradient(weights))


class FirstOrder(est.Score):
    """Weight 1 + log p - stop_gradient(log p): the first derivative is right, the second is not."""

    def draw(self, key, law):
        value, log_weight, _ = super().draw(key, law)
        return est.Drawn(value, jnp.log1p(log_weight))


class FirstOrderPath(est.Reparam):
    """Right path, but straight: its second derivative in the distribution's parameters is lost."""

    def draw(self, key, law):
        def path(operands):
            return est.Law(law.site, operands).rsample(key)

        straight = jax.custom_jvp(path)

        @straight.defjvp
        def _(operands, tangents):
            return path(*operands), jax.jvp(path, jax.lax.stop_gradient(operands), tangents)[1]

        return est.Drawn(straight(law.operands))


class FirstOrderWeights(est.Enumerate):
    """The probabilities' second derivatives are lost."""

    def branch(self, key, law):
        values, weights, _ = super().branch(key, law)
        p, log_p = jax.lax.stop_gradient(weights), jnp.log(weights)
        return est.Branches(values, p * (1 + log_p - jax.lax.stop_gradient(log_p)))


# (estimator, its twins)
REPARAM = (est.Reparam(), Frozen())
SCORE = (est.Score(), NoScore(), DoubleScore())
ENUMERATE = (est.Enumerate(), FrozenWeights())
DEFAULT_SMOOTH = (None, Frozen())
DEFAULT_DISCRETE = (None, NoScore())
