"""Pictures of draws, on matplotlib axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .table import scalars

MOST = 8  # quantities in one picture


def plot(draws: Any, names: list[str] | None = None, bins: int = 40) -> Any:
    """Traces by chain and marginal histograms of scalar quantities: axes [rows, 2].

    Args:
        draws: `Draws`.
        names: of the scalars, such as "mu" or "beta[0]"; the first eight by default.
        bins: of the histograms.
    """
    import matplotlib.pyplot as plt

    known, x = scalars(draws.choices, 2)
    chosen = known[:MOST] if names is None else [n for n in known if n in names]
    rows = max(len(chosen), 1)
    _, axes = plt.subplots(rows, 2, figsize=(9, 1.7 * rows), squeeze=False, layout="constrained")
    for (trace, density), name in zip(axes, chosen, strict=False):
        values = x[..., known.index(name)]
        edges = np.histogram_bin_edges(values[np.isfinite(values)], bins)
        for chain in values:
            trace.plot(chain, lw=0.5)
            density.hist(chain, edges, density=True, histtype="step")
        trace.set(ylabel=name)
    axes[-1, 0].set(xlabel="draw")
    return axes
