"""What an objective's value is: a tag on each function, and the table of all of them.

| kind | the expectation of the value |
|---|---|
| unbiased | is the quantity that is named |
| lower bound | is at most the quantity that is named, mostly log p(x) |
| upper bound | is at least that quantity |
| consistent | approaches it as draws or data points are added; with a finite number it is biased |
| heuristic | is no bound on anything: a regulariser, or a compromise |

Gradients are unbiased for the gradient of that expectation, whatever the kind, except where a
docstring says otherwise.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from ...kernels.source import user_line
from ...transforms.errors import ObjectiveError

Kind = Literal["unbiased", "lower bound", "upper bound", "consistent", "heuristic"]
F = TypeVar("F", bound=Callable[..., Any])


def tagged(kind: Kind, reference: str, *, minimise: bool = False) -> Callable[[F], F]:
    """A decorator that says what an objective's value is.

    The function gets the attributes `kind`, `reference` and `goal`, for readers and for `table`.

    Args:
        kind: one of the five above.
        reference: the paper, as `author year`.
        minimise: whether it is to be minimised; otherwise it is maximised.

    Raises:
        ObjectiveError: no such kind.
    """
    if kind not in get_args(Kind):
        raise ObjectiveError(
            "An objective's kind says what its value is.",
            expected=", ".join(get_args(Kind)),
            got=repr(kind),
            where=user_line(),
        )

    def mark(function: F) -> F:
        goal = "minimise" if minimise else "maximise"
        vars(function).update(kind=kind, reference=reference, goal=goal)
        return function

    return mark


class Row(NamedTuple):
    """One objective of the table."""

    name: str
    kind: str
    goal: str
    reference: str


class Table(list[Row]):
    """A list of rows that prints in columns."""

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in self]
        return "\n".join(line.rstrip() for line in lines)


def table() -> Table:
    """All objectives of `varax.objectives`: name, kind, whether to maximise, reference."""
    package = importlib.import_module(__package__ or "")
    found = [(name, getattr(package, name)) for name in package.__all__]
    return Table(Row(n, f.kind, f.goal, f.reference) for n, f in found if hasattr(f, "kind"))
