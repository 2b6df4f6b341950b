"""A model in which every integral is known: what the tests of objectives share.

z ~ Normal(t[0], 1), x ~ Normal(z, exp t[1]), guide z ~ Normal(t[2], exp t[3]), x = 1.3.
"""

import jax
import jax.numpy as jnp
import numpy as np

import varax as vx
from varax import dist as d

X = 1.3
DATA = {"x": X}
THETA = (0.2, -0.3, 0.6, -0.3)  # the guide is wider than the posterior: weights are bounded
MODEL, GUIDE = slice(1, 3), slice(3, 5)  # columns of [value, gradient]


@vx.model
def model(t):
    z = vx.sample("z", d.Normal(t[0], 1.0))
    vx.sample("x", d.Normal(z, jnp.exp(t[1])))


@vx.model
def guide(t):
    vx.sample("z", d.Normal(t[2], jnp.exp(t[3])))


def of(objective, *args, **options):
    """The objective as a program of t."""
    return lambda t: objective(model(t), guide(t), DATA, *args, **options)


def at_posterior(t):
    """t, the guide in it the posterior."""
    precision = 1 + jnp.exp(-2 * t[1])
    mean = (t[0] + X * jnp.exp(-2 * t[1])) / precision
    return jnp.stack([t[0], t[1], mean, -jnp.log(precision) / 2])


# ---- exact integrals


def log_integral(t, prior, likelihood, guide=0.0):
    """log int p(z)^prior p(x | z)^likelihood q(z)^guide dz."""
    v, w = jnp.exp(2 * t[1]), jnp.exp(2 * t[3])
    a = prior + likelihood / v + guide / w
    b = prior * t[0] + likelihood * X / v + guide * t[2] / w
    c = prior * t[0] ** 2 + likelihood * X**2 / v + guide * t[2] ** 2 / w
    two_pi = jnp.log(2 * jnp.pi)
    log = -(prior + likelihood + guide) * two_pi / 2 - likelihood * t[1] - guide * t[3]
    return log + (two_pi - jnp.log(a)) / 2 + (b**2 / a - c) / 2


def log_evidence(t):
    return log_integral(t, 1.0, 1.0)


def expected_log_likelihood(t):
    v = jnp.exp(2 * t[1])
    away = (X - t[2]) ** 2 + jnp.exp(2 * t[3])
    return -jnp.log(2 * jnp.pi) / 2 - t[1] - away / (2 * v)


def kl(t):
    """KL(q(z) || p(z))."""
    return ((t[2] - t[0]) ** 2 + jnp.exp(2 * t[3]) - 1) / 2 - t[3]


def entropy(t):
    """Of the guide."""
    return (1 + jnp.log(2 * jnp.pi)) / 2 + t[3]


def log_prior(t, z):
    return -jnp.log(2 * jnp.pi) / 2 - (z - t[0]) ** 2 / 2


def log_joint(t, z):
    return log_prior(t, z) - jnp.log(2 * jnp.pi) / 2 - t[1] - ((X - z) / jnp.exp(t[1])) ** 2 / 2


def log_guide(t, z):
    return -jnp.log(2 * jnp.pi) / 2 - t[3] - ((z - t[2]) / jnp.exp(t[3])) ** 2 / 2


def log_w(t, z):
    return log_joint(t, z) - log_guide(t, z)


def log_mean_exp(x):
    return jax.nn.logsumexp(x) - jnp.log(len(x))


def mean_of_pairs(f, t, nodes=40):
    """E[f(z)], z two draws of the guide, by quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    pairs = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)
    weights = np.outer(w, w).ravel() / (2 * np.pi)
    return weights @ jax.vmap(f)(t[2] + jnp.exp(t[3]) * pairs)
