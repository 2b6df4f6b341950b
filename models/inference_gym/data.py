"""Data and ground truth of the Inference Gym's targets (README.md beside this file)."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import numpy as np

import varax as vx

FILE = Path(__file__).parent / "inference_gym.npz"


class UnknownTargetError(vx.errors.VaraxError):
    """There is no target or data set of this name."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a long run of Stan found for one part of a target, an array of any shape.

    Attributes:
        mean: posterior means.
        mcse_mean: their standard errors.
        sd: posterior standard deviations.
    """

    mean: np.ndarray
    mcse_mean: np.ndarray
    sd: np.ndarray


def load(name: str) -> dict[str, Any]:
    """A data set: arrays and numbers by name.

    Raises:
        UnknownTargetError: with the names that are near.
    """
    found = _read("data", name)
    return {key: x.item() if x.ndim == 0 else x for key, x in found.items()}


def truth(target: str) -> dict[str, Truth]:
    """The ground truth of a target, by part.

    Raises:
        UnknownTargetError: with the names that are near.
    """
    found = _read("truth", target)
    parts = dict.fromkeys(key.split("/")[0] for key in found)
    names = [field.name for field in dataclasses.fields(Truth)]
    return {part: Truth(**{n: found[f"{part}/{n}"] for n in names}) for part in parts}


def unknown(what: str, name: str, names: Any) -> UnknownTargetError:
    """The error for a name that is not among `names`."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, 3)
    return UnknownTargetError(
        f"There is no {what} {name!r}.",
        expected=", ".join(names),
        got=repr(name),
        fix=f"{' or '.join(near)}?" if near else None,
    )


def _read(kind: str, name: str) -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as file:
        keys = [key.split("/", 2) for key in file.files]
        here = {key: file[f"{kind}/{n}/{key}"] for k, n, key in keys if (k, n) == (kind, name)}
        if not here:
            raise unknown(f"{kind} of the gym", name, {n for k, n, _ in keys if k == kind})
    return here
