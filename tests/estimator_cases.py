"""The laws that estimators are tested with: distribution, and log density written by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, softplus
from jax.scipy.special import betaln, gammaln, i0e, logsumexp

from varax import dist as d
from varax.ppl.onehot import OneHotCategorical

THETA = (0.3, -0.4)

# ---- the ways in which elements may be coupled: (lanes, batch, coupled)

LAYOUTS = {
    "joint": ((), (3,), (True,)),
    "apart": ((), (3,), (False,)),
    "lanes": ((2,), (2,), (False, True)),
    "masked": ((), (3,), (True,)),
}
MASK = np.array([True, False, True])  # of "masked"


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


def normals(t, s):
    return d.Normal(three(t, s) - 0.5, jnp.exp(three(t, s)[..., ::-1] / 2 - 0.3))


def von_mises(y, kappa):
    return kappa * (jnp.cos(y) - 1) - jnp.log(2 * np.pi * i0e(kappa))


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
    "von-mises": Case(
        lambda t, s: d.VonMises(loc(t, s), jnp.exp(t[1] + 3 * s)),
        lambda x, t, s: von_mises(x - loc(t, s), jnp.exp(t[1] + 3 * s)),
        (np.pi * LEGENDRE[0], np.pi * LEGENDRE[1]),
        lambda x, t: jnp.cos(x) + jnp.sin(2 * x) * t[1],
    ),
    "mixture": Case(
        lambda t, s: d.MixtureSameFamily(d.Categorical(logits=three(t, s)), normals(t, s)),
        lambda x, t, s: logsumexp(
            log_softmax(three(t, s)) + normals(t, s).log_prob(x[..., None]), -1
        ),
        REAL,
    ),
    "mixture-of-families": Case(
        lambda t, s: d.MixtureGeneral(
            d.Categorical(logits=jnp.stack([t[0] + s, t[1] - s], -1)),
            [d.Normal(loc(t, s), 0.8), d.Logistic(1.0 + 0 * s, scale(t, s) / 2)],
        ),
        lambda x, t, s: jnp.logaddexp(
            jax.nn.log_sigmoid(t[0] - t[1] + 2 * s) + normal(x, loc(t, s), 0.8),
            jax.nn.log_sigmoid(t[1] - t[0] - 2 * s)
            + logistic((x - 1) / scale(t, s) * 2)
            - jnp.log(scale(t, s) / 2),
        ),
        REAL,
    ),
    "gamma-log": Case(
        lambda t, s: d.Gamma(1.5 + s + t[0], jnp.exp(t[1] + 1)),
        lambda x, t, s: gamma(x, 1.5 + s + t[0], jnp.exp(t[1] + 1)),
        POSITIVE,
        lambda x, t: jnp.log(x) / 2,
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
    "normal-cubic": Case(
        lambda t, s: d.Normal(loc(t, s), scale(t, s)),
        lambda x, t, s: normal(x, loc(t, s), scale(t, s)),
        REAL,
        lambda x, t: x * t[1],
    ),
    "uniform-cubic": Case(
        lambda t, s: d.Uniform(loc(t, s), loc(t, s) + scale(t, s)),
        lambda x, t, s: np.log(0.5) + 0 * x,  # of the nodes
        LEGENDRE,
        lambda x, t: x * t[1],
        place=lambda x, t, s: loc(t, s) + scale(t, s) * (x + 1) / 2,
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
            gammaln(5.0) - gammaln(x + 1) - gammaln(5 - x) + x * (t[0] + s) - 4 * softplus(t[0] + s)
        ),
        counts(5),
    ),
}
