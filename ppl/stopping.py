"""When to stop: rules on the history of a fit, for `vx.fit(..., stop=...)`.

An estimate of the objective has noise, and neighbouring ones are correlated (the parameters hardly
move between them, batches share an epoch), so a rule compares means over windows by their Monte
Carlo error. Both rules are functions of the history alone: a run that is resumed stops where the
uninterrupted one does.

    mean_and_error(values)      mean, and its standard error by batch means

Batch means: the series is cut into b batches, long beside the correlation time; their means are
nearly independent, and

    se^2 = s^2 / b,    s^2 the sample variance of the b batch means

(Flegal and Jones 2010, Annals of Statistics 38). With b fixed the ratio (mean - E) / se has nearly
Student's t distribution with b - 1 degrees of freedom.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ..kernels.source import user_line
from ..transforms.errors import StepError
from .runs.run import Run, whole_number

BATCHES = 10  # of a window


def mean_and_error(values: Any, batches: int = BATCHES) -> tuple[float, float]:
    """Mean of a correlated series and its standard error, by batch means.

    Args:
        values: shape [n]. The first `n % batches` are left out.
        batches: how many, at least 2. The error is too small where they are not much longer than
            the correlation time.

    Returns:
        The mean and its standard error; NaN where there are fewer values than batches.
    """
    values = np.asarray(values, np.float64)
    length = len(values) // batches
    if length == 0:
        return math.nan, math.nan
    means = values[len(values) - length * batches :].reshape(batches, length).mean(1)
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(batches))


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What the rules share: which measurement, in which direction, how often.

    Args:
        window: steps whose mean is compared.
        metric: the measurement, as in `result.history`; NaN entries are left out.
        maximize: whether more is better; as the fit itself where it is None.
    """

    window: int = 500
    _: dataclasses.KW_ONLY
    metric: str = "objective"
    maximize: bool | None = None

    of_history = True

    def __post_init__(self):
        whole_number(self.window, "window")

    @property
    def every(self) -> int:
        """Steps from one inquiry to the next."""
        return self.window

    def _rising(self, run: Run) -> np.ndarray:
        """The measurements so far; more is better."""
        if self.metric not in run.columns:
            raise StepError(
                "A stopping rule watches what is not measured.",
                expected=f"one of {{{', '.join(run.columns)}}}",
                got=f"metric={self.metric!r}",
                where=user_line(),
            )
        column = run.columns[self.metric]
        up = run.maximize if self.maximize is None else self.maximize
        known = column[~np.isnan(column)]
        return known if up else -known


@dataclasses.dataclass(frozen=True)
class Plateau(_Rule):
    """Stop when the last window is no better than the one before, by their Monte Carlo errors.

        m_2 - m_1 <= z sqrt(se_1^2 + se_2^2)

    with the means m_1, m_2 of two adjacent windows and their standard errors (`mean_and_error`),
    at `patience` inquiries in a row, one every half window.

    On a series that has settled, an inquiry holds with the probability that Student's t
    (2 (10 - 1) degrees of freedom) is below z: 0.84 at z = 1. While the mean still rises by d
    standard errors of the difference from window to window, it holds with the probability of t
    below z - d: 0.03 for z = 1, d = 3. A slow rise needs a long window.

    Args:
        window: steps of a window, at least 20; long beside the series' correlation time.
        z: standard errors.
        patience: inquiries in a row.
        metric, maximize: the measurement, as in `result.history`, and whether more is better (as
            the fit itself where it is None).
    """

    _: dataclasses.KW_ONLY
    z: float = 1.0
    patience: int = 2

    def __post_init__(self):
        super().__post_init__()
        whole_number(self.patience, "patience")
        if self.window < 2 * BATCHES:
            raise StepError(
                "The window of a stopping rule is too short for a standard error.",
                expected=f"window={2 * BATCHES} or more",
                got=f"window={self.window}",
                where=user_line(),
            )

    @property
    def every(self) -> int:
        """Steps from one inquiry to the next."""
        return self.window // 2

    def __call__(self, run: Run) -> bool:
        """Whether to stop."""
        values = self._rising(run)
        ends = [len(values) - k * self.every for k in range(self.patience)]
        return all(end >= 2 * self.window and self._flat(values[:end]) for end in ends)

    def _flat(self, values: np.ndarray) -> bool:
        first, error_1 = mean_and_error(values[-2 * self.window : -self.window])
        last, error_2 = mean_and_error(values[-self.window :])
        return last - first <= self.z * math.hypot(error_1, error_2)


@dataclasses.dataclass(frozen=True)
class EarlyStopping(_Rule):
    """Stop when the mean of a window has not beaten the best one for some windows.

    For a measurement on held-out data, which may fall again. `patience` windows in a row, none of
    them better by more than `min_delta` than the best before them.

    Args:
        window: steps of a window; 1 compares single values.
        patience: windows.
        min_delta: what counts as better.
        metric, maximize: the measurement, as in `result.history`, and whether more is better (as
            the fit itself where it is None).
    """

    _: dataclasses.KW_ONLY
    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        whole_number(self.patience, "patience")

    def __call__(self, run: Run) -> bool:
        """Whether to stop."""
        values = self._rising(run)
        full = len(values) // self.window
        if full <= self.patience:
            return False
        means = values[: full * self.window].reshape(full, self.window).mean(1)
        best = means[: -self.patience].max()
        return bool(means[-self.patience :].max() <= best + self.min_delta)
