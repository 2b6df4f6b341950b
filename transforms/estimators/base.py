"""What an estimator is.

An expectation E_{x ~ p(.; theta)}[k(x)], k the rest of the program, is replaced by a sum over a few
values of x that may depend on theta, with weights that may depend on theta:

    sum_j  w_j(theta) k(x_j(theta)),     a random finite signed measure on values.

It is sound when the mean of the sum, and of its derivatives in theta, are those of the expectation
for every k that the estimator admits. `Direct` estimators have one value: the interpreter carries
on in its loop and multiplies the objective by exp(log_weight) at the end. `Branching` ones have
several: the rest of the program runs under `jax.vmap` over them.

To write your own, derive from one of the two; `law` offers `sample`, `rsample`, `log_prob` and
`element_support` (see `transforms/law.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ..errors import EstimatorError
from ..law import Law


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Base class; instances are immutable and hashable."""

    def serve(self, law: Law) -> None:
        """Raise an `EstimatorError` where this estimator cannot serve the law."""


class Direct(Estimator):
    """One value. Law: E[exp(log_weight) k(value)] and its derivatives are right."""

    def draw(self, key: jax.Array, law: Law) -> tuple[jax.Array, Any]:
        """`(value, log_weight)`; the value has shape `law.site.shape`, the log weight is a scalar
        whose *value* is zero for an estimator that samples from the law itself.
        """
        raise NotImplementedError


class Branching(Estimator):
    """Several values. Law: E[sum_j weight_j k(value_j)] and its derivatives are right."""

    def count(self, law: Law) -> int:
        """How many values: the number of times that the rest of the program runs."""
        raise NotImplementedError

    def branch(self, key: jax.Array, law: Law) -> tuple[jax.Array, jax.Array]:
        """`(values, weights)` of shapes `[J, *law.site.shape]` and `[J]`."""
        raise NotImplementedError


def cannot(
    kind: type[EstimatorError], estimator: Estimator, law: Law, needs: str, fix: str
) -> EstimatorError:
    """The error for an estimator that cannot serve a law."""
    return kind(
        f"{type(estimator).__name__} cannot serve {law.name}.",
        address=law.address,
        expected=needs,
        got=f"{law.name}, shape {law.site.shape}",
        where=law.site.line,
        fix=fix,
    )
