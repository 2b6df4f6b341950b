"""What a fit leaves behind."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `vx.fit` leaves behind.

    Attributes:
        params: the parameters after the last step, of the tree that was given.
        history: the objective's estimate at every step, shape [steps]. Where the step measures
            anything else (an objective with groups, a schedule), a dict of such arrays by name;
            NaN where a step did not measure it.
        seconds: wall time, compilation included.
        interrupted: True where the user stopped the run (Ctrl-C); everything up to then is here.
        state: the step's state after the last step, an `InferenceState`.
    """

    params: Any
    history: Any
    seconds: float
    interrupted: bool = False
    state: Any = None

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(next(iter(self._columns.values())))

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        return self.history if isinstance(self.history, dict) else {"objective": self.history}

    def plot(self, ax: Any = None, window: int = 100) -> Any:
        """The history by step with its running mean, on matplotlib axes (made if not given)."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6, 3.5))
        ranges = []
        for i, (name, column) in enumerate(self._columns.items()):
            (at,) = np.nonzero(np.isfinite(column))
            values, color = column[at], f"C{i}"
            size = max(1, min(window, len(at) // 4))
            label = f"mean of {size}" if name == "objective" else f"{name}, mean of {size}"
            ax.plot(at, values, lw=0.4, alpha=0.5, color=color)
            if len(at):
                mean = np.convolve(values, np.ones(size) / size, "valid")
                ax.plot(at[size - 1 :], mean, color=color, label=label)
                ranges.append(np.quantile(values[len(at) // 20 :], [0.005, 0.995]))
        low, high = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (0, 0)
        ax.set(xlabel="step", ylabel="objective", ylim=(low, high) if low < high else None)
        ax.legend()
        return ax

    def __repr__(self) -> str:
        shown = [f"steps={self.steps}"]
        for name, column in self._columns.items():
            last = column[np.isfinite(column)][-min(100, self.steps) :]
            shown.append(f"{name}={last.mean() if len(last) else float('nan'):.5g}")
        return f"FitResult({', '.join(shown)}, seconds={self.seconds:.1f})"
