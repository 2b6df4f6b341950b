"""Covariance matrix times vectors on NVIDIA GPUs, Hopper and newer (Mosaic GPU).

What it avoids is what `covariance_tpu` avoids: the n x m matrix in global memory, 8 n m bytes for
every use of it. A warpgroup keeps a tile of 64 x `columns` entries in registers, with one
accumulator of the same shape for each vector, so that the sum over a row is taken across threads
once at the end; the points and vectors of the columns arrive by asynchronous copies into shared
memory while the tiles before them are computed. Arithmetic is float32: the
tensor cores' tf32 has 11 bits, which a covariance matrix cannot afford.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .padding import padded
from .profiles import alpha_slope, profile, slope, sqrt_by_rsqrt

ROWS = 64  # of a warpgroup's tile

TILE = plgpu.Layout.WGMMA  # [64, inner] in registers
ROW, COLUMN = TILE.reduce(1), TILE.reduce(0)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tiles of 64 x `columns`, for `vectors` sums in one pass, `stages` copies under way."""

    columns: int = 32
    vectors: int = 4
    stages: int = 4


def matvec(
    kind: str,
    a: Any,
    b: Any,
    v: Any,
    alpha: Any,
    *,
    blocks: Blocks = Blocks(),
    interpret: Any = None,
) -> Any:
    """sum_j g(|a_i - b_j|^2) v_j: a [n, p], b [m, p], v [m, k] -> [n, k], all float32.

    More than `blocks.vectors` vectors are a further pass over the matrix each so many.
    """

    def terms(points: Any, s: Any, vectors: Any, alpha: Any) -> list[Any]:
        covariance = profile(kind, s, alpha, sqrt_by_rsqrt)
        return [covariance * right() for _, right in vectors]

    out = [
        _over_tiles(terms, alpha, a, b, None, part, part.shape[1], blocks, interpret)
        for part in jnp.split(v, [*range(blocks.vectors, v.shape[1], blocks.vectors)], 1)
    ]
    return jnp.concatenate(out, 1)


def pull(
    kind: str,
    a: Any,
    b: Any,
    c: Any,
    v: Any,
    alpha: Any,
    *,
    blocks: Blocks = Blocks(),
    interpret: Any = None,
) -> tuple[Any, Any]:
    """The cotangents of a, and of alpha by rows, from those of the result, c [n, k].

        sum_j 2 g'(s_ij) (c_i . v_j) (a_i - b_j)  [n, p],     sum_j dg/dalpha (c_i . v_j)  [n]

    A pass computes `blocks.vectors` of these p (+ 1) sums.
    """
    dimension, rational = a.shape[1], kind == "rational_quadratic"
    wanted = [*range(dimension), *([None] if rational else [])]
    out = []
    for first in range(0, len(wanted), blocks.vectors):
        part = wanted[first : first + blocks.vectors]

        def terms(points: Any, s: Any, vectors: Any, alpha: Any, part: Any = part) -> list[Any]:
            weight = functools.reduce(jnp.add, (left() * right() for left, right in vectors))
            along = 2 * slope(kind, s, alpha, sqrt_by_rsqrt) * weight if part != [None] else None
            return [
                alpha_slope(s, alpha) * weight if d is None else along * points(d) for d in part
            ]

        out.append(_over_tiles(terms, alpha, a, b, c, v, len(part), blocks, interpret))
    both = jnp.concatenate(out, 1)
    return both[:, :dimension], both[:, dimension:].sum(1)


def _over_tiles(
    terms: Any,
    alpha: Any,
    a: Any,
    b: Any,
    left: Any,
    right: Any,
    width: int,
    blocks: Blocks,
    interpret: Any,
) -> Any:
    """Row sums of `terms` over all tiles, [n, width].

    `terms(points, s, vectors, alpha)` gives tiles from squared distances s, `points(d)` = a_d - b_d
    and `vectors`: pairs of functions that load a column of `left` and of `right`.
    """
    (n, dimension), count = a.shape, right.shape[1]
    columns = blocks.columns
    a, right = padded(a, ROWS, None), padded(right, columns, None)
    b = padded(b, columns, None)  # with zero vectors: nothing is added
    rows_of = [a.T] if left is None else [a.T, padded(left, ROWS, None).T]
    steps = b.shape[0] // columns

    # the interpreter knows no layouts
    cast = plgpu.layout_cast if interpret is None else lambda x, layout: x

    def kernel(*refs: Any) -> None:
        alpha_ref, *row_refs, b_ref, right_ref, out, row_scratch, out_scratch, barrier = refs
        first = jax.lax.axis_index("rows") * ROWS
        offset = 0
        for ref in row_refs:
            size = ref.shape[0]
            target = row_scratch.at[offset : offset + size]
            plgpu.copy_gmem_to_smem(ref.at[:, pl.ds(first, ROWS)], target, barrier)
            offset += size
        plgpu.barrier_wait(barrier)
        value = alpha_ref[0]

        def of_row(i: int) -> Any:
            row = cast(row_scratch[i], ROW)
            return jax.lax.broadcast_in_dim(row, (ROWS, columns), (0,))

        def of_column(ref: Any, i: int) -> Any:
            column = cast(ref[i], COLUMN)
            return jax.lax.broadcast_in_dim(column, (ROWS, columns), (1,))

        def step(_: Any, b_block: Any, right_block: Any, sums: Any) -> Any:
            def points(d: int) -> Any:
                return of_row(d) - of_column(b_block, d)

            squares = ((difference := points(d)) * difference for d in range(dimension))
            s = functools.reduce(jnp.add, squares)
            vectors = [
                (
                    functools.partial(of_row, dimension + i),
                    functools.partial(of_column, right_block, i),
                )
                for i in range(count)
            ]
            new = terms(points, s, vectors, value)
            return tuple(total + term for total, term in zip(sums, new, strict=True))

        zero = cast(jnp.zeros((ROWS, columns), jnp.float32), TILE)
        specs = [
            plgpu.BlockSpec((dimension, columns), lambda j: (0, j)),
            plgpu.BlockSpec((count, columns), lambda j: (0, j)),
        ]
        sums = plgpu.emit_pipeline(
            step,
            grid=(steps,),
            in_specs=specs,
            max_concurrent_steps=min(blocks.stages, steps),
            init_carry=(zero,) * width,
        )(b_ref, right_ref)
        for i, total in enumerate(sums):
            out_scratch[i] = total.sum(1)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_scratch, out.at[:, pl.ds(first, ROWS)])
        plgpu.wait_smem_to_gmem(0)

    height = sum(x.shape[0] for x in rows_of)
    out = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((width, a.shape[0]), jnp.float32),
        grid=(a.shape[0] // ROWS,),
        grid_names=("rows",),
        scratch_types=(
            plgpu.SMEM((height, ROWS), jnp.float32),
            plgpu.SMEM((width, ROWS), jnp.float32),
            plgpu.Barrier(num_arrivals=len(rows_of)),
        ),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )(alpha.reshape(1), *rows_of, b.T, right.T)
    return out.T[:n]
