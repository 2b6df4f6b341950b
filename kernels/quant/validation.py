"""Whether the parts of packed weights fit one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..errors import KernelDtypeError, KernelShapeError, KernelValueError
from .layout import BITS, GROUPS, group_count, packed_shape

if TYPE_CHECKING:
    from .packed import Outliers, PackedWeights


def check(weights: PackedWeights) -> None:
    """Whether the parts of packed weights fit one another.

    Raises:
        KernelShapeError, KernelDtypeError, KernelValueError: they do not.
    """
    bits, group, shape = weights.bits, weights.group, weights.shape
    if bits not in BITS or group not in GROUPS:
        raise KernelValueError(
            "Width or group size is not supported.",
            expected=f"bits in {BITS}, group in {GROUPS}",
            got=f"bits {bits}, group {group}",
        )
    if weights.packed.shape != packed_shape(shape, bits, group) or weights.packed.dtype != np.uint8:
        raise KernelShapeError(
            f"The packed codes do not fit {bits} bits of a {shape} matrix.",
            expected=f"uint8{list(packed_shape(shape, bits, group))}",
            got=f"{weights.packed.dtype}{list(weights.packed.shape)}",
            fix="PackedWeights.from_codes packs",
        )
    by_group = (group_count(shape[0], group), shape[1])
    for name, array in (("scales", weights.scales), ("zeros", weights.zeros)):
        if array is not None and array.shape != by_group:
            raise KernelShapeError(
                f"The {name} do not fit a {shape} matrix in groups of {group or shape[0]} inputs.",
                expected=f"{list(by_group)} (groups, outputs)",
                got=list(array.shape),
            )
    if weights.zeros is not None and weights.zeros.dtype != np.uint8:
        raise KernelDtypeError("Zero points are codes.", expected="uint8", got=weights.zeros.dtype)
    if not jnp.issubdtype(weights.scales.dtype, jnp.floating):
        raise KernelDtypeError("Scales are floats.", expected="floats", got=weights.scales.dtype)
    if weights.codebook is not None:
        _check_codebook(weights.codebook, weights.zeros, bits)
    if weights.outliers is not None:
        _check_outliers(weights.outliers, shape)


def _check_codebook(codebook: jax.Array, zeros: Any, bits: int) -> None:
    if bits > 4 or codebook.shape != (2**bits,):
        raise KernelShapeError(
            "A codebook has one number for each code, and at most 16.",
            expected=f"[{2**bits}]" if bits <= 4 else "bits 4, 3 or 2",
            got=f"{list(codebook.shape)} with {bits} bits",
            fix="pad a shorter codebook with any numbers",
        )
    if zeros is not None:
        raise KernelValueError(
            "A codebook has its own zero.", expected="codebook or zeros", got="both"
        )
    if not jnp.issubdtype(codebook.dtype, jnp.floating):
        raise KernelDtypeError("A codebook has floats.", expected="floats", got=codebook.dtype)


def _check_outliers(outliers: Outliers, shape: tuple[int, int]) -> None:
    rows, starts, values = outliers.rows, outliers.starts, outliers.values
    if starts.shape != (shape[1] + 1,) or rows.ndim != 1 or rows.shape != values.shape:
        raise KernelShapeError(
            f"The outliers do not fit a {shape} matrix.",
            expected=f"starts [{shape[1] + 1}], as many rows as values",
            got=f"starts {list(starts.shape)}, rows {list(rows.shape)} and {list(values.shape)}",
        )
    if starts.dtype != np.int32 or rows.dtype != np.int32:
        raise KernelDtypeError(
            "Places of outliers are int32.", expected="int32", got=f"{starts.dtype}, {rows.dtype}"
        )
    if _jax.is_traced(rows) or _jax.is_traced(starts):
        return
    rows, starts = np.asarray(rows), np.asarray(starts)
    inside = rows.size == 0 or (int(rows.min()) >= 0 and int(rows.max()) < shape[0])
    ends = starts.size and (int(starts[0]), int(starts[-1])) == (0, rows.size)
    if not inside or not ends or bool((np.diff(starts) < 0).any()):
        raise KernelValueError(
            f"Outliers lie outside of a {shape} matrix.",
            expected=f"rows in [0, {shape[0]}), starts that grow from 0 to {rows.size}",
        )


def check_integers(name: str, array: jax.Array, bits: int) -> None:
    """Whether an array has integers in [0, 2 ** bits), as far as its values are known."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise KernelDtypeError(f"The {name} are integers.", expected="integers", got=array.dtype)
    if array.size and not _jax.is_traced(array):
        known = np.asarray(array)  # inside a jit, an operation of JAX would trace it
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= 2**bits:
            raise KernelValueError(
                f"The {name} do not fit {bits} bits.",
                expected=f"0 to {2**bits - 1}",
                got=f"{low} to {high}",
            )
