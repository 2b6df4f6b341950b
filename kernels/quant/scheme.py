"""How to quantize, as one value: `Scheme(bits=4, group=64, method="gptq", activations="int8")`."""

from __future__ import annotations

import dataclasses
import fnmatch

import numpy as np

from ..errors import KernelValueError
from . import grids
from .layout import BITS, GROUPS
from .packed import NF4
from .product import ACTIVATIONS

METHODS = ("nearest", "higgs", "gptq")
GRIDS = ("integer", "uniform", "lloyd_max", "nf4")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A way to quantize matrices. Hashable; every field is checked.

    Attributes:
        bits: of a code: 8, 4, 3 or 2.
        group: how many successive inputs share a scale: 32, 64, 128, or 0 for all inputs of an
            output. A matrix with fewer inputs takes the smallest group that holds them.
        grid: what codes mean before the scale. "integer": whole numbers; "uniform": equidistant
            around zero without zero itself; "lloyd_max": the best levels for normal weights;
            "nf4"; or the levels themselves, at most `2 ** bits` numbers. All but the first need 4
            bits or less. Default: "lloyd_max" for the method "higgs", otherwise "integer".
        method: "nearest": each weight to the nearest level. "higgs": the same after a random
            rotation of each group, which makes any weights look normal (Malinovskii et al. 2024).
            "gptq": weights one input after another, later ones make up for the errors of earlier
            ones; needs calibration (Frantar et al. 2022).
        symmetric: integers around zero. False: from an integer zero point per group.
        clip: find the scale of least squared error, which may clip the largest weights. False:
            the smallest scale that clips none.
        activations: in what the product is computed: "float32", "bfloat16", or "int8": every row
            of activations is rounded to integers by its largest.
        outliers: which part of the weights, those that the grid serves worst, is kept as
            floats in a sparse matrix beside (Dettmers et al. 2023, SpQR).
        rotate: rotate groups, with any method and grid; None: if the method is "higgs".
        damping: of "gptq": what is added to the second moment's diagonal, in its means.
        seed: of the rotation.
        skip: patterns (`fnmatch`) of paths of layers that `vx.quantize` leaves as they are.

    Raises:
        KernelValueError: a field has a value that it cannot have, or two contradict one another.
    """

    bits: int = 4
    group: int = 64
    grid: str | tuple[float, ...] | None = None
    method: str = "nearest"
    symmetric: bool = True
    clip: bool = True
    activations: str = "float32"
    outliers: float = 0.0
    rotate: bool | None = None
    damping: float = 0.01
    seed: int = 0
    skip: tuple[str, ...] = ()

    def __post_init__(self):
        _one_of("width in bits", self.bits, BITS)
        _one_of("group size", self.group, GROUPS)
        _one_of("method", self.method, METHODS)
        _one_of("dtype of activations", self.activations, ACTIVATIONS)
        if isinstance(self.skip, str):
            object.__setattr__(self, "skip", (self.skip,))
        if self.grid is not None and not isinstance(self.grid, str):
            object.__setattr__(self, "grid", _checked_levels(self.grid, self.bits))
        else:
            _one_of("grid", self.grid_name, GRIDS)
        if self.grid_name != "integer":
            if self.bits > 4:
                raise KernelValueError(
                    "A codebook has at most 16 levels.",
                    expected='grid "integer" with 8 bits, or at most 4 bits',
                    got=f"{self.bits} bits with the grid {self.grid_name}",
                )
            if not self.symmetric:
                raise KernelValueError(
                    "Only integers have zero points.",
                    expected='symmetric=True, or grid "integer"',
                    got=f"symmetric=False with the grid {self.grid_name}",
                )
        if self.grid_name == "nf4" and self.bits != 4:
            raise KernelValueError("NF4 has 4 bits.", expected="bits=4", got=self.bits)
        if not 0 <= self.outliers < 1:
            raise KernelValueError(
                "Outliers are a part of the weights.",
                expected="0 <= outliers < 1",
                got=self.outliers,
            )
        if not self.damping >= 0:
            raise KernelValueError("Damping is not negative.", expected=">= 0", got=self.damping)

    @property
    def grid_name(self) -> str:
        """The grid, with its default resolved; "levels" where it is given by its levels."""
        if self.grid is None:
            return "lloyd_max" if self.method == "higgs" else "integer"
        return self.grid if isinstance(self.grid, str) else "levels"

    @property
    def rotated(self) -> bool:
        """Whether groups are rotated."""
        return self.method == "higgs" if self.rotate is None else self.rotate

    def levels(self) -> np.ndarray | None:
        """The `2 ** bits` increasing levels of a codebook, or None for integers."""
        name, count = self.grid_name, 2**self.bits
        if name == "integer":
            return None
        if name == "levels":
            levels = np.sort(np.asarray(self.grid, np.float64))
            return np.concatenate([levels, np.full(count - len(levels), levels[-1])])
        if name == "nf4":
            return np.asarray(NF4)
        return grids.lloyd_max(count) if name == "lloyd_max" else grids.uniform(count)

    def skips(self, path: str) -> bool:
        """Whether the layer at a path is to be left alone."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.skip)

    def __str__(self) -> str:
        parts = [f"{self.bits} bits", self.grid_name, self.method]
        parts.append(f"groups of {self.group}" if self.group else "one group")
        parts += ["rotated"] * (self.rotated and self.method != "higgs")
        parts += ["zero points"] * (not self.symmetric)
        parts += [f"{self.outliers:.1%} outliers"] * (self.outliers > 0)
        return ", ".join(parts) + f"; {self.activations} activations"


def _one_of(what: str, got: object, known: tuple[object, ...]) -> None:
    if got not in known or isinstance(got, bool):
        raise KernelValueError(
            f"Unknown {what}.", expected=", ".join(map(str, known)), got=repr(got)
        )


def _checked_levels(levels: object, bits: int) -> tuple[float, ...]:
    found = np.asarray(levels, np.float64)
    good = found.ndim == 1 and 1 <= len(found) <= 2**bits and np.isfinite(found).all()
    if not good or not np.abs(found).max() > 0:
        raise KernelValueError(
            f"These are no levels of a grid of {bits} bits.",
            expected=f"1 to {2**bits} finite numbers, not all zero",
            got=levels,
        )
    return tuple(found.tolist())
