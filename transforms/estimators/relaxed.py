"""Control variates from continuous relaxations: REBAR and RELAX."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from jax.lax import stop_gradient
from jax.nn import softplus

from ..errors import EstimatorError
from ..law import Law
from .base import Branches, Branching, cannot
from .parts import class_log_probs, filled, per_lane, ratio, support


class Noise(NamedTuple):
    """A draw as a function of a continuous variable, which is drawn once more given the draw.

    value: shape `site.shape`.
    free: z, of which the draw is the sign or the largest entry, `[*elements]` or `[*elements, K]`.
    given: another z with the law of z given the draw. Its noise is chosen so that the two are
        equal; they differ in their derivatives.
    log_p: log probability of the draw, `[*elements]`.
    """

    value: jax.Array
    free: jax.Array
    given: jax.Array
    log_p: jax.Array


@dataclasses.dataclass(frozen=True)
class REBAR(Branching):
    """REBAR estimator.

        b = H(z),  z ~ q(z; theta);   z' ~ q(z | b; theta);   r(z) the relaxation of b
        k(b)  +  eta k(r(z))  -  eta (p(b; theta) / p(b)) k(r(z'))

    The last two terms have the same expectation for every theta, so that the mean and all its
    derivatives are those of E[k(b)]; the noise of the pair cancels most of the score function's.
    Unbiased where k is differentiable on the relaxed values; any order of derivative. Three runs.

    For Bernoulli laws z is a logistic variate plus the log odds, r(z) = sigmoid(z / temperature);
    for one-hot categorical laws z are Gumbel variates plus the logits, r(z) is a softmax.

    Args:
        temperature, eta: numbers or arrays, one for each lane at most. In expectation no derivative
            of the objective depends on them. They are tuned by minimising the variance: descend the
            derivative of `sum(gradient ** 2)` in them, where `gradient` is an estimate in theta.

    Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein 2017.
    """

    temperature: Any
    eta: Any = 1.0

    relaxes = True
    pathwise = True

    def serve(self, law: Law) -> None:
        if not (is_coin(law) or is_one_hot(law)):
            raise cannot(
                EstimatorError,
                self,
                law,
                "a Bernoulli or a one-hot categorical law, whose values have continuous ones "
                "between them",
                "RELAX(surrogate, temperature) for another finite support, Score() for any law",
            )

    def count(self, law: Law) -> int:
        return 3

    def branch(self, key: jax.Array, law: Law) -> Branches:
        b, z, given, log_p = noise(key, law)
        eta, m = per_lane(law, self.eta), ratio(law.couple(log_p))
        relaxed = relax(law, jnp.stack([z, given]), self.temperature)
        values = jnp.concatenate([filled(law, b)[None], filled(law, relaxed)])
        return Branches(values, jnp.stack([m, eta * jnp.ones_like(m), -eta * m]))


@dataclasses.dataclass(frozen=True)
class RELAX(Branching):
    """RELAX estimator: the control variate of REBAR with any function c in the objective's place.

        k(b)  +  c(r(z))  -  (p(b; theta) / p(b)) c(r(z'))

    Unbiased for every k and every differentiable c; any order of derivative. The value of the
    estimate is k(b): c, whose mean is zero, enters with its derivatives alone. One run. The program
    never sees a relaxed value, so that any finite support of scalars is served: r(z) of a
    categorical law is a vector on the simplex.

    Args:
        surrogate: c, a function of one lane's relaxed values, shape `[*batch]` for Bernoulli laws
            and `[*batch, K]` otherwise. It returns a scalar, or one number for each entry of the
            batch that depends on that entry alone. It may hold arrays, as an Equinox module or a
            `jax.tree_util.Partial`.
        temperature: number or array of the relaxation.

    Both are tuned like those of `REBAR`, by the derivative of the squared gradient; the objective's
    own derivative in them is zero.

    Grathwohl, Choi, Wu, Roeder and Duvenaud 2018.
    """

    surrogate: Callable[[jax.Array], jax.Array]
    temperature: Any = 1.0

    def serve(self, law: Law) -> None:
        if law.support_shape is None:
            raise cannot(
                EstimatorError,
                self,
                law,
                "a finite support whose size is known while tracing",
                "estimator=Score(baseline=Learned(...)) for an infinite support",
            )

    def count(self, law: Law) -> int:
        return 1

    def branch(self, key: jax.Array, law: Law) -> Branches:
        b, z, given, log_p = noise(key, law)
        surrogate = self.surrogate
        for _ in law.site.lanes:
            surrogate = jax.vmap(surrogate)
        c_free = surrogate(relax(law, z, self.temperature))
        c_given = surrogate(relax(law, given, self.temperature))
        lanes = len(law.site.lanes)
        joint = c_free.ndim == lanes  # one number depends on all elements of its lane
        of_c = log_p.sum(tuple(range(lanes, log_p.ndim))) if joint else log_p
        control = c_free - ratio(of_c) * c_given
        return Branches(filled(law, b)[None], ratio(law.couple(log_p))[None], grouped(law, control))


def grouped(law: Law, x: jax.Array) -> jax.Array:
    """Numbers of lanes or elements as shares of the groups, with the same sum: `[*groups]`."""
    share = x.reshape(x.shape + (1,) * (len(law.elements) - x.ndim))
    alone = [n if m == 1 else 1 for n, m in zip(law.elements, share.shape, strict=True)]
    return law.couple(jnp.broadcast_to(share / math.prod(alone), law.elements))


def relax(law: Law, z: jax.Array, temperature: Any) -> jax.Array:
    """r(z): between the values of the support."""
    t = per_lane(law, temperature)
    if is_coin(law):
        return jax.nn.sigmoid(z / t)
    return jax.nn.softmax(z / (t[..., None] if t.ndim else t), -1)


def noise(key: jax.Array, law: Law) -> Noise:
    """A draw with its continuous variable."""
    log_p = class_log_probs(law)  # [K, *elements]
    return _coin(key, log_p) if is_coin(law) else _classes(key, law, jnp.moveaxis(log_p, 0, -1))


def _coin(key: jax.Array, log_p: jax.Array) -> Noise:
    odds = log_p[1] - log_p[0]
    z = odds + jax.random.logistic(key, odds.shape, odds.dtype)
    b = stop_gradient(z) > 0
    # Given b = 1: z = log(1 + (1 + e^odds) v / (1 - v)), v uniform; given 0 the same with signs.
    sign = jnp.where(b, 1.0, -1.0)
    scale = softplus(sign * odds)
    size = jnp.maximum(jnp.abs(z), jnp.finfo(z.dtype).tiny)
    logit_v = stop_gradient(size + jnp.log(-jnp.expm1(-size)) - scale)
    return Noise(b, z, sign * softplus(logit_v + scale), jnp.where(b, log_p[1], log_p[0]))


def _classes(key: jax.Array, law: Law, log_p: jax.Array) -> Noise:
    log_p = jnp.maximum(log_p, -1e30)  # [*elements, K]
    z = log_p + jax.random.gumbel(key, log_p.shape, log_p.dtype)
    at, top = jnp.argmax(z, -1), stop_gradient(z.max(-1, keepdims=True))
    chosen = jax.nn.one_hot(at, log_p.shape[-1], dtype=bool)
    # Given the class, exp(-z) of it is E ~ Exp(1), and of class i it is E_i / p_i + E.
    gap = jnp.where(chosen, -1.0, jnp.minimum(stop_gradient(z) - top, -jnp.finfo(z.dtype).eps))
    log_excess = stop_gradient(-z + jnp.log(-jnp.expm1(gap)) + log_p)
    given = jnp.where(chosen, top, -jnp.logaddexp(log_excess - log_p, -top))
    value = support(law)[at]
    return Noise(value, z, given, jnp.take_along_axis(log_p, at[..., None], -1)[..., 0])


def is_coin(law: Law) -> bool:
    """Whether the values are 0 and 1, one probability each."""
    return issubclass(law.distribution, (npd.BernoulliProbs, npd.BernoulliLogits))


def is_one_hot(law: Law) -> bool:
    """Whether the values are the K unit vectors."""
    shape = law.support_shape  # [K, *event]
    return shape is not None and len(shape) == 2 and shape[0] == shape[1]
