"""Whether a stochastic optimisation has settled, and how well its history says where.

The history's second half is cut in two. The objective has settled where the two means differ by no
more than chance, or by less than a tolerance in the objective's own unit. Consecutive estimates
depend on each other through the parameters, so that chance is measured by batch means
(`stopping.mean_and_error`), not by the scatter of single estimates. R-hat of the two parts is the
diagnosis of Dhaka, Catalina, Andersen, Magnusson, Huggins and Vehtari 2020, there of the iterates.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ..stopping import mean_and_error

FEWEST = 40  # steps in the history's second half
CHANCE = 3.0  # standard errors that a difference may have: one in 130 by Student's t, 18 degrees
TOLERANCE = 0.01  # of the objective, in its unit: nats for a bound


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Where an objective stands at the end of its history.

    Attributes:
        steps: in each of the two parts, the last and the last but one quarter of the history.
        value: mean of the last part.
        mcse: its Monte Carlo standard error.
        change: from the part before to the last.
        change_mcse: the change's standard error.
        r_hat: of the two parts; Dhaka et al. take up to 1.1 as settled.
        tolerance: a change that does not matter.
    """

    steps: int
    value: float
    mcse: float
    change: float
    change_mcse: float
    r_hat: float
    tolerance: float = TOLERANCE

    @property
    def settled(self) -> bool | None:
        """True where the change is within three standard errors or the tolerance.

        None where the history is too short to tell.
        """
        if 2 * self.steps < FEWEST:
            return None
        return abs(self.change) <= max(CHANCE * self.change_mcse, self.tolerance)

    def __str__(self) -> str:
        if self.settled is None:
            return f"{2 * self.steps} steps are too few to tell whether the objective has settled"
        shown = f"{self.value:.6g} ± {self.mcse:.2g}"
        if self.settled:
            return f"the objective has settled at {shown}"
        return (
            f"the objective still changes: by {self.change:.3g} ± {self.change_mcse:.2g} over the "
            f"last {self.steps} steps, now {shown}"
        )


def convergence(history: Any, tolerance: float = TOLERANCE) -> Convergence:
    """Look at the second half of a history.

    Args:
        history: estimates of the objective by step, [steps]; NaN where a step did not measure it.
        tolerance: a change that does not matter, in the objective's unit (nats for a bound over
            all data, nats a data point for one that is a mean over them).
    """
    x = np.asarray(history, np.float64)
    x = x[np.isfinite(x)]
    n = len(x) // 4
    before, last = (x[-2 * n : -n], x[-n:]) if n else (x[:0], x[:0])
    (a, se_a), (b, se_b) = mean_and_error(before), mean_and_error(last)
    return Convergence(n, b, se_b, b - a, math.hypot(se_a, se_b), _r_hat(before, last), tolerance)


def _r_hat(before: np.ndarray, last: np.ndarray) -> float:
    if len(last) < 2:
        return math.nan
    within = (before.var(ddof=1) + last.var(ddof=1)) / 2
    between = (before.mean() - last.mean()) ** 2 / 2
    n = len(last)
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return math.sqrt((n - 1) / n + between / within)
