"""What an estimator is.

An expectation E_{x ~ p(.; theta)}[k(x)], k the rest of the program, is replaced by a sum over a few
values of x that may depend on theta, with weights that may depend on theta, and a control variate:

    sum_j  w_j(theta) k(x_j(theta))  +  c(theta),     a random finite signed measure on values.

It is sound when the mean of the sum, and of its derivatives in theta, are those of the expectation
for every k that the estimator admits; the control and its derivatives have mean zero. `Direct`
estimators have one value; the others, `Branching`, run the rest of the program on several by
`jax.vmap`.

Weights are given per element of the draw (`law.elements`: lanes and batch entries). The program
decides which elements can be treated apart (`law.coupled`, see `transforms/law.py`): a term of the
objective is multiplied by the weights of those elements that it depends on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import jax

from ..errors import EstimatorError
from ..law import Law


class Drawn(NamedTuple):
    """One value.

    value: shape `law.site.shape`.
    log_weight: shape `law.elements`, of *value* zero for a draw from the law itself; None says
        that it is zero with all its derivatives.
    baseline: broadcastable to `law.elements`, what is subtracted from an element's share of the
        objective before its log weight multiplies it.
    """

    value: Any
    log_weight: Any = None
    baseline: Any = None


class Branches(NamedTuple):
    """Several values.

    values: shape `[J, *law.site.shape]`.
    weights: shape `[J, *law.groups]`: elements that are coupled share a weight.
    control: shape `law.groups` or scalar, added to the objective; of mean zero, derivatives too.
    """

    values: Any
    weights: Any
    control: Any = None


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Base class. Instances are immutable pytrees; fields may hold arrays, also traced ones."""

    order: ClassVar[int | None] = None  # the highest derivative that is right; None: any
    pathwise: ClassVar[bool] = False  # whether a derivative passes through the value
    relaxes: ClassVar[bool] = False  # whether values are floats between those of the support
    weighs: ClassVar[bool] = True  # whether its weights matter: False where they are 1 for good
    biased: ClassVar[bool] = False  # whether the derivatives are only approximate, on purpose

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        jax.tree_util.register_pytree_node(cls, _flatten, functools.partial(_unflatten, cls))

    def serve(self, law: Law) -> None:
        """Raise an `EstimatorError` where this estimator cannot serve the law."""


def _flatten(estimator: Estimator) -> tuple[list[Any], tuple[str, ...]]:
    fields = vars(estimator)
    return list(fields.values()), tuple(fields)


def _unflatten(kind: type[Estimator], names: tuple[str, ...], values: Iterable[Any]) -> Estimator:
    made = object.__new__(kind)
    vars(made).update(zip(names, values, strict=True))
    return made


class Direct(Estimator):
    """One value. Law: E[exp(log_weight) k(value)] and its derivatives are right."""

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        """The value, its log weight, and a baseline if there is one."""
        raise NotImplementedError


class Branching(Estimator):
    """Several values. Law: E[sum_j weight_j k(value_j)] and its derivatives are right."""

    def count(self, law: Law) -> int:
        """How many values: the number of times that the rest of the program runs."""
        raise NotImplementedError

    def branch(self, key: jax.Array, law: Law) -> Branches:
        """The values and their weights."""
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
