"""The progress bar: running means of what is measured, and steps per second."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm.std import tqdm

WINDOW = 200  # steps of the running mean
SHOWN = 4  # metrics


class Progress:
    """A context manager around tqdm; shows nothing where `shown` is False."""

    def __init__(self, steps: int, *, shown: bool, done: int = 0):
        self.bar = tqdm(
            total=steps,
            initial=done,
            disable=not shown,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self.recent: dict[str, np.ndarray] = {}

    def __enter__(self) -> Progress:
        return self

    def update(self, count: int, values: dict[str, np.ndarray]) -> None:
        """Take what the last `count` steps measured, by name; NaN where they did not."""
        for name, new in values.items():
            known = np.concatenate([self.recent.get(name, np.zeros(0)), new])
            self.recent[name] = known[~np.isnan(known)][-WINDOW:]
        parts = [_shown(name, x) for name, x in self.recent.items() if len(x)]
        self.bar.set_postfix_str(", ".join(parts[:SHOWN]), refresh=False)
        self.bar.update(count)

    def __exit__(self, *_: Any) -> None:
        self.bar.close()


def _shown(name: str, values: np.ndarray) -> str:
    spread = values.std() / np.sqrt(len(values))
    return f"{name} {values.mean():.4g} ± {spread:.2g}"
