"""Products with packed weights on Hopper (Mosaic GPU).

With few rows the time is that of reading the weights, and the plain form reads and writes them in
float32: 4 K N bytes more each way. Here K N (8 bits) or K N / 2 bytes (4 bits) are copied to shared
memory, become bfloat16 (exact for integers of 8 bits) or int8 in registers, and are the *left*
operand of the warpgroup's products, so that never a decoded weight is written anywhere:

    out^T [64 outputs, rows] += scales[g] * (grid(codes)^T [64, group] @ x^T [group, rows])

A row in float32 is three rows in bfloat16. Copies of the next groups run under the products.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .packed_layout import by_output, halves_together
from .padding import padded, up

OUTPUTS = 64  # of a warpgroup's product
WITHOUT_GROUPS = 128  # inputs at a time where all have one scale


@dataclasses.dataclass(frozen=True)
class Blocks:
    """`rows` (with the parts of a float32 row) of one tile, `stages` copies under way."""

    rows: int = 64
    stages: int = 4


def matmul(
    x: Any,
    packed: Any,
    scales: Any,
    zeros: Any,
    *,
    bits: int,
    group: int,
    outputs: int,
    blocks: Blocks = Blocks(),
    interpret: Any = None,
) -> jax.Array:
    """sum_g scales[g] * (x @ (codes - 2 ** (bits - 1))) over the inputs of each group.

    Args:
        x: bfloat16[parts, M, K], added up at the end, or int8[1, M, K]; K is padded.
        packed: uint8, as `quant.layout` has it.
        scales: float32[groups, N].
        zeros: None.
        bits: 8 or 4.
        group: inputs with one scale; 0: all.
        outputs: N.
        blocks: sizes of the blocks.
        interpret: run it without a GPU.

    Returns:
        float32[M, N].
    """
    assert zeros is None
    parts, m, _ = x.shape
    depth = group or WITHOUT_GROUPS
    x = padded(x, None, None, depth)
    x = halves_together(x) if bits == 4 else x
    steps = x.shape[2] // depth
    rows = min(blocks.rows, up(parts * m, 8))
    x = padded(x.reshape(parts * m, -1), rows, None)

    # Codes less their middle, as signed integers: the highest bit of each is turned over.
    codes = padded(by_output(packed), OUTPUTS, depth * bits // 8)
    signed = jax.lax.bitcast_convert_type(codes ^ jnp.uint8(0x80 if bits == 8 else 0x88), jnp.int8)
    if bits == 4:
        signed = jax.lax.bitcast_convert_type(signed, jnp.int4).reshape(codes.shape[0], -1)
    scales = padded(scales, None, OUTPUTS)

    kernel = _kernel(depth, rows, steps, bool(group), x.dtype, bits, blocks, interpret)
    out = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((signed.shape[0], x.shape[0]), jnp.float32),
        grid=(signed.shape[0] // OUTPUTS, x.shape[0] // rows),
        grid_names=("outputs", "rows"),
        scratch_types=(plgpu.SMEM((OUTPUTS, rows), jnp.float32),),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )(x, signed, scales)
    return out[:outputs, : parts * m].reshape(outputs, parts, m)[:, ::-1].sum(1).T


def _kernel(
    depth: int,
    rows: int,
    steps: int,
    groups: bool,
    dtype: Any,
    bits: int,
    blocks: Blocks,
    interpret: Any,
) -> Any:
    sums_dtype = jnp.int32 if dtype == jnp.int8 else jnp.float32
    cast = plgpu.layout_cast if interpret is None else lambda x, layout: x

    def transforms(bits: int) -> tuple[Any, ...]:
        if interpret is not None:
            return ()
        swizzle = plgpu.find_swizzle(depth * bits)
        return (
            plgpu.TilingTransform((8, 8 * swizzle // bits)),
            plgpu.SwizzleTransform(swizzle),
        )

    def kernel(x: Any, codes: Any, scales: Any, out: Any, scratch: Any) -> None:
        first = jax.lax.axis_index("outputs") * OUTPUTS
        row = jax.lax.axis_index("rows") * rows

        def step(_: Any, codes: Any, x: Any, scale: Any, total: Any) -> Any:
            def product(sums: Any) -> Any:
                plgpu.wgmma(sums, codes[...].astype(dtype), plgpu.transpose_ref(x, (1, 0)))
                plgpu.wgmma_wait(0)
                return sums[...]

            if interpret is None:
                accumulator = plgpu.WGMMAAccumulatorRef((OUTPUTS, rows), sums_dtype)
                sums = pl.run_scoped(product, accumulator)
            else:  # the interpreter knows no warpgroup's products
                contract = (((1,), (1,)), ((), ()))
                sums = jax.lax.dot_general(
                    codes[...].astype(dtype), x[...], contract, preferred_element_type=sums_dtype
                )
            of_output = cast(scale[0], plgpu.Layout.WGMMA.reduce(1))
            by = jax.lax.broadcast_in_dim(of_output, (OUTPUTS, rows), (0,))
            return total + by * sums.astype(jnp.float32)

        item = jnp.dtype(dtype).itemsize * 8
        specs = [
            plgpu.BlockSpec((OUTPUTS, depth), lambda k: (0, k), transforms=transforms(bits)),
            plgpu.BlockSpec((rows, depth), lambda k: (0, k), transforms=transforms(item)),
            plgpu.BlockSpec((1, OUTPUTS), lambda k: (k if groups else 0, 0)),
        ]
        zero = cast(jnp.zeros((OUTPUTS, rows), jnp.float32), plgpu.Layout.WGMMA)
        scratch[...] = plgpu.emit_pipeline(
            step,
            grid=(steps,),
            in_specs=specs,
            max_concurrent_steps=min(blocks.stages, steps),
            init_carry=zero,
        )(
            codes.at[pl.ds(first, OUTPUTS), :],
            x.at[pl.ds(row, rows), :],
            scales.at[:, pl.ds(first, OUTPUTS)],
        )
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scratch, out.at[pl.ds(first, OUTPUTS), pl.ds(row, rows)])
        plgpu.wait_smem_to_gmem(0)

    return kernel
