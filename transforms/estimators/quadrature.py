"""Deterministic rules: a few fixed values, exact for polynomials of a low degree."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd

from ...kernels.source import user_line
from ..errors import EnumerationError, EstimatorError, NotReparameterizableError
from ..law import Law
from .antithetic import has_icdf, quantile
from .base import Branches, Branching, cannot
from .enumerate import LIMIT, joint_digits
from .parts import filled, parameter


class _Rule(Branching):
    """No randomness, and an error that does not shrink with the number of draws."""

    approximate: ClassVar[bool] = True
    pathwise = True


@dataclasses.dataclass(frozen=True)
class _Grid(_Rule):
    """A rule for one element, and its product over coupled elements."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise EstimatorError(
                f"{type(self).__name__} needs a node.",
                expected="n >= 1",
                got=self.n,
                where=user_line(),
            )

    def count(self, law: Law) -> int:
        count = self.n**law.coupled_count
        if count > LIMIT:
            raise cannot(
                EnumerationError,
                self,
                law,
                f"at most {LIMIT} nodes",
                f"{self.n} nodes for each of {law.coupled_count} elements that the objective "
                "couples are too many: estimator=SigmaPoints() or Reparam(), or an objective that "
                "is a sum over the elements",
            )
        return count

    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes of the noise and weights that sum to one, each `[n]`."""
        raise NotImplementedError

    def place(self, law: Law, nodes: jax.Array) -> jax.Array:
        """Values `[J, *elements]` of nodes of that shape."""
        raise NotImplementedError

    def branch(self, key: jax.Array, law: Law) -> Branches:
        dtype = law.site.value.dtype
        nodes, weights = (jnp.asarray(x, dtype) for x in self.rule())
        digits = joint_digits(self.n, law)  # [J, *elements]
        values = self.place(law, nodes[digits])
        # an element that is treated apart has one weight for each node, those coupled a product
        return Branches(filled(law, values), jnp.exp(law.couple(jnp.log(weights)[digits])))


class GaussHermite(_Grid):
    """Gauss-Hermite quadrature for normal laws.

        E[k(x)] ~ sum_j w_j k(loc + scale e_j),    e_j the roots of the Hermite polynomial He_n

    Exact for polynomials k of degree 2 n - 1 in each element; derivatives of any order are those of
    the sum. n runs for an objective that is a sum over elements, n^m for m that it couples.
    A log-normal law is served through its logarithm.

    Args:
        n: how many nodes for each element.

    Golub and Welsch 1969.
    """

    def serve(self, law: Law) -> None:
        if not issubclass(law.distribution, (npd.Normal, npd.LogNormal)):
            raise cannot(
                NotReparameterizableError,
                self,
                law,
                "a normal or log-normal law",
                "estimator=GaussLegendre(n) for a scalar with an icdf, SigmaPoints() for a "
                "multivariate normal, Reparam() for any smooth law",
            )

    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.n)
        return nodes, weights / weights.sum()

    def place(self, law: Law, nodes: jax.Array) -> jax.Array:
        x = parameter(law, "loc") + parameter(law, "scale") * nodes
        return jnp.exp(x) if issubclass(law.distribution, npd.LogNormal) else x


class GaussLegendre(_Grid):
    """Gauss-Legendre quadrature for scalars with an inverse distribution function Q.

        E[k(x)] ~ sum_j w_j k(Q(u_j; theta)),    u_j in (0, 1) the roots of the Legendre polynomial

    Exact for polynomials of degree 2 n - 1 in u: for a uniform law, in x. Less accurate where Q has
    infinite ends. Derivatives of any order are those of the sum. n runs, or n^m for m elements that
    the objective couples.

    Args:
        n: how many nodes for each element.
    """

    def serve(self, law: Law) -> None:
        if not has_icdf(law):
            raise cannot(
                NotReparameterizableError,
                self,
                law,
                "a continuous scalar with an inverse distribution function (icdf)",
                "estimator=Reparam() for other smooth laws, Enumerate() for a finite support",
            )

    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = np.polynomial.legendre.leggauss(self.n)
        return (nodes + 1) / 2, weights / 2

    def place(self, law: Law, nodes: jax.Array) -> jax.Array:
        return jax.vmap(lambda u: quantile(law, u))(nodes)


@dataclasses.dataclass(frozen=True)
class SigmaPoints(_Rule):
    """Sigma points of the unscented transform, for m coupled normal variables.

        x_0 = loc,  w_0 = kappa / (m + kappa)
        x_i = loc +- sqrt(m + kappa) L_i,  w_i = 1 / (2 (m + kappa)),   L L' the covariance

    Exact for polynomials of total degree 3; with kappa = 3 - m also for the fourth power of one
    variable. Derivatives of any order are those of the sum. 2 m + 1 runs.

    Args:
        kappa: None is max(3 - m, 0), for which no weight is negative; 0 is the cubature rule.

    Julier and Uhlmann 1997; Arasaratnam and Haykin 2009 (kappa = 0).
    """

    kappa: float | None = None

    def serve(self, law: Law) -> None:
        if not issubclass(law.distribution, (npd.Normal, npd.MultivariateNormal)):
            raise cannot(
                NotReparameterizableError,
                self,
                law,
                "a normal or multivariate normal law",
                "estimator=GaussLegendre(n) for a scalar with an icdf, Reparam() for others",
            )
        if self.kappa is not None and self._size(law) + self.kappa <= 0:
            raise cannot(
                EstimatorError,
                self,
                law,
                f"kappa above minus the number of coupled variables, {-self._size(law)}",
                "SigmaPoints() chooses kappa",
            )

    def count(self, law: Law) -> int:
        return 2 * self._size(law) + 1

    def branch(self, key: jax.Array, law: Law) -> Branches:
        m = self._size(law)
        kappa = max(3 - m, 0) if self.kappa is None else self.kappa
        directions = joint_directions(law)  # [m, *site.shape], noise
        loc = parameter(law, "loc", len(law.event_shape))
        if law.event_shape:
            tril = parameter(law, "scale_tril", 2)
            steps = jnp.einsum("...ij,n...j->n...i", tril, directions)
        else:
            steps = parameter(law, "scale") * directions
        steps = math.sqrt(m + kappa) * steps
        values = loc + jnp.concatenate([jnp.zeros_like(steps[:1]), steps, -steps])
        weights = np.r_[kappa, np.full(2 * m, 0.5)] / (m + kappa)
        weights = jnp.asarray(weights, values.dtype).reshape((-1, *(1,) * len(law.groups)))
        weights = jnp.broadcast_to(weights, (2 * m + 1, *law.groups))
        return Branches(filled(law, values), weights)

    def _size(self, law: Law) -> int:
        return law.coupled_count * math.prod(law.event_shape)


def joint_directions(law: Law) -> jax.Array:
    """Unit vectors over the coupled elements and their events, `[m, *site.shape]`."""
    n, d = law.coupled_count, math.prod(law.event_shape)
    shape = [size if c else 1 for size, c in zip(law.elements, law.coupled or (), strict=True)]
    units = jnp.eye(n * d, dtype=law.site.value.dtype)
    units = units.reshape((n * d, *shape, *law.event_shape))
    return jnp.broadcast_to(units, (n * d, *law.site.shape))
