"""The Pallas forms of `quantized_matmul`: Mosaic TPU, Mosaic GPU for Hopper.

Weights of 4 and 8 bits, with activations as they are (W4A16, W8A16: float32 rows as three bfloat16
ones) or rounded to int8 (W4A8, W8A8: exact sums). Their derivative is the plain form's.

The packed bytes are transposed for the kernels on the way in (`packed_layout`): a reading and a
writing of K N bits / 8 bytes, which XLA takes out of loops in which the weights do not change.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from ..frame import Call, Implementation
from ..quant.layout import padded_inputs
from ..quant.product import OPERATION as operation
from ..quant.product import quantized_rows
from .capability import no_integer_products, too_old
from .limits import only_float32, some_size_is_zero
from .packed_layout import split

_FILES = {"tpu": "tpu", "cuda": "gpu"}
PARTS = {"float32": 3, "bfloat16": 1}  # bfloat16 rows that hold a row


def form(backend: str, name: str = "pallas", platform: str = "", interpret: Any = None) -> Any:
    """The implementation for "tpu" or "cuda"; on another platform where it is interpreted."""

    def refuse(call: Call) -> str | None:
        old = _old(call, backend) if interpret is None else None
        return old or only_float32(call) or some_size_is_zero(call) or _not_served(call, backend)

    @functools.cache
    def kernel() -> Any:  # imported when something is lowered: Pallas takes a while to import
        module = importlib.import_module(f".quantized_{_FILES[backend]}", __package__)
        more = {} if interpret is None else {"interpret": interpret}
        return functools.partial(module.matmul, **more)

    def value(call: Call, *operands: Any) -> Any:
        def one(*operands: Any) -> Any:
            return _value(kernel(), operands, **call.statics)

        if call.batch is None:
            return (one(*operands),), ()
        if not any(call.batched[1:]):  # one matrix: more rows
            x = operands[0]
            out = one(x.reshape(-1, x.shape[-1]), *operands[1:])
            return (out.reshape(*x.shape[:2], out.shape[-1]),), ()
        return (jax.vmap(one, [0 if has else None for has in call.batched])(*operands),), ()

    return Implementation(name, (platform or backend,), value, refuse=refuse)


def _old(call: Call, backend: str) -> str | None:
    """What the hardware lacks."""
    if backend == "cuda":
        return too_old(wgmma=True)
    return no_integer_products() if call.statics["activations"] == "int8" else None


def _value(
    matmul: Any, operands: Any, *, bits: int, group: int, shape: Any, activations: str
) -> Any:
    x, packed, scales, zeros, _ = operands
    inputs, outputs = shape
    step: Any = 1
    if activations == "int8":
        rows, step = quantized_rows(x)
        rows = rows.astype(jnp.int8)[None]
    else:
        rows = split(x, PARTS[activations])
    rows = jnp.pad(rows, [(0, 0), (0, 0), (0, padded_inputs(inputs, group) - inputs)])
    asymmetric = zeros.astype(jnp.float32) if zeros.size else None
    out = matmul(rows, packed, scales, asymmetric, bits=bits, group=group, outputs=outputs)
    return out * step


def _not_served(call: Call, backend: str) -> str | None:
    statics = call.statics
    zeros, codebook = (0 not in operand.shape for operand in call.operands[3:5])
    if statics["bits"] not in (8, 4):
        return f"has weights of 8 or 4 bits, not {statics['bits']}"
    narrow = statics["bits"] == 4 or statics["activations"] == "int8"
    if backend == "cuda" and narrow and statics["group"] == 32:
        return "has groups of 64 inputs at least, where an operand has so few bits"
    if codebook:
        return "has no codebooks: a look-up costs more than the product"
    if zeros and (backend == "cuda" or statics["activations"] == "int8"):
        return "has symmetric weights alone: codes less zeros do not fit into 8 bits"
    return None


for _backend in _FILES:
    operation.add(form(_backend))
