"""What a fit leaves behind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from .diagnosis import Summary
    from .measure import Measure


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
        stopped: what ended the run before its last step (a callback, a rule, the end of the data);
            None where nothing did.
        model: the measure that was fitted, its observations included; a function of the params
            where it depends on them.
        guide: `guide(params) -> Measure` over the model's unobserved choices.

    With its model and guide a result has a posterior: `summary`, `khat`, `sample`, `predict`,
    `to_arviz`. Without them these raise `CapabilityError`.
    """

    params: Any
    history: Any
    seconds: float
    interrupted: bool = False
    state: Any = None
    stopped: str | None = None
    model: Any = None
    guide: Any = None

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(next(iter(self._columns.values())))

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        return self.history if isinstance(self.history, dict) else {"objective": self.history}

    # ---- the posterior

    @functools.cached_property
    def khat(self) -> float:
        """The tail index of the importance weights p / q of 10,000 draws of the guide.

        Up to 0.7 the guide is near enough to the posterior for its weights to correct it (Vehtari
        et al. 2024, see `vx.psis`); above, something that matters is missing. The draws' key is
        fixed; `summary(key=...)` takes others.
        """
        from .diagnosis.draws import khat_of

        return khat_of(self)

    def summary(self, **options: Any) -> Summary:
        """A table of the posterior, and one line that says whether to trust it and why.

        Options: `importance`, `draws`, `key`, `tolerance`, `gradients`, as in
        `diagnosis.summarize_fit`.
        """
        from .diagnosis import summarize

        return summarize(self, **options)

    def sample(
        self,
        key: jax.Array,
        n: int,
        *,
        importance: bool = False,
        candidates: int | None = None,
    ) -> dict[str, Any]:
        """`n` draws of the guide by address, leading axis [n].

        Args:
            key: randomness.
            n: how many.
            importance: resample them from `candidates` draws by their smoothed importance weights:
                nearer to the posterior, as far as k-hat permits.
            candidates: 10 n by default, at least 1,000.
        """
        from .diagnosis.draws import sample

        return sample(self, key, n, importance=importance, candidates=candidates)

    def predict(
        self,
        key: jax.Array,
        n: int = 1000,
        measure: Measure | None = None,
        *,
        given: Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """Posterior predictive draws of the observed addresses, leading axis [n].

        Args:
            key: randomness.
            n: how many.
            measure: the model at other inputs, `model(new_x)`; its choices that the guide has take
                the guide's draws, all others and all observations are drawn.
            given: the addresses that take the guide's draws, all by default.

        Raises:
            UnknownAddressError, ShapeError: such an address is not in the measure, or is of
                another shape there.
        """
        from .diagnosis import predict

        return predict(self, key, n, measure, given=given)

    def to_arviz(self, **options: Any) -> Any:
        """ArviZ's `InferenceData` (0.x) or `DataTree` (1.x): see `diagnosis.to_arviz`."""
        from .diagnosis import to_arviz

        return to_arviz(self, **options)

    # ---- the history

    def plot(self, ax: Any = None, window: int = 100) -> Any:
        """The history by step with its running mean, on matplotlib axes (made if not given).

        The band is two Monte Carlo standard errors of the running mean wide on either side, as of
        independent estimates.
        """
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
                error = 2 * _moving_sd(values, size) / np.sqrt(size)
                ax.fill_between(at[size - 1 :], mean - error, mean + error, color=color, alpha=0.3)
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


def _moving_sd(values: np.ndarray, size: int) -> np.ndarray:
    """The standard deviation of each `size` neighbours."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(values, np.float64), size)
    return windows.std(1, ddof=min(1, size - 1))
