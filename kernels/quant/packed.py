"""Weights of few bits: what is stored, and what it means.

    W[k, n] = scales[g(k), n] * grid(codes[k, n]) + outliers[k, n],      g(k) = k // group

with `grid(c) = c - 2 ** (bits - 1)` (symmetric), `c - zeros[g, n]` (asymmetric), or `codebook[c]`.
Codes are unsigned, of 8, 4, 3 or 2 bits; a codebook (4, 3 or 2 bits) is any list of `2 ** bits`
numbers, so NF4, Lloyd-Max grids and a layer's own grid all cost the same.

How codes lie in `packed` is told in `layout`; users need not know.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import KernelShapeError, KernelValueError
from .layout import BITS, GROUPS, decoded, group_count, pack, per_input, unpack
from .validation import check, check_integers

# The grid of the 4-bit normal float: Dettmers et al. (2023), QLoRA, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclasses.dataclass(frozen=True)
class Outliers:
    """A sparse [K, N] matrix by columns: output n has entries `starts[n]` to `starts[n + 1]`.

    Attributes:
        starts: int32[N + 1].
        rows: int32[count], the input of each entry.
        values: float[count], which is *added* to the dense weights.
    """

    starts: jax.Array
    rows: jax.Array
    values: jax.Array

    @classmethod
    def from_coordinates(cls, rows: Any, columns: Any, values: Any, outputs: int) -> Outliers:
        """Entries in any order, as concrete arrays; those at the same place add up."""
        order = np.argsort(np.asarray(columns), kind="stable")
        counts = np.bincount(np.asarray(columns, np.int64), minlength=outputs)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(
            jnp.asarray(starts, jnp.int32),
            jnp.asarray(np.asarray(rows)[order], jnp.int32),
            jnp.asarray(values)[order],
        )

    def columns(self) -> jax.Array:
        """int32[count], the output of each entry."""
        count = self.rows.shape[0]
        outputs = jnp.arange(self.starts.shape[0] - 1, dtype=jnp.int32)
        return jnp.repeat(outputs, jnp.diff(self.starts), total_repeat_length=count)

    def to_dense(self, shape: tuple[int, int]) -> jax.Array:
        """The matrix itself."""
        zeros = jnp.zeros(shape, self.values.dtype)
        return zeros.at[self.rows, self.columns()].add(self.values)


@dataclasses.dataclass(frozen=True)
class PackedWeights:
    """A [K, N] matrix in few bits, for `x @ W`; made by `from_codes`. A pytree.

    Attributes:
        packed: uint8[tiles, units, bytes of a unit], laid out as the module says.
        scales: float[groups, N], groups = ceil(K / group), or 1.
        zeros: uint8[groups, N], or None.
        codebook: float[2 ** bits], or None.
        outliers: a sparse matrix to add, or None.
        bits: 8, 4, 3 or 2.
        group: inputs that share a scale: 32, 64, 128, or 0 for all of an output.
        shape: (K, N), inputs and outputs.
    """

    packed: jax.Array
    scales: jax.Array
    zeros: jax.Array | None
    codebook: jax.Array | None
    outliers: Outliers | None
    bits: int
    group: int
    shape: tuple[int, int]

    @classmethod
    def from_codes(
        cls,
        codes: Any,
        scales: Any,
        *,
        bits: int,
        group: int = 128,
        zeros: Any = None,
        codebook: Any = None,
        outliers: Outliers | None = None,
    ) -> PackedWeights:
        """Pack codes.

        Args:
            codes: integers [K, N] in [0, 2 ** bits).
            scales: floats [groups, N], groups = ceil(K / group), or 1 if `group` is 0; the last
                group may be short.
            bits: 8, 4, 3 or 2.
            group: 32, 64, 128, or 0 for one scale per output.
            zeros: integers [groups, N] in [0, 2 ** bits): the codes that mean 0; default: the
                middle, 2 ** (bits - 1).
            codebook: `2 ** bits` floats, at most 16; excludes `zeros`.
            outliers: a sparse [K, N] matrix to add.

        Raises:
            KernelValueError: bits or group not supported, codes or zeros out of range.
            KernelShapeError: shapes do not fit.
            KernelDtypeError: codes or zeros are not integers, scales or codebook not floats.
        """
        if bits not in BITS:
            raise KernelValueError("This width is not supported.", expected=BITS, got=bits)
        if group not in GROUPS:
            raise KernelValueError("This group size is not supported.", expected=GROUPS, got=group)
        codes, scales = jnp.asarray(codes), jnp.asarray(scales)
        if codes.ndim != 2:
            raise KernelShapeError(
                "Codes are a matrix.", expected="[inputs, outputs]", got=codes.shape
            )
        check_integers("codes", codes, bits)
        if zeros is not None:
            zeros = jnp.asarray(zeros)
            check_integers("zeros", zeros, bits)
            zeros = zeros.astype(jnp.uint8)
        codebook = None if codebook is None else jnp.asarray(codebook)
        shape = (codes.shape[0], codes.shape[1])
        packed = pack(codes, bits, group)
        weights = cls(packed, scales, zeros, codebook, outliers, bits, group, shape)
        check(weights)
        return weights

    @property
    def groups(self) -> int:
        """How many groups of inputs there are."""
        return group_count(self.shape[0], self.group)

    def unpack(self) -> jax.Array:
        """The codes, uint8[K, N]."""
        return unpack(self.packed, self.bits, self.shape)

    def grid(self) -> jax.Array:
        """What the codes mean before the scales, float[K, N]."""
        return decoded(self.unpack(), self.zeros, self.codebook, self.bits, self.group).astype(
            self.scales.dtype
        )

    def dequantize(self) -> jax.Array:
        """The matrix, float[K, N]."""
        dense = self.grid() * per_input(self.scales, *self.shape, self.group)
        return dense if self.outliers is None else dense + self.outliers.to_dense(self.shape)


jax.tree_util.register_dataclass(Outliers, data_fields=["starts", "rows", "values"], meta_fields=[])
jax.tree_util.register_dataclass(
    PackedWeights,
    data_fields=["packed", "scales", "zeros", "codebook", "outliers"],
    meta_fields=["bits", "group", "shape"],
)
