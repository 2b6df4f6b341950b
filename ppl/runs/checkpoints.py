"""Where and how often a fit saves: what the user says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.source import user_line
from ...transforms.errors import StepError
from ..errors_runs import CheckpointError


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often `vx.fit` saves.

    Args:
        folder: of this run alone. Made if it is not there.
        every: save after the steps that are multiples of this number.
        seconds: save when so much time has passed since the last time; a minute where neither is
            given. The last step is saved in any case, and so is the one at which Ctrl-C was met.
        keep: how many of the newest stay.
        same_program: False lets a run go on with a changed objective or optimizer, as long as the
            shapes are the same.
    """

    folder: str | Path
    _: dataclasses.KW_ONLY
    every: int | None = None
    seconds: float | None = None
    keep: int = 3
    same_program: bool = True

    def __post_init__(self):
        for name, least in (("every", 1), ("keep", 1), ("seconds", 0)):
            value = getattr(self, name)
            whole = name == "seconds" or isinstance(value, (int, np.integer))
            if value is not None and not (whole and value >= least):
                raise StepError(
                    f"Checkpoints need another `{name}`.",
                    expected=f"{least} or more",
                    got=repr(value),
                    where=user_line(),
                )


def as_checkpoints(value: Any) -> Checkpoints | None:
    """The settings that `checkpoint=` stands for."""
    if value is None or isinstance(value, Checkpoints):
        return value
    if isinstance(value, (str, Path)):
        return Checkpoints(value)
    raise CheckpointError(
        "Checkpoints need a folder.",
        expected="a path, or vx.Checkpoints(folder, every=1000)",
        got=repr(value),
        where=user_line(),
    )
