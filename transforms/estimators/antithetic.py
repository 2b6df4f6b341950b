"""Two values whose noise is mirrored: ARM and DisARM for coins, antithetic pairs for paths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from jax.lax import stop_gradient

from ..errors import EstimatorError, NotReparameterizableError
from ..law import Law
from ..measures import is_discrete
from ..site import over_lanes
from .base import Branches, Branching, cannot
from .parts import change, class_log_probs, element, filled, mirrored_uniform, parameter


class _Coins(Branching):
    """Two mirrored joint values of Bernoulli variables, whatever their number."""

    order = 1

    def serve(self, law: Law) -> None:
        if not issubclass(law.distribution, (npd.BernoulliProbs, npd.BernoulliLogits)):
            raise cannot(
                EstimatorError,
                self,
                law,
                "a Bernoulli law",
                "estimator=WithoutReplacement(n), SumAndSample(k) or RELAX(surrogate) for another "
                "finite support, Score() for any law",
            )

    def count(self, law: Law) -> int:
        return 2

    def branch(self, key: jax.Array, law: Law) -> Branches:
        log_p = class_log_probs(law)
        odds = log_p[1] - log_p[0]  # [*elements]
        u = jax.random.uniform(key, odds.shape, odds.dtype)
        p = jax.nn.sigmoid(stop_gradient(odds))
        b1, b2 = u > 1 - p, u < p
        score = law.couple(self.slope(u, p, b1, b2) * change(odds))
        weights = jnp.stack([0.5 + score, 0.5 - score])
        return Branches(filled(law, jnp.stack([b1, b2])), weights)

    def slope(self, u: jax.Array, p: jax.Array, b1: jax.Array, b2: jax.Array) -> jax.Array:
        """What multiplies k(b1) - k(b2) in the derivative in the log odds, per element."""
        raise NotImplementedError


class ARM(_Coins):
    """Augment-REINFORCE-merge estimator.

        b1 = [u > sigmoid(-l)],  b2 = [u < sigmoid(l)],  u uniform
        grad_l E[k(b)] = E[(k(b1) - k(b2)) (u - 1/2)]

    Unbiased for every k; first derivatives. Two runs, whatever the number of elements. The value is
    the mean of both runs.

    Yin and Zhou 2019.
    """

    def slope(self, u: jax.Array, p: jax.Array, b1: jax.Array, b2: jax.Array) -> jax.Array:
        return u - 0.5


class DisARM(_Coins):
    """DisARM estimator, also known as U2G.

        grad_l E[k(b)] = E[(k(b1) - k(b2)) (b1 - b2) sigmoid(|l|) / 2]

    The expectation of ARM given b1 and b2, so that its variance is never larger. Unbiased for every
    k; first derivatives. Two runs, whatever the number of elements.

    Dong, Mnih and Tucker 2020; Yin, Ho, Yan, Qian and Zhou 2020.
    """

    def slope(self, u: jax.Array, p: jax.Array, b1: jax.Array, b2: jax.Array) -> jax.Array:
        sign = b1.astype(p.dtype) - b2.astype(p.dtype)
        return sign * jnp.maximum(p, 1 - p) / 2


CENTRED = (npd.Normal, npd.Laplace, npd.Logistic, npd.Cauchy, npd.StudentT)
CENTRED_VECTORS = (npd.MultivariateNormal, npd.MultivariateStudentT)


class Antithetic(Branching):
    """Antithetic pairs of pathwise draws.

        E[k(x)] = E[(k(g(theta, u)) + k(g(theta, 1 - u))) / 2]

    Unbiased where k is continuous in x and piecewise differentiable; any order of derivative. Two
    runs: exact for k that are odd about the median, less variance than two independent draws for
    monotone ones, more for even ones.

    Laws that are symmetric about `loc` are reflected there; other continuous scalars need an
    inverse distribution function.

    Hammersley and Morton 1956.
    """

    pathwise = True

    def serve(self, law: Law) -> None:
        if not issubclass(law.distribution, (*CENTRED, *CENTRED_VECTORS)) and not has_icdf(law):
            raise cannot(
                NotReparameterizableError,
                self,
                law,
                "a law that is symmetric about its loc, or continuous with an inverse distribution "
                "function (icdf)",
                "estimator=Reparam() for other smooth laws, DisARM() for coins",
            )

    def count(self, law: Law) -> int:
        return 2

    def branch(self, key: jax.Array, law: Law) -> Branches:
        if issubclass(law.distribution, (*CENTRED, *CENTRED_VECTORS)):
            x = law.rsample(key)
            mirrored = 2 * parameter(law, "loc", len(law.event_shape)) - x
        else:
            u = mirrored_uniform(key, law.site.value.update(shape=law.elements))
            x, mirrored = quantile(law, u), quantile(law, 1 - u)
        values = filled(law, jnp.stack([x, mirrored]))
        return Branches(values, jnp.full((2, *law.groups), 0.5, values.dtype))


def quantile(law: Law, u: jax.Array) -> jax.Array:
    """The inverse distribution function of every element, differentiable in the parameters."""

    def one(measure: object, _: object, u: jax.Array) -> jax.Array:
        return jnp.broadcast_to(element(measure).icdf(u), u.shape)

    return over_lanes(law.site, one, law.operands, u)


def has_icdf(law: Law) -> bool:
    """Whether `quantile` serves a law."""
    if law.event_shape or is_discrete(law.template) or not law.has_rsample:
        return False
    u = jax.ShapeDtypeStruct(law.elements, law.site.value.dtype)
    try:
        jax.eval_shape(lambda ops, u: quantile(Law(law.site, ops), u), law.operands, u)
    except (NotImplementedError, AttributeError, ImportError):
        return False
    return True
