"""The progress bar: the objective's running mean and steps per second."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm.std import tqdm

WINDOW = 200  # steps of the running mean


class Progress:
    """A context manager around tqdm; shows nothing where `shown` is False."""

    def __init__(self, steps: int, *, shown: bool):
        self.bar = tqdm(
            total=steps, disable=not shown, unit="step", dynamic_ncols=True, smoothing=0.1
        )
        self.recent = np.zeros(0)

    def __enter__(self) -> Progress:
        return self

    def update(self, count: int, values: np.ndarray) -> None:
        """Take the objective's values of the last `count` steps."""
        self.recent = np.concatenate([self.recent, values])[-WINDOW:]
        spread = self.recent.std() / np.sqrt(len(self.recent))
        self.bar.set_postfix_str(
            f"objective {self.recent.mean():.4g} ± {spread:.2g}", refresh=False
        )
        self.bar.update(count)

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
