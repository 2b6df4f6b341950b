"""What the steps of this package aim at: a measure's density on R^D, all of it or by minibatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.errors import StepError
from ..measure import Measure
from ..potential import Potential

Array = jax.Array
RADIUS = 2.0  # of the first point of a target with minibatches


class Target:
    """The log density of a vector u [D].

    Args:
        m: a measure with observations, or a function from a minibatch to one, whose likelihood is
            scaled up to all data: `lambda batch: model(batch)` with `vx.scaled(..., N / B)`.
    """

    def __init__(self, m: Measure | Callable[[Any], Measure]):
        if not isinstance(m, Measure) and not callable(m):
            raise StepError(
                "This is no posterior.",
                expected="a measure with observations, or a function from a minibatch to one",
                got=repr(m),
                where=user_line(),
                fix="call the model with its arguments: model(data)",
            )
        self.m = m
        self._whole = m.potential() if isinstance(m, Measure) else None

    def potential(self, batch: Any) -> Potential:
        """The potential given a minibatch."""
        if self._whole is not None:
            return self._whole
        if batch is None:
            raise StepError(
                "This step's posterior is a function of a minibatch, and there are no data.",
                expected="vx.fit(step, params, ..., data=x, batch_size=B)",
                got="no data",
                where=user_line(),
            )
        return self.m(batch).potential()  # pyright: ignore[reportCallIssue]

    def log_density(self, batch: Any) -> Callable[[Array], Array]:
        """The function u [D] -> scalar."""
        potential = self.potential(batch)
        return lambda u: potential.log_density(potential.unravel(u))

    def start(self, key: Array, points: int, who: str) -> Array:
        """Points [points, D] with finite density and gradient."""
        whole = self.whole(who)
        return jax.vmap(whole.ravel)(whole.initial(key, points))

    def whole(self, who: str, m: Measure | None = None) -> Potential:
        """The potential of all data: of `m` where that is given.

        Raises:
            StepError: there are only minibatches.
        """
        if m is not None:
            return m.potential()
        if self._whole is None:
            raise StepError(
                f"{who} needs all data, or a start.",
                expected="a measure in the place of the function of a minibatch",
                got="a function, of no batch yet",
                where=user_line(),
                fix="step.draws(state, model(data)) and step.posterior(state, model(data)) for "
                "results; for a start give params (model(data).potential() has initial and ravel)",
            )
        return self._whole


def require_vector(x: Any, shape: tuple[Any, ...], what: str, fix: str) -> Array:
    """An array of this shape, None standing for any length; or StepError."""
    x = jnp.asarray(x, float)
    fits = x.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, x.shape, strict=True))
    if not fits:
        raise StepError(
            f"These are no {what}.",
            expected=f"shape {tuple('any' if n is None else n for n in shape)}",
            got=f"shape {x.shape}",
            where=user_line(),
            fix=fix,
        )
    return x
