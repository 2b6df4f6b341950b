"""The Kalman filter and its adjoint in C++, for up to 8 states and 8 observations at a time.

One series is a loop over time whose rows of matrices are vector registers. Of a batch, each lane of
a vector has a series of its own; the way back then has the moments of every 16th step, and filters
the steps between again, which is less work than to move all moments through memory. They take the
place of the gains in the residuals, whose shapes are fixed; the others are constants, never made
where value and adjoint are compiled together. Precisions of -1 say that the residuals are of lanes:
a pullback of series that were filtered one by one, mapped afterwards, or the other way around, is
an error, not a wrong number. Sums over time are compensated.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..frame import Call
from ..native import call as call_native
from .kalman_definition import CORE_DIMS, OPERANDS

MOST_STATES = MOST_OBSERVED = 8
MOST_IN_LANES = 6  # states
SEGMENT = 16  # steps from one checkpoint to the next


def refuse(call: Call) -> str | None:
    """Sizes that there are no loops for."""
    (n,), m = call.operands[5].shape, call.operands[0].shape[1]
    if n > MOST_STATES:
        return f"has at most {MOST_STATES} states, not {n}"
    if m > MOST_OBSERVED:
        return f"has at most {MOST_OBSERVED} observations at a time, not {m}"
    if len({d for d in call.dtypes if d != "bool"}) > 1:
        return "needs one dtype"
    return None


def value(call: Call, *operands: Any) -> Any:
    """Outputs and residuals; those that are not wanted have no elements."""
    steps, m = call.operands[0].shape
    n = call.operands[5].shape[0]
    moments = call.statics["moments"]
    filtered = [struct(call, steps, n), struct(call, steps, n, n)]
    rest = [struct(call, steps, n, m), struct(call, steps, m), struct(call, steps, m, m)]
    lanes = lanes_serve(call)
    kept = [checkpoints_struct(call)] if lanes else rest
    results = [
        struct(call),
        *(filtered if moments or (call.save and not lanes) else [_none(call)] * 2),
        *(kept if call.save else [_none(call)] * len(kept)),
    ]
    found = call_native(handler(call, "value"), results, *operands, **attributes(call))
    outputs = tuple(found[: 3 if moments else 1])
    if not call.save:
        return outputs, ()
    if lanes:
        return outputs, in_lanes(call, found[1:3] if moments else None, found[3])
    return outputs, tuple(found[1:])


def adjoint(
    call: Call, operands: Any, residuals: Any, cotangents: Any, sums: Any = None
) -> tuple[Any, ...]:
    """Cotangents of the operands, all with the batch axis if there is one.

    `sums` are those of many series that have these covariances (kalman_shared.py).
    """
    cotangents = (*cotangents, None, None)[:3]
    given = [jnp.zeros((0,), residuals[0].dtype) if c is None else c for c in (*cotangents, sums)]
    results = [struct(call, *o.shape) for o in call.operands[:-1]]
    if lanes_serve(call):
        mark = residuals[4][:, :1].reshape(-1)  # of the first step, if there is one
        residuals = (checkpoints_of(call, residuals), mark)
    found = call_native(
        handler(call, "adjoint"), results, *operands, *residuals, *given, **attributes(call)
    )
    return (*found, None)


def in_lanes(call: Call, moments: Any, checkpoints: Any) -> tuple[Any, ...]:
    """The residuals of lanes: filtered moments, or None, and checkpoints."""
    steps, m = call.operands[0].shape
    n = call.operands[5].shape[0]
    zeros = [
        jnp.zeros(s.shape, s.dtype) for s in (struct(call, steps, n), struct(call, steps, n, n))
    ]
    flat = checkpoints.reshape(call.batch, math.prod(checkpoints.shape[1:]))
    flat = jnp.pad(flat, [(0, 0), (0, steps * n - flat.shape[1])])
    white, marks = struct(call, steps, m), struct(call, steps, m, m)
    return (
        *(zeros if moments is None else moments),
        flat.reshape(struct(call, steps, n, m).shape),
        jnp.zeros(white.shape, white.dtype),
        jnp.full(marks.shape, -1, marks.dtype),
    )


def checkpoints_of(call: Call, residuals: Any) -> Any:
    """The checkpoints in residuals of lanes, `[batch, segments, n + n^2]`."""
    shape = checkpoints_struct(call).shape
    flat = residuals[2].reshape(call.batch, math.prod(residuals[2].shape[1:]))
    return flat[:, : shape[1] * shape[2]].reshape(shape)


def _dtype(call: Call) -> Any:
    return call.operands[0].dtype


def struct(call: Call, *shape: int) -> jax.ShapeDtypeStruct:
    """A result of every series."""
    front = () if call.batch is None else (call.batch,)
    return jax.ShapeDtypeStruct((*front, *shape), _dtype(call))


def lanes_serve(call: Call) -> bool:
    """Whether the series go together. A batch of cotangents alone has residuals of one series."""
    n, m = call.operands[5].shape[0], call.operands[0].shape[1]
    return call.batch is not None and any(call.batched) and n <= MOST_IN_LANES and m == 1


def checkpoints_struct(call: Call) -> jax.ShapeDtypeStruct:
    """Predicted moments of every SEGMENT-th step."""
    steps, n = call.operands[0].shape[0], call.operands[5].shape[0]
    return struct(call, max(steps - 1, 0) // SEGMENT, n + n * n)


def _none(call: Call) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((0,), _dtype(call))


def handler(call: Call, part: str) -> str:
    """The name of a handler for the call's dtype."""
    return f"varax_kalman_{part}_f{8 * _dtype(call).itemsize}"


def attributes(call: Call) -> dict[str, Any]:
    """What handlers are told of the sizes, and of which operands vary or have the batch axis."""
    steps, m = call.operands[0].shape
    batch = 1 if call.batch is None else call.batch
    sizes = (call.operands[5].shape[0], m, steps, batch, lanes_serve(call))
    varies = [
        name == "y" or (name in CORE_DIMS and o.ndim > CORE_DIMS[name])
        for name, o in zip(OPERANDS, call.operands, strict=True)
    ]
    # without a batch axis, the one series has everything
    batched = (True,) * len(varies) if call.batch is None else call.batched
    return {
        "sizes": np.array(sizes, np.int64),
        "varies": np.array(varies, np.int64),
        "batched": np.array(batched, np.int64),
    }
