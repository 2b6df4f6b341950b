"""Exact expectations over finite supports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import EnumerationError
from ..law import Law
from .base import Branches, Branching, cannot

LIMIT = 2**16  # joint values of one site


class Finite(Branching):
    """An estimator that needs the values of a finite support, of all coupled elements together."""

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

    def size(self, law: Law) -> int:
        """How many joint values a group of coupled elements has."""
        assert law.support_shape is not None
        size = law.support_shape[0] ** law.coupled_count
        if size > LIMIT:
            raise cannot(
                EnumerationError,
                self,
                law,
                f"at most {LIMIT} joint values",
                f"{law.support_shape[0]} values for each of {law.coupled_count} elements that the "
                "objective couples are too many: estimator=Score(), fewer lanes, or an objective "
                "that is a sum over them",
            )
        return size


class Enumerate(Finite):
    """Exact sum over a finite support.

        E[k(x)] = sum_j p(x_j; theta) k(x_j)

    No variance; any order of derivative. Elements (lanes, batch entries) that the objective treats
    apart are summed side by side, K values each; n elements that it couples are summed over all
    their K^n joint values.
    """

    def count(self, law: Law) -> int:
        return self.size(law)

    def branch(self, key: jax.Array, law: Law) -> Branches:
        support = law.element_support()  # [K, *event]
        assert support is not None
        digits = joint_digits(support.shape[0], law)  # [J, *elements]
        values = support[digits].reshape((len(digits), *law.site.shape))
        values = values.astype(law.site.value.dtype)  # constants, as a rule
        log_p = law.log_prob_each(values)  # [J, *elements]
        if law.has_mask:  # an absent element has one value: its first
            log_p = jnp.where(law.present_elements() | (digits == 0), log_p, -jnp.inf)
        return Branches(values, jnp.exp(law.couple(log_p)))


def joint_digits(k: int, law: Law) -> np.ndarray:
    """All joint values of the coupled elements as indices 0 ... k - 1, shape [J, *elements]."""
    n = law.coupled_count
    digits = np.arange(k**n)[:, None] // k ** np.arange(n)[::-1] % k  # [J, n]
    shape = [m if c else 1 for m, c in zip(law.elements, law.coupled or (), strict=True)]
    return np.broadcast_to(digits.reshape((k**n, *shape)), (k**n, *law.elements))
