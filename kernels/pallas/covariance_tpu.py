"""Covariance matrix times vectors on TPU, by tiles of the matrix in vector memory (Mosaic TPU).

The plain form writes the n x m matrix to HBM and reads it again: 8 n m bytes, and 8 n m more for
each derivative. Here a tile of it is made from `rows` + `columns` points, multiplied into its
block of the result and forgotten: 4 (n p + (n / rows) m (p + k) + n k) bytes, arithmetic alone.

Distances are sums of squared differences, not |a|^2 + |b|^2 - 2 a.b, which loses half the digits of
a float32; the product with the vectors is a float32 product (six passes of the bfloat16 units).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .padding import block, padded, up
from .profiles import alpha_slope, profile, slope

LANES, SUBLANES = 128, 8


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Points a tile: `rows` along sublanes, `columns` along lanes."""

    rows: int = 256
    columns: int = 512


def matvec(
    kind: str,
    a: Any,
    b: Any,
    v: Any,
    alpha: Any,
    *,
    blocks: Blocks = Blocks(),
    interpret: Any = False,
) -> Any:
    """sum_j g(|a_i - b_j|^2) v_j: a [n, p], b [m, p], v [m, k] -> [n, k], all float32."""

    def tile(alpha: Any, a: Any, bt: Any, v: Any, out: Any) -> None:
        covariance = profile(kind, _squared_distances(a, bt), alpha[0, 0])
        _accumulate(out, _product(covariance, v[...]))

    return _over_tiles(tile, alpha, a, b, [], [v], v.shape[1], blocks, interpret)


def pull(
    kind: str,
    a: Any,
    b: Any,
    c: Any,
    v: Any,
    alpha: Any,
    *,
    blocks: Blocks = Blocks(),
    interpret: Any = False,
) -> tuple[Any, Any]:
    """The cotangents of a, and of alpha by rows, from those of the result, c [n, k].

        sum_j 2 g'(s_ij) (c_i . v_j) (a_i - b_j)  [n, p],     sum_j dg/dalpha (c_i . v_j)  [n]

    Those of b are the same with the roles of (a, c) and (b, v) exchanged.
    """
    dimension = a.shape[1]

    def tile(alpha: Any, a: Any, bt: Any, c: Any, v: Any, out: Any) -> None:
        s = _squared_distances(a, bt)
        weight = _product(c[...], v[...], transposed=True)
        along = 2 * slope(kind, s, alpha[0, 0]) * weight
        sums = [
            (along * (a[:, d : d + 1] - bt[d : d + 1, :])).sum(1, keepdims=True)
            for d in range(dimension)
        ]
        if kind == "rational_quadratic":
            sums.append((alpha_slope(s, alpha[0, 0]) * weight).sum(1, keepdims=True))
        _accumulate(out, jnp.concatenate(sums, 1))

    width = dimension + (kind == "rational_quadratic")
    out = _over_tiles(tile, alpha, a, b, [c], [v], width, blocks, interpret)
    return out[:, :dimension], out[:, dimension:].sum(1)


def _over_tiles(
    tile: Any,
    alpha: Any,
    a: Any,
    b: Any,
    left: list[Any],
    right: list[Any],
    width: int,
    blocks: Blocks,
    interpret: Any,
) -> Any:
    """Sum of `tile` over blocks of b, for each block of a; `left`, `right` go along."""
    (n, dimension), m = a.shape, b.shape[0]
    rows = block(n, blocks.rows, SUBLANES)
    columns = block(m, blocks.columns, LANES)
    a, *left = (padded(x, rows, None) for x in (a, *left))
    b, *right = (padded(x, columns, None) for x in (b, *right))  # zero vectors: nothing is added

    def by_row(width: int) -> Any:
        return pl.BlockSpec((rows, width), lambda i, j: (i, 0))

    def by_column(width: int) -> Any:
        return pl.BlockSpec((columns, width), lambda i, j: (j, 0))

    out = pl.pallas_call(
        tile,
        out_shape=jax.ShapeDtypeStruct((a.shape[0], width), jnp.float32),
        grid=(up(n, rows) // rows, up(m, columns) // columns),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            by_row(dimension),
            pl.BlockSpec((dimension, columns), lambda i, j: (0, j)),
            *(by_row(x.shape[1]) for x in left),
            *(by_column(x.shape[1]) for x in right),
        ],
        out_specs=by_row(width),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(alpha.reshape(1, 1), a, b.T, *left, *right)
    return out[:n]


def _squared_distances(a: Any, bt: Any) -> Any:
    differences = (a[:, d : d + 1] - bt[d : d + 1, :] for d in range(a.shape[1]))
    return functools.reduce(jnp.add, (difference * difference for difference in differences))


def _product(x: Any, y: Any, *, transposed: bool = False) -> Any:
    """x @ y, or x @ y.T, in float32."""
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(
        x, y, contract, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _accumulate(out: Any, term: Any) -> None:
    """Into the block of the result, which stays in vector memory while the columns go by."""
    first = pl.program_id(1) == 0

    @pl.when(first)
    def _() -> None:
        out[...] = term

    @pl.when(jnp.logical_not(first))
    def _() -> None:
        out[...] += term
