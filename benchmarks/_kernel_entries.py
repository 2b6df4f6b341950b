"""What benchmarks/kernels.py times: entries made by benchmarks/_kernels_*.py, one file a topic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the table: an operation at one size, by varax and by others.

    Attributes:
        operation: as `kernels.explain` names it.
        what: "value", "value and gradient", ...
        size: shapes and dtype, as shown.
        make: `() -> {candidate: () -> arrays}`: "varax" first, then "plain XLA", then peers by
            name. A candidate whose package is missing is left out. All compute the same thing, and
            return it as pytrees whose leaves agree one by one.
        calls: how often a candidate runs in one round.
        bytes: that the operation has to move at least, for the physical limit.
        flops: that it has to compute at least.
        kind: which measured peak the flops are held against ("float32", "float64", "int8").
        tolerance: root mean square of the difference from varax's result, by that of the result,
            within which a candidate computes the same.
    """

    operation: str
    what: str
    size: str
    make: Callable[[], dict[str, Callable[[], Any]]]
    calls: int = 3
    bytes: float | None = None
    flops: float | None = None
    kind: str = "float32"
    tolerance: float = 1e-3
