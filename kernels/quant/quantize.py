"""From a matrix of floats to one of few bits: `quantize_matrix(matrix, Scheme(bits=4))`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..errors import KernelDtypeError, KernelShapeError, KernelValueError
from .gptq import errors_on_inputs, gptq
from .layout import GROUPS
from .packed import Outliers, PackedWeights
from .quantizers import (
    Array,
    Grid,
    Scale,
    fit_groups,
    grid_of,
    round_groups,
    values_of_groups,
)
from .rotate import rotate, rotation_signs, transform_blocks, unrotate
from .scheme import Scheme

LARGEST_BLOCK = 128  # of a rotation where one group holds all inputs

_pack = jax.jit(PackedWeights.from_codes, static_argnames=("bits", "group"))
_dequantize = jax.jit(PackedWeights.dequantize)


@dataclasses.dataclass(frozen=True)
class QuantizedMatrix:
    """A [K, N] matrix in few bits, perhaps rotated. A pytree; made by `quantize_matrix`.

    Attributes:
        weights: the packed codes, of the rotated matrix if it was rotated.
        signs: int8[K] of the rotation, or None.
        block: of the rotation.
        scheme: how it was made.
    """

    weights: PackedWeights
    signs: jax.Array | None
    block: int
    scheme: Scheme

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N), inputs and outputs."""
        return self.weights.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def rotated(self, x: jax.Array) -> jax.Array:
        """Activations [..., K] as the packed weights want them."""
        return x if self.signs is None else rotate(x, self.signs, block=self.block)

    def dequantize(self) -> jax.Array:
        """The matrix of floats [K, N] that this one stands for."""
        w = _dequantize(self.weights)
        return w if self.signs is None else unrotate(w.T, self.signs, block=self.block).T


jax.tree_util.register_dataclass(
    QuantizedMatrix, data_fields=["weights", "signs"], meta_fields=["block", "scheme"]
)


def quantize_matrix(matrix: Any, scheme: Scheme, *, moment: Any = None) -> QuantizedMatrix:
    """Quantize a matrix, for products `x @ matrix`. Not traceable: it makes choices by values.

    Args:
        matrix: float[K, N], inputs by outputs, concrete.
        scheme: how.
        moment: float[K, K], the second moment X^T X / M of typical inputs X [M, K]. The method
            "gptq" needs it; it chooses outliers by their effect where it is given. For no output
            is the error on X of "gptq" larger than that of "nearest".

    Raises:
        KernelShapeError: no matrix, or a moment that does not fit.
        KernelDtypeError: no floats.
        KernelValueError: weights that are not finite or traced; "gptq" without a moment.
    """
    w = _checked(matrix).T.astype(np.float64)  # [N, K]
    if scheme.method == "gptq" and moment is None:
        raise KernelValueError(
            "GPTQ needs calibration inputs.",
            expected="the second moment of the matrix's inputs",
            got=None,
            fix='vx.quantize(module, scheme, calibration=inputs), or the method "nearest"',
        )
    inputs = w.shape[1]
    moment = None if moment is None else np.asarray(moment, np.float64)
    group = suitable_group(inputs, scheme.group)
    signs, block = None, 1
    if scheme.rotated and inputs:
        block = group or LARGEST_BLOCK
        signs = rotation_signs(inputs, scheme.seed)
        w = transform_blocks(w * signs, block, np)
        if moment is not None:  # from both sides
            moment = transform_blocks(moment * signs, block, np)
            moment = transform_blocks(moment.T * signs, block, np)
        signs = jnp.asarray(signs, jnp.int8)

    grid = grid_of(scheme)
    kept = _outliers(grid, w, group, scheme.outliers, moment) if scheme.outliers else None
    importance = None if kept is None else np.where(kept, 0.0, 1.0)
    by = fit_groups(grid, without(w, kept), group, importance, clip=scheme.clip)
    codes = round_groups(grid, without(w, kept), group, by)
    if scheme.method == "gptq":
        codes = _gptq_or_nearest(grid, w, group, by, kept, scheme, moment, codes)
    values = values_of_groups(grid, codes, group, by)
    levels = scheme.levels()
    weights = _pack(
        codes.T,
        by.scale.T.astype(np.float32),
        bits=scheme.bits,
        group=group,
        zeros=None if by.zero is None else by.zero.T,
        codebook=None if levels is None else levels.astype(np.float32),
        outliers=None if kept is None else _sparse(w - values, kept),
    )
    return QuantizedMatrix(weights, signs, block, scheme)


def without(w: Array, kept: Array | None) -> Array:
    """The weights that are left to the grid."""
    return w if kept is None else np.where(kept, 0.0, w)


def suitable_group(inputs: int, group: int) -> int:
    """The scheme's group, or for fewer inputs the smallest that holds them (less padding)."""
    holding = [size for size in sorted(GROUPS) if size and size >= inputs]
    return min(group, holding[0]) if group and holding else group


def _checked(matrix: Any) -> Array:
    if _jax.is_traced(matrix):
        raise KernelValueError(
            "Weights are quantized outside of jit, vmap and grad.",
            expected="a concrete matrix",
            got="a traced one",
            fix="quantize first, and pass the quantized module to the transformed function",
        )
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2:
        raise KernelShapeError(
            "What is quantized is a matrix.", expected="[inputs, outputs]", got=list(matrix.shape)
        )
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise KernelDtypeError("Weights are floats.", expected="floats", got=matrix.dtype)
    found = np.asarray(matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32)))
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        raise KernelValueError(
            "Weights are finite.",
            expected="no NaN and no infinity",
            got=f"{len(bad)} of them, first at {bad[0].tolist()}: {found[tuple(bad[0])]}",
        )
    return found


def _gptq_or_nearest(
    grid: Grid,
    w: Array,
    group: int,
    by: Scale,
    kept: Any,
    scheme: Scheme,
    moment: Any,
    codes: Array,
) -> Array:
    """GPTQ's codes, but those of the nearest levels for outputs on which they are better."""
    found = gptq(grid, w, moment, group, by, damping=scheme.damping, kept=kept)

    def loss(codes: Array) -> Array:
        return errors_on_inputs(without(w - values_of_groups(grid, codes, group, by), kept), moment)

    return np.where((loss(found) < loss(codes))[:, None], found, codes)


def _outliers(grid: Grid, w: Array, group: int, part: float, moment: Any) -> Array:
    """bool[N, K]: the part of the weights on which the best scales leave the most error."""
    importance = np.broadcast_to(1.0 if moment is None else np.diag(moment), w.shape)
    by = fit_groups(grid, w, group, importance)
    values = values_of_groups(grid, round_groups(grid, w, group, by), group, by)
    error = importance * (w - values) ** 2
    kept = np.zeros(w.size, bool)
    kept[np.argsort(-error, axis=None, kind="stable")[: round(part * w.size)]] = True
    return kept.reshape(w.shape)


def _sparse(rest: Array, kept: Array) -> Outliers:
    columns, rows = np.nonzero(kept)
    values = rest[columns, rows].astype(np.float32)
    return Outliers.from_coordinates(rows, columns, values, outputs=kept.shape[0])
