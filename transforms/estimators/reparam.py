"""Pathwise derivatives."""

from __future__ import annotations

import jax

from ..errors import NotReparameterizableError
from ..law import Law
from .base import Direct, Drawn, cannot


class Reparam(Direct):
    """Pathwise (reparameterization) estimator.

        x = g(theta, eps),   grad E[k(x)] = E[dk/dx dg/dtheta + dk/dtheta]

    Unbiased where k is continuous in x and piecewise differentiable; any order of derivative that
    the sampler has. Gamma, beta, Dirichlet and Student-t draws have the implicit derivatives of
    `jax.random`.

    Kingma and Welling 2014; Figurnov, Mohamed and Mnih 2018 (implicit).
    """

    pathwise = True
    weighs = False

    def serve(self, law: Law) -> None:
        if not law.has_rsample:
            raise cannot(
                NotReparameterizableError,
                self,
                law,
                "a distribution with a differentiable sampler (rsample)",
                "estimator=Score(), or Enumerate() for a small finite support",
            )

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        return Drawn(law.rsample(key))
