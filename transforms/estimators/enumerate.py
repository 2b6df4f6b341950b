"""Exact expectations over finite supports."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..errors import EnumerationError
from ..law import Law
from .base import Branching, cannot

LIMIT = 2**16  # joint values of one site


class Enumerate(Branching):
    """Exact sum over a finite support.

        E[k(x)] = sum_j p(x_j; theta) k(x_j)

    No variance; any order of derivative. A site with n independent elements (lanes, batch entries)
    of K values each is summed over all K^n joint values, since k may couple them.
    """

    def serve(self, law: Law) -> None:
        if law.support_shape is None:
            raise cannot(
                EnumerationError,
                self,
                law,
                "a finite support whose size is known while tracing",
                "estimator=Score() for an infinite discrete support, Reparam() for a continuous "
                "one; a binomial's total_count must be a Python integer",
            )
        if self.count(law) > LIMIT:
            raise cannot(
                EnumerationError,
                self,
                law,
                f"at most {LIMIT} joint values",
                f"{law.support_shape[0]} values for each of {law.element_count} elements are too "
                "many: estimator=Score(), or fewer lanes",
            )

    def count(self, law: Law) -> int:
        assert law.support_shape is not None
        return law.support_shape[0] ** law.element_count

    def branch(self, key: jax.Array, law: Law) -> tuple[jax.Array, jax.Array]:
        support = law.element_support()  # [K, *event]
        assert support is not None
        k, n = support.shape[0], law.element_count
        digits = jnp.arange(k**n)[:, None] // k ** jnp.arange(n)[::-1] % k  # [J, n]
        values = support[digits].reshape((k**n, *law.site.shape))
        values = values.astype(law.site.value.dtype)
        weights = jnp.exp(law.log_prob_each(values))  # [J]
        if law.has_mask:  # an absent element has one value: its first
            here = law.present()
            present = here | (digits == 0).reshape((k**n, *here.shape))
            weights = weights * present.all(tuple(range(1, present.ndim)))
        return values, weights
