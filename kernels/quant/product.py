"""`x @ W` with packed weights.

Weights are decoded on the way into the products, so what is read from memory is a few bits a
weight: with few rows, that is what the time is. `activations` says what the rows are rounded to:

    float32     not at all; products and sums in float32
    bfloat16    bfloat16; products and sums in float32
    int8        q = round(x / step), step = max |x| / 127 for each row ("dynamic, per token"); then
                out = step * sum_g scales[g] * (an exact integer: sum of q * grid over the group)

With int8 rows a codebook is rounded too, to multiples of max |codebook| / 127. Rows that hold NaN
or infinity come out as NaN.

The derivative in x, the scales and the codebook is that of the product without any rounding of rows
("straight-through"); codes have none.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import native
from ..errors import KernelDtypeError, KernelShapeError, KernelValueError
from ..frame import Call, Operation
from .layout import decoded, group_count, per_input, unpack
from .outliers import outlier_matmul
from .packed import PackedWeights
from .validation import check

ACTIVATIONS = ("float32", "bfloat16", "int8")
EXACT_INPUTS = 512  # sums of so many products of 8-bit integers are exact in float32: < 2 ** 24
MOST_INPUTS = 65536  # sums of so many are exact in int32
_PER_STEP = np.float32(1 / 127)


def quantized_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Integers in [-127, 127] as floats, [M, K], and the steps [M, 1]: `x ~ q * step`."""
    step = jnp.abs(x).max(-1, keepdims=True, initial=0) * _PER_STEP.astype(x.dtype)
    usable = jnp.isfinite(step) & (step > 0)
    q = jnp.clip(jnp.round(x / jnp.where(usable, step, 1)), -127, 127)
    return jnp.where(usable, q, 0), step


def exact_sums(q: Any, grid: Any, group: int) -> jax.Array:
    """int32[groups, M, N]: `q @ grid` over each group of inputs, of integers in [-255, 255].

    Products run in float32, where they are exact: XLA's integer products are far slower.
    """
    step = min(group or EXACT_INPUTS, EXACT_INPUTS)
    chunks = group_count(grid.shape[0], step)
    more = chunks * step - grid.shape[0]
    q = jnp.pad(q.astype(jnp.float32), [(0, 0), (0, more)]).reshape(-1, chunks, step)
    grid = jnp.pad(grid.astype(jnp.float32), [(0, more), (0, 0)]).reshape(chunks, step, -1)
    sums = jnp.einsum("mck,ckn->cmn", q, grid, precision="highest").astype(jnp.int32)
    return sums if group else sums.sum(0, keepdims=True)


def integer_product(
    x: Any,
    packed: Any,
    scales: Any,
    zeros: Any,
    codebook: Any,
    *,
    bits: int,
    group: int,
    shape: Any,
) -> jax.Array:
    """The product with int8 rows."""
    q, step = quantized_rows(x)
    grid = decoded(unpack(packed, bits, shape), zeros, codebook, bits, group)
    if codebook is not None:
        entries, unit = quantized_rows(codebook[None])
        grid, step = entries[0][unpack(packed, bits, shape)], step * unit
    sums = exact_sums(q, grid, group).astype(x.dtype)
    return (sums * scales[:, None, :]).sum(0) * step


def float_product(
    x: Any,
    packed: Any,
    scales: Any,
    zeros: Any,
    codebook: Any,
    *,
    bits: int,
    group: int,
    shape: Any,
) -> jax.Array:
    """The product without rounding of rows."""
    grid = decoded(unpack(packed, bits, shape), zeros, codebook, bits, group).astype(x.dtype)
    return jnp.matmul(x, grid * per_input(scales, shape[0], shape[1], group), precision="highest")


def _definition(
    x: Any,
    packed: Any,
    scales: Any,
    zeros: Any,
    codebook: Any,
    *,
    bits: int,
    group: int,
    shape: tuple[int, int],
    activations: str,
) -> jax.Array:
    """`x[M, K] @ W[K, N]`; zeros and codebook of size 0 stand for None."""
    statics: Any = {"bits": bits, "group": group, "shape": shape}

    def exact(x: Any, scales: Any, codebook: Any) -> Any:
        return float_product(x, packed, scales, given(zeros), given(codebook), **statics)

    if activations == "float32":
        return exact(x, scales, codebook)

    @jax.custom_jvp
    def rounded(x: Any, scales: Any, codebook: Any) -> Any:
        if activations == "bfloat16":
            return exact(to_bfloat16(x), scales, codebook)
        return integer_product(x, packed, scales, given(zeros), given(codebook), **statics)

    @rounded.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return rounded(*primals), jax.jvp(exact, primals, tangents)[1]

    return rounded(x, scales, codebook)


def given(x: Any) -> Any:
    """None for the operand of size 0 that stands for it."""
    return x if x.size else None


def to_bfloat16(x: Any) -> Any:
    """Rounded to bfloat16, which a pair of conversions is not sure to do under XLA."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _native(call: Call, x: Any, *weights: Any) -> Any:
    if call.statics["activations"] == "bfloat16":
        x = to_bfloat16(x)
    integer = call.statics["activations"] == "int8"
    return (_called(call, x, weights, call.batched, integer=integer, transpose=False),), ()


def _native_adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    del residuals
    (along,) = cotangents
    batched = (call.batch is not None, *call.batched[1:])
    of_rows = _called(call, along, operands[1:], batched, integer=False, transpose=True)
    statics = {name: call.statics[name] for name in ("bits", "group", "shape")}

    def of_weights(x: Any, packed: Any, scales: Any, zeros: Any, codebook: Any, along: Any) -> Any:
        def product(scales: Any, codebook: Any) -> Any:
            return float_product(x, packed, scales, given(zeros), given(codebook), **statics)

        return jax.vjp(product, scales, codebook)[1](along)

    every: Any = of_weights
    if call.batch is not None:
        axes = tuple(0 if b else None for b in (*call.batched, True))
        every = jax.vmap(of_weights, in_axes=axes)
    # What is not asked for of these is never computed: XLA leaves out what nobody uses.
    of_scales, of_codebook = every(*operands, along)
    return of_rows, None, of_scales, None, of_codebook


def _called(
    call: Call, x: Any, weights: Any, batched: Any, *, integer: bool, transpose: bool
) -> jax.Array:
    """The handler, on rows x of the product or, with `transpose`, of its derivative."""
    inputs, outputs = call.statics["shape"]
    rows, width = call.operands[0].shape[0], inputs if transpose else outputs
    front = (rows,) if call.batch is None else (call.batch, rows)
    batch = call.batch
    if batch is not None and batched[0] and not any(batched[1:]):  # one matrix: more rows
        rows, batch, batched = batch * rows, None, (False,) * 5
    (out,) = native.call(
        "varax_quantized_matmul_f32",
        [jax.ShapeDtypeStruct((*front, width), jnp.float32)],
        x,
        *weights,
        batch=np.int64(1 if batch is None else batch),
        rows=np.int64(rows),
        inputs=np.int64(inputs),
        outputs=np.int64(outputs),
        bits=np.int64(call.statics["bits"]),
        group=np.int64(call.statics["group"]),
        integer=np.bool_(integer),
        transpose=np.bool_(transpose),
        batched=np.asarray(batched, np.int64),
    )
    return out


def merge_rows(operands: Any, dims: Any, statics: Any) -> Any:
    """A vmap over x alone: more rows."""
    if any(dim is not None for dim in dims[1:]):
        return None
    x = jnp.moveaxis(operands[0], dims[0], 0)
    batch, rows, inputs = x.shape

    def finish(outputs: Any) -> tuple[Any, ...]:
        return tuple(out.reshape((batch, rows, *out.shape[1:])) for out in outputs)

    return [x.reshape((batch * rows, inputs)), *operands[1:]], finish


OPERATION = Operation(
    "quantized_matmul",
    _definition,
    implementations=(native.native(_native, _native_adjoint, dtypes=("float32",)),),
    merge=merge_rows,
    jumps=lambda statics: statics["activations"] != "float32",  # rows are rounded
)


def quantized_matmul(
    x: jax.Array, weights: PackedWeights, activations: str = "float32"
) -> jax.Array:
    """`x @ W` for packed weights.

    Args:
        x: floats [..., K]; float16 and bfloat16 are computed in float32 and come back as they were.
        weights: [K, N] packed.
        activations: to what rows of x are rounded before the product: "float32" (not), "bfloat16",
            or "int8" (the module says how).

    Returns:
        [..., N], of x's dtype, or that of the scales if it is wider.

    Raises:
        KernelShapeError: x has not K columns, or the parts of the weights do not fit.
        KernelDtypeError: x is not floating.
        KernelValueError: no such activations, or too many inputs for exact integers.
    """
    if not isinstance(weights, PackedWeights):
        raise KernelDtypeError(
            "The weights are not packed.",
            expected="PackedWeights",
            got=type(weights).__name__,
            fix="PackedWeights.from_codes",
        )
    check(weights)
    x = jnp.asarray(x)
    if activations not in ACTIVATIONS:
        raise KernelValueError(
            "There are no such activations.", expected=ACTIVATIONS, got=activations
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise KernelDtypeError(
            "Rows are floats; `activations` rounds them.", expected="floats", got=x.dtype
        )
    inputs, outputs = weights.shape
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise KernelShapeError(
            f"x does not fit weights of {inputs} inputs and {outputs} outputs.",
            expected=f"[..., {inputs}]",
            got=list(x.shape),
        )
    if activations == "int8" and weights.group == 0 and inputs > MOST_INPUTS:
        raise KernelValueError(
            "Integer sums of so many inputs do not fit 32 bits.",
            expected=f"at most {MOST_INPUTS} inputs to a scale",
            got=inputs,
            fix="groups of 32, 64 or 128 inputs",
        )
    dtype = jnp.result_type(x.dtype, jnp.float32, weights.scales.dtype)
    codebook = jnp.zeros((0,), dtype) if weights.codebook is None else weights.codebook
    zeros = jnp.zeros((0,), jnp.uint8) if weights.zeros is None else weights.zeros
    rows = x.reshape((-1, inputs) if inputs else (int(np.prod(x.shape[:-1])), 0)).astype(dtype)
    (out,) = OPERATION(
        rows,
        weights.packed,
        weights.scales.astype(dtype),
        zeros,
        codebook.astype(dtype),
        bits=weights.bits,
        group=weights.group,
        shape=weights.shape,
        activations=activations,
    )
    if weights.outliers is not None:
        out = out + outlier_matmul(rows, weights.outliers)
    narrow = x.dtype in (jnp.float16, jnp.bfloat16)
    return out.reshape((*x.shape[:-1], outputs)).astype(x.dtype if narrow else dtype)
