"""`x @ S` with a sparse matrix by columns: the few weights that a grid does not reach.

out[m, n] = sum over the entries e of column n of x[m, rows[e]] * values[e]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import native
from ..frame import Call, Operation
from .packed import Outliers


def _definition(x: Any, starts: Any, rows: Any, values: Any) -> jax.Array:
    """`x[M, K] @ S[K, N]`."""
    outputs = starts.shape[0] - 1
    columns = Outliers(starts, rows, values).columns()
    products = (x[:, rows] * values).T
    return jax.ops.segment_sum(products, columns, outputs, indices_are_sorted=True).T


def _native(call: Call, x: Any, starts: Any, rows: Any, values: Any) -> Any:
    (count, inputs), outputs = call.operands[0].shape, call.operands[1].shape[0] - 1
    total = count * (1 if call.batch is None else call.batch)
    (out,) = native.call(
        "varax_outlier_matmul_f32",
        [jax.ShapeDtypeStruct((total, outputs), jnp.float32)],
        x,
        starts,
        rows,
        values,
        inputs=np.int64(inputs),
    )
    front = () if call.batch is None else (call.batch,)
    return (out.reshape((*front, count, outputs)),), ()


def _refuse(call: Call) -> str | None:
    return "has no batches of sparse matrices" if any(call.batched[1:]) else None


OPERATION = Operation(
    "outlier_matmul",
    _definition,
    implementations=(native.native(_native, dtypes=("float32",), refuse=_refuse),),
)


def outlier_matmul(x: jax.Array, outliers: Outliers) -> jax.Array:
    """`x @ S`, [M, N], for rows x [M, K] and outliers S [K, N] of one floating dtype."""
    (out,) = OPERATION(x, outliers.starts, outliers.rows, outliers.values.astype(x.dtype))
    return out
