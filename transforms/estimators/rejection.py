"""Pathwise derivatives through a rejection sampler."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from jax.lax import stop_gradient
from jax.scipy.special import gammaln

from ..errors import EstimatorError, NotReparameterizableError
from ..law import Law
from .base import Direct, Drawn, cannot
from .parts import change, filled, parameter

LEAST = 1.0  # shape from which the sampler of Marsaglia and Tsang works


@dataclasses.dataclass(frozen=True)
class Rejection(Direct):
    """Rejection-sampling variational inference (RSVI) estimator, for gamma variates.

        z = h(e; a) = (a - 1/3) (1 + e / sqrt(9 a - 3))^3,     e ~ pi(e; a), the accepted noise
        grad E[k(z)] = E[dk/dz dh/da  +  k(z) d/da log pi(e; a)],
        log pi(e; a) = log Gamma(h(e; a); a, 1) + log dh/de

    pi is almost standard normal, so that the score term is small. Unbiased where k is continuous
    and piecewise differentiable; derivatives to the second order, beyond which the end of the
    noise's range, which moves with a, may matter.

    A Gamma(a) variate is one of Gamma(a + B) times B factors u_i^(1 / (a + i)), i = 0, ..., B - 1,
    whose path is exact; a larger B makes the score term smaller. A shape below one is raised at
    least once. Beta and Dirichlet variates are ratios of gamma variates.

    Args:
        boosts: B.

    Naesseth, Ruiz, Linderman and Blei 2017; Marsaglia and Tsang 2000.
    """

    boosts: int = 0

    order = 2
    pathwise = True

    def __post_init__(self) -> None:
        if self.boosts < 0:
            raise EstimatorError(
                "Rejection raises the shape a number of times.",
                expected="boosts >= 0",
                got=self.boosts,
            )

    def serve(self, law: Law) -> None:
        if not issubclass(law.distribution, (npd.Gamma, npd.Beta, npd.Dirichlet)):
            raise cannot(
                NotReparameterizableError,
                self,
                law,
                "a gamma, beta or Dirichlet law",
                "estimator=Reparam() for laws with a differentiable sampler, Score() for others",
            )

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        if issubclass(law.distribution, npd.Gamma):
            log_x, log_weight = self.log_gamma(key, parameter(law, "concentration"))
            return Drawn(filled(law, jnp.exp(log_x) / parameter(law, "rate")), log_weight)
        if issubclass(law.distribution, npd.Beta):
            names = ("concentration1", "concentration0")
            shapes = jnp.stack([parameter(law, name) for name in names], -1)
        else:
            shapes = parameter(law, "concentration", 1)
        log_x, log_weight = self.log_gamma(key, shapes)  # [*elements, K]
        x = jax.nn.softmax(log_x, -1)
        value = x[..., 0] if issubclass(law.distribution, npd.Beta) else x
        return Drawn(filled(law, value), log_weight.sum(-1))

    def log_gamma(self, key: jax.Array, shape: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logarithms of Gamma(shape, 1) variates and their log weights, `shape`'s shape."""
        keys = jax.random.split(key)
        boosts = max(self.boosts, 1)
        needed = (self.boosts > 0) | (stop_gradient(shape) < LEAST)
        a = shape + jnp.where(needed, boosts, 0)
        z = stop_gradient(jax.random.gamma(keys[0], a))
        d, c = a - 1 / 3, jnp.sqrt(9 * a - 3)
        e = stop_gradient(c * (jnp.cbrt(z / d) - 1))
        log_v = jnp.log1p(e / c)  # h = d v^3
        log_z = jnp.log(d) + 3 * log_v
        log_pi = a * log_z - jnp.exp(log_z) - gammaln(a) - log_v - jnp.log(c)  # log 3 left out
        u = jax.random.exponential(keys[1], (boosts, *shape.shape), shape.dtype)
        raised = shape + jnp.arange(boosts).reshape((-1, *(1,) * shape.ndim))
        factors = jnp.where(needed, -u / raised, 0.0).sum(0)
        return log_z + factors, change(log_pi)
