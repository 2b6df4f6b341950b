"""Score-function derivatives, with and without baselines."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ..errors import BaselineError
from ..law import Law
from .base import Direct, Drawn
from .parts import rise


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """Baseline of a run: the mean over n - 1 other runs of the same part of the objective.

    The program runs n times side by side; an estimate is the mean of the n.

    Salimans and Knowles 2014; Kool, van Hoof and Welling 2019.
    """

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 2:
            raise BaselineError(
                "A leave-one-out baseline needs another run to leave.",
                expected="n >= 2",
                got=self.n,
                where=user_line(),
                fix="Score() has no baseline",
            )


@dataclasses.dataclass(frozen=True)
class Learned:
    """A baseline that is trained with the other parameters: `Learned(network(x))`.

    value: broadcastable to the draw's elements (a scalar for all of them, or one each).
    maximize: whether the optimiser maximises the objective, as `vx.fit` does by default.

    The gradient in `value` is that of (share of the objective - value)^2 / 2, with the sign that
    lets the optimiser shrink it. Trained by gradient descent with rate r, a scalar parameter is
    the exponential moving average with decay 1 - r of the objective.

    Mnih and Gregor 2014 (NVIL).
    """

    value: Any
    maximize: bool = True


jax.tree_util.register_static(LeaveOneOut)
jax.tree_util.register_dataclass(Learned, ["value"], ["maximize"])


@dataclasses.dataclass(frozen=True)
class Score(Direct):
    """Score-function (likelihood-ratio, REINFORCE) estimator.

        grad E[k(x)] = E[(k(x) - b) grad log p(x; theta) + dk/dtheta]

    Written as the weight exp(log p(x) - stop_gradient(log p(x))), which is 1 and whose derivatives
    of any order are right (DiCE). Unbiased for every k and every distribution whose support does
    not depend on theta, and every baseline b that does not depend on x.

    Args:
        baseline: None; a number or array, broadcastable to the draw's elements (lanes and batch):
            a constant, a moving average kept by the caller, or any function of what was drawn
            before; `Learned(array)`, trained on the way; `LeaveOneOut(n)`.

    Only the part of the objective that an element of the draw can influence is multiplied by its
    score, and only that part is compared with its baseline.

    Williams 1992; Foerster et al. 2018 (DiCE).
    """

    baseline: Any = None

    @property
    def particles(self) -> int:
        """How many runs of the program the baseline compares."""
        return self.baseline.n if isinstance(self.baseline, LeaveOneOut) else 1

    def serve(self, law: Law) -> None:
        if (value := self._value) is None:
            return
        shape = jnp.shape(value)
        fits = len(shape) <= len(law.elements) and all(
            a in (1, b) for a, b in zip(shape[::-1], law.elements[::-1], strict=False)
        )
        if not fits:
            raise BaselineError(
                "The baseline has not the shape of the draw's elements.",
                address=law.address,
                expected=f"a shape that broadcasts to {law.elements}, "
                f"one baseline for each of {math.prod(law.elements)} elements or fewer",
                got=f"shape {shape}",
                where=law.site.line,
                fix="give a scalar, or one number for each entry of the distribution's batch",
            )

    @property
    def _value(self) -> Any:
        if isinstance(self.baseline, LeaveOneOut):
            return None
        return self.baseline.value if isinstance(self.baseline, Learned) else self.baseline

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        x = jax.lax.stop_gradient(law.sample(key))
        return Drawn(x, rise(law.log_prob(x)), self._value)

    @property
    def regression(self) -> float:
        """1 or -1: add to the objective minus or plus half the baseline's squared error; or 0."""
        if not isinstance(self.baseline, Learned):
            return 0.0
        return 1.0 if self.baseline.maximize else -1.0
