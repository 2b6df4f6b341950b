"""A summary: a table by scalar quantity, and one line that says whether to trust it, and why."""

from __future__ import annotations

import dataclasses
import html
import math
from typing import Any

import numpy as np

from ...kernels.source import user_line
from ...transforms.choices import flatten
from ...transforms.errors import MissingExtraError, UnknownAddressError, show_address

SHOWN = 40  # rows of a printed table
QUANTILES = {"q5": 0.05, "median": 0.5, "q95": 0.95}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether to trust.

    Attributes:
        trusted: True or False; None where there is too little to tell.
        line: in one line, with the reasons.
    """

    trusted: bool | None
    line: str

    @staticmethod
    def of(wrong: list[str], unknown: list[str], right: list[str]) -> Verdict:
        """From the reasons against, those for which there was too little to look at, those for."""
        if wrong:
            return Verdict(False, f"Do not trust this: {'; '.join([*wrong, *unknown])}.")
        if unknown:
            return Verdict(None, f"Cannot tell whether to trust this: {'; '.join(unknown)}.")
        return Verdict(True, f"Nothing speaks against trusting this: {'; '.join(right)}.")


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """A table and a verdict; prints both.

    Attributes:
        title: what it is of.
        columns: name -> array [n], all of one length.
        names: of the n scalars: `mu`, `beta[0]`, `local/z[1,2]`.
        verdict: `.trusted`, `.line`.
        facts: the numbers that the verdict rests on, by name.
    """

    title: str
    names: list[str]
    columns: dict[str, np.ndarray]
    verdict: Verdict
    facts: dict[str, Any]

    @property
    def trusted(self) -> bool | None:
        """Whether to trust it; None where there is too little to tell."""
        return self.verdict.trusted

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict a scalar: its name and its numbers."""
        return [
            {"name": name} | {c: float(x[i]) for c, x in self.columns.items()}
            for i, name in enumerate(self.names)
        ]

    def __getitem__(self, name: str) -> dict[str, float]:
        """The numbers of one scalar, `summary["beta[0]"]["mean"]`."""
        if name not in self.names:
            raise UnknownAddressError(
                "The summary has no such row.",
                address=name,
                expected=f"one of {', '.join(self.names[:SHOWN])}",
                where=user_line(),
            )
        at = self.names.index(name)
        return {c: float(x[at]) for c, x in self.columns.items()}

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns by name, `name` first: `pandas.DataFrame(summary.to_dict())`."""
        return {"name": list(self.names)} | {c: x.tolist() for c, x in self.columns.items()}

    def to_pandas(self) -> Any:
        """A data frame indexed by name.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError(
                "A data frame needs pandas.",
                where=user_line(),
                fix="pip install pandas, or use summary.to_dict()",
            ) from error
        return pandas.DataFrame(self.to_dict()).set_index("name")

    def _cells(self) -> list[list[str]]:
        """The head and the rows that are shown, as text."""
        count = min(len(self.names), SHOWN)
        rows = [
            [self.names[i], *(_number(c, float(x[i])) for c, x in self.columns.items())]
            for i in range(count)
        ]
        return [["", *self.columns], *rows]

    @property
    def _more(self) -> list[str]:
        more = len(self.names) - SHOWN
        return [f"... and {more} more rows: summary.rows has all"] if more > 0 else []

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                [name.ljust(widths[0]), *(x.rjust(w) for x, w in zip(row, widths[1:], strict=True))]
            )
            for name, *row in cells
        ]
        return "\n".join([self.title, *lines, *self._more, self.verdict.line])

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inside}</tr>"

        head, *rows = self._cells()
        more = "".join(f"<p>{html.escape(line)}</p>" for line in self._more)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead>{row(head, 'th')}</thead>"
            f"<tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody></table>{more}"
            f"<p><b>{html.escape(self.verdict.line)}</b></p>"
        )


def _number(column: str, x: float) -> str:
    """A number as text, `-` where there is none."""
    if math.isnan(x):
        return "-"
    formats = {"r_hat": ".3f", "ess_bulk": ".0f", "ess_tail": ".0f", "mcse": ".2g", "snr": ".2g"}
    return format(x, formats.get(column, ".4g"))


def scalars(choices: Any, axes: int) -> tuple[list[str], np.ndarray]:
    """All scalars of choices in one array [..., n] behind `axes` axes of draws, and their names."""
    names, parts = [], []
    for address, value in flatten(choices).items():
        x = np.asarray(value, np.float64)
        shape = x.shape[axes:]
        names += scalar_names(show_address(address), shape)
        parts.append(x.reshape(*x.shape[:axes], -1))
    return names, np.concatenate(parts, -1) if parts else np.zeros((*(1,) * axes, 0))


def scalar_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """`beta[0]`, `beta[1]`, ...; the name alone of a scalar."""
    return [f"{name}[{','.join(map(str, at))}]" if at else name for at in np.ndindex(*shape)]


def moments(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    """Weighted moments and quantiles of draws [S, n], weights [S] that sum to 1."""
    mean = w @ x
    # The error of a self-normalised mean (Owen 2013, chapter 9); sd / sqrt S for even weights.
    columns = {
        "mean": mean,
        "sd": np.sqrt(w @ (x - mean) ** 2),
        "mcse": np.sqrt(w**2 @ (x - mean) ** 2),
    }
    if len(set(w)) == 1:
        found = np.quantile(x, [*QUANTILES.values()], axis=0)
        return columns | dict(zip(QUANTILES, found, strict=True))
    order = np.argsort(x, 0)
    sorted_x, below = np.take_along_axis(x, order, 0), np.cumsum(w[order], 0)
    for name, q in QUANTILES.items():
        at = np.minimum((below < q).sum(0), len(x) - 1)
        columns[name] = np.take_along_axis(sorted_x, at[None], 0)[0]
    return columns
