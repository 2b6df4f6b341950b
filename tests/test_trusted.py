"""Every library function that the soundness check trusts is continuous at its branches.

Left and right limits agree, and for those listed as smooth the derivatives' limits do too.
"""

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
import numpyro.distributions as npd
import pytest
from sound_programs import KNOTS

from varax.transforms.trusted import CONTINUOUS, SMOOTH

TURN = jnp.array([[0.0, 1.0], [-1.0, 0.0]])  # the rows of x I + TURN change places at |x| = 1
RIGHT = jnp.array([1.0, 2.0])
EYE = jnp.eye(2)


def cut(method, *args, **sides):
    return lambda x: getattr(npd.TruncatedDistribution(npd.Normal(*args), **sides), method)(x)


# listed name: a function of one number, and where it branches
BRANCHES = {
    "elu": (lambda x: jax.nn.elu(x, 0.7), [0.0]),
    "selu": (jax.nn.selu, [0.0]),
    "leaky_relu": (jax.nn.leaky_relu, [0.0]),
    "hard_tanh": (jax.nn.hard_tanh, [-1.0, 1.0]),
    "sparse_plus": (jax.nn.sparse_plus, [-1.0, 1.0]),
    "_interp": (lambda x: jnp.interp(x, KNOTS, KNOTS**2), [*KNOTS.tolist()]),
    "fmax": (lambda x: jnp.fmax(x, 0.3), [0.3]),
    "fmin": (lambda x: jnp.fmin(x, 0.3), [0.3]),
    "hypot": (lambda x: jnp.hypot(x, 0.0), [0.0]),
    "ldexp": (lambda x: jnp.ldexp(x, 2), [-1.0, 0.0, 0.5, 1.0, 2.0]),
    "xlogy": (lambda x: jsp.xlogy(jnp.abs(x), jnp.abs(x)), [0.0]),
    "rel_entr": (lambda x: jsp.rel_entr(jnp.abs(x), 0.5), [0.0]),
    "kl_div": (lambda x: jsp.kl_div(jnp.abs(x), 0.5), [0.0]),
    "gamma": (jsp.gamma, [0.5, 1.0, 2.0]),
    "ndtr": (jsp.ndtr, [-1.0, 0.0, 1.0]),
    "ndtri": (jsp.ndtri, [np.exp(-32.0), np.exp(-2.0), 0.5, 1.0 - np.exp(-2.0)]),
    "betaln": (lambda x: jsp.betaln(x, 9.0) + jsp.betaln(x, x / 2), [8.0, 9.0]),
    "logsumexp": (lambda x: jsp.logsumexp(jnp.stack([x, -x, 0.0])), [0.0]),
    "sinc": (jnp.sinc, [0.0]),
    "spence": (jsp.spence, [0.5, 1.5]),
    "solve": (lambda x: jnp.linalg.solve(x * EYE + TURN, RIGHT)[0], [-1.0, 1.0]),
    "det": (lambda x: jnp.linalg.det(x * jnp.eye(3) + jnp.diag(RIGHT, 1) + 0.3), [-1.0, 0.3]),
    "slogdet": (lambda x: jnp.linalg.slogdet(x * EYE + TURN)[1], [-1.0, 1.0]),
    "inv": (lambda x: jnp.linalg.inv(x * EYE + TURN)[0, 1], [-1.0, 1.0]),
    "lu_solve": (
        lambda x: jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(x * EYE + TURN), RIGHT)[1],
        [-1.0, 1.0],
    ),
    "expm": (
        lambda x: jax.scipy.linalg.expm(x * jnp.diag(RIGHT / 2))[0, 0],
        [0.015, 0.25, 0.95, 2.1, 3.925724783138660, 4.25, 5.371920351148152, 7.85144956627732],
    ),
    "AsymmetricLaplace.log_prob": (npd.AsymmetricLaplace(0.2, 1.0, 0.5).log_prob, [0.2]),
    "AsymmetricLaplaceQuantile.log_prob": (
        npd.AsymmetricLaplaceQuantile(0.2, 1.0, 0.3).log_prob,
        [0.2],
    ),
    "Laplace.cdf": (npd.Laplace(0.2, 1.0).cdf, [0.2]),
    "Laplace.icdf": (npd.Laplace(0.2, 1.0).icdf, [0.5]),
    "TransformedDistribution.cdf": (npd.LogNormal(0.0, 1.0).cdf, [1.0]),
    "TransformedDistribution.icdf": (npd.LogNormal(0.0, 1.0).icdf, [0.5]),
    "LeftTruncatedDistribution.cdf": (cut("cdf", 0.0, 1.0, low=-0.5), [-0.5]),
    "LeftTruncatedDistribution.icdf": (cut("icdf", 0.0, 1.0, low=-0.5), [0.3]),
    "TwoSidedTruncatedDistribution.cdf": (cut("cdf", 0.0, 1.0, low=-0.5, high=1.0), [-0.5, 1.0]),
    "TwoSidedTruncatedDistribution.icdf": (cut("icdf", 0.0, 1.0, low=-0.5, high=1.0), [0.4]),
    "Distribution._validate_sample": (npd.Gamma(2.0, validate_args=True).log_prob, [1.0]),
    "_to_logits_multinom": (
        lambda x: npd.Categorical(probs=jnp.stack([x, 1 - x])).log_prob(0),
        [0.5],
    ),
    "Beta.log_prob": (npd.Beta(2.0, 3.0).log_prob, [0.5]),
    "VonMises.log_prob": (npd.VonMises(0.1, 2.0).log_prob, [0.1, 0.1 - np.pi]),
    "GeometricProbs.log_prob": (lambda x: npd.GeometricProbs(x).log_prob(0), [0.5]),
    "LeftTruncatedDistribution.log_prob": (
        lambda x: npd.LeftTruncatedDistribution(npd.Normal(x, 1.0), low=-0.5).log_prob(0.3),
        [-0.5],
    ),
    "StudentT.cdf": (npd.StudentT(3.0, 0.2, 1.0).cdf, [0.2]),
    "clamp_probs": (npd.util.clamp_probs, [0.5]),
    "AffineTransform.log_abs_det_jacobian": (
        lambda x: npd.transforms.AffineTransform(0.0, 2.0).log_abs_det_jacobian(x, 2 * x),
        [0.0],
    ),
    "PowerTransform.log_abs_det_jacobian": (
        lambda x: npd.transforms.PowerTransform(2.0).log_abs_det_jacobian(x, x**2),
        [1.0],
    ),
}
STEP = 1e-5
NO_DERIVATIVE = {"spence"}  # JAX gives NaN


def listed(table):
    return {name for names in table.values() for name in names.split()}


def jump(f, point):
    """|f(point +) - f(point -)| beyond what slope and curvature explain; float64."""
    near = [
        f(jnp.asarray(point * (1 + s) if point else s)) for s in (-2 * STEP, -STEP, STEP, 2 * STEP)
    ]
    a, b, c, d = map(float, near)
    return abs((2 * b - a) - (2 * c - d)) / (1 + abs(b))


def test_every_trusted_function_is_tested():
    assert listed(CONTINUOUS) | listed(SMOOTH) == set(BRANCHES)
    assert not listed(CONTINUOUS) & listed(SMOOTH)


@pytest.mark.parametrize("name", BRANCHES)
def test_limits_agree(name):
    f, points = BRANCHES[name]
    with jax.enable_x64(True):
        assert max(jump(f, point) for point in points) < 2e-4


@pytest.mark.parametrize("name", sorted(listed(SMOOTH) - NO_DERIVATIVE))
def test_limits_of_derivatives_agree(name):
    f, points = BRANCHES[name]
    with jax.enable_x64(True):
        assert max(jump(jax.grad(lambda x: jnp.sum(f(x))), point) for point in points) < 2e-4


def test_the_test_finds_jumps():
    with jax.enable_x64(True):
        assert jump(jnp.sign, 0.0) > 0.5
        assert jump(lambda x: jnp.interp(x, KNOTS, KNOTS, left=0.0), -3.0) > 0.5
        assert jump(jax.grad(jax.nn.leaky_relu), 0.0) > 0.5
