"""Data sets and reference posteriors, as posteriordb has them (README.md beside this file)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import varax as vx

FILE = Path(__file__).parent / "posteriordb.npz"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class UnknownPosteriorError(vx.errors.VaraxError):
    """There is no posterior, data set or reference of this name."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """What long runs of Stan's NUTS found: 10,000 draws of P scalar parameters.

    Attributes:
        names: Stan's, `theta[1]` the first entry of a vector.
        mean, sd: [P], with Monte Carlo standard errors mcse_mean, mcse_sd.
        ess_bulk, ess_tail: effective sample sizes, [P].
        quantiles: at `QUANTILES`, [5, P].
        cov: covariance of the draws, [P, P].
        draws: 200 of them, [200, P].
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    mcse_mean: np.ndarray
    mcse_sd: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    quantiles: np.ndarray
    cov: np.ndarray
    draws: np.ndarray

    @property
    def sites(self) -> tuple[str, ...]:
        """The parameters that the names are entries of, each once."""
        return tuple(dict.fromkeys(name.split("[")[0] for name in self.names))

    def choices(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Draws [n, P] by parameter: [n] for a scalar, [n, K] for a vector."""
        found = {}
        for site in self.sites:
            at = [i for i, name in enumerate(self.names) if name.split("[")[0] == site]
            found[site] = draws[:, at] if "[" in self.names[at[0]] else draws[:, at[0]]
        return found

    def columns(self, choices: dict[str, Any]) -> np.ndarray:
        """The inverse of `choices`, for any leading axes: [..., P]."""
        vector = {name.split("[")[0] for name in self.names if "[" in name}
        parts = [np.asarray(choices[s]) for s in self.sites]
        wide = [x if s in vector else x[..., None] for s, x in zip(self.sites, parts, strict=True)]
        return np.concatenate(wide, axis=-1)


def load(name: str) -> dict[str, Any]:
    """A data set: NumPy arrays (int64, float64) and Python numbers by Stan's names.

    Raises:
        UnknownPosteriorError: with the names that are near.
    """
    return {
        key: x.item() if x.ndim == 0 else np.ascontiguousarray(x)
        for key, x in _read("data", name).items()
    }


def reference(name: str) -> Reference:
    """The reference posterior of a name.

    Raises:
        UnknownPosteriorError: with the names that are near.
    """
    found = _read("reference", name)
    names = tuple(map(str, found.pop("names")))
    return Reference(names, **found)


def unknown(what: str, name: str, names: Iterable[str]) -> UnknownPosteriorError:
    """The error for a name that is not among `names`."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, 3)
    return UnknownPosteriorError(
        f"There is no {what} {name!r}.",
        expected=", ".join(names),
        got=repr(name),
        fix=f"{' or '.join(near)}?" if near else None,
    )


def _read(kind: str, name: str) -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as file:
        keys = [key.split("/") for key in file.files]
        here = {key: file[f"{kind}/{n}/{key}"] for k, n, key in keys if (k, n) == (kind, name)}
        if not here:
            raise unknown(f"{kind} of posteriordb", name, {n for k, n, _ in keys if k == kind})
    return here
