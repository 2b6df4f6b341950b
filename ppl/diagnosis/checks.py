"""Posterior predictive checks: a statistic of the data beside that of replicated data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ...kernels.source import user_line
from ...transforms.errors import ShapeError
from .draws import model_of
from .predictive import observed_values


@dataclasses.dataclass(frozen=True)
class PredictiveCheck:
    """A statistic of the data beside that of replicated data (Gelman, Meng and Stern 1996).

    Attributes:
        observed: the statistic of the data, a number or an array [...].
        replicated: of data drawn from the posterior predictive distribution, [n, ...].
    """

    observed: np.ndarray
    replicated: np.ndarray

    @property
    def p_value(self) -> Any:
        """P(T(replicated) > T(observed)), ties counting half; near 0 or 1 is a misfit.

        Since data are used twice it is not uniform under the model but nearer to a half.
        """
        above = (self.replicated > self.observed).mean(0)
        p = above + 0.5 * (self.replicated == self.observed).mean(0)
        return float(p) if p.ndim == 0 else p

    def plot(self, ax: Any = None, bins: int = 30) -> Any:
        """A histogram of the replicated statistic with the observed one, on matplotlib axes."""
        if self.observed.ndim:
            raise ShapeError(
                "Only a scalar statistic has a histogram.",
                expected="shape ()",
                got=f"shape {self.observed.shape}",
                where=user_line(),
                fix="check one entry: statistic=lambda data: f(data)[0]",
            )
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 3))
        ax.hist(self.replicated, bins, color="C0", alpha=0.6, label="replicated")
        ax.axvline(self.observed, color="C3", label=f"observed, p = {self.p_value:.3f}")
        ax.set(xlabel="statistic", ylabel="draws")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        if self.observed.ndim:
            return f"PredictiveCheck(shape={self.observed.shape}, p_value={self.p_value})"
        mean, sd = self.replicated.mean(), self.replicated.std()
        return (
            f"PredictiveCheck(observed={self.observed:.4g}, replicated={mean:.4g} ± {sd:.2g}, "
            f"p_value={self.p_value:.3f})"
        )


def posterior_predictive_check(
    result: Any, statistic: Callable[[dict[str, Any]], Any], key: jax.Array, n: int = 1000
) -> PredictiveCheck:
    """Compare a statistic of the data with what the fitted model predicts of it.

        vx.posterior_predictive_check(result, lambda data: data["y"].max(), key)

    Args:
        result: of `vx.fit` with its model and guide, or of a sampler.
        statistic: of the observed choices, a dict by address, nested for nested models; traceable
            by JAX.
        key: randomness.
        n: replications.

    Raises:
        CapabilityError: the model is not known, or observes nothing.
    """
    measure = model_of(result, "posterior_predictive_check")
    replicated = result.predict(key, n)
    data = observed_values(measure)
    return PredictiveCheck(
        np.asarray(statistic(data)), np.asarray(jax.jit(jax.vmap(statistic))(replicated))
    )
