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
from ..native import native
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
    filtered = [_struct(call, steps, n), _struct(call, steps, n, n)]
    rest = [_struct(call, steps, n, m), _struct(call, steps, m), _struct(call, steps, m, m)]
    lanes = _lanes(call)
    kept = [_checkpoints(call)] if lanes else rest
    results = [
        _struct(call),
        *(filtered if moments or (call.save and not lanes) else [_none(call)] * 2),
        *(kept if call.save else [_none(call)] * len(kept)),
    ]
    found = call_native(_name(call, "value"), results, *operands, **_attributes(call))
    outputs = tuple(found[: 3 if moments else 1])
    if not call.save:
        return outputs, ()
    if lanes:
        gains, white, precisions = rest
        flat = found[3].reshape(call.batch, math.prod(found[3].shape[1:]))
        flat = jnp.pad(flat, [(0, 0), (0, steps * n - flat.shape[1])])
        both = found[1:3] if moments else [jnp.zeros(x.shape, x.dtype) for x in filtered]
        marks = jnp.zeros(white.shape, white.dtype), jnp.full(precisions.shape, -1, white.dtype)
        return outputs, (*both, flat.reshape(gains.shape), *marks)
    return outputs, tuple(found[1:])


def adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    """Cotangents of the operands, all with the batch axis if there is one."""
    cotangents = (*cotangents, None, None)[:3]
    given = [jnp.zeros((0,), residuals[0].dtype) if c is None else c for c in cotangents]
    results = [_struct(call, *o.shape) for o in call.operands[:-1]]
    handler, attributes = _name(call, "adjoint"), _attributes(call)
    if _lanes(call):
        shape = _checkpoints(call).shape
        flat = residuals[2].reshape(call.batch, math.prod(residuals[2].shape[1:]))
        mark = residuals[4][:, :1].reshape(-1)  # of the first step, if there is one
        residuals = (flat[:, : shape[1] * shape[2]].reshape(shape), mark)
    return (*call_native(handler, results, *operands, *residuals, *given, **attributes), None)


IMPLEMENTATION = native(value, adjoint, refuse=refuse)


def _dtype(call: Call) -> Any:
    return call.operands[0].dtype


def _struct(call: Call, *shape: int) -> jax.ShapeDtypeStruct:
    front = () if call.batch is None else (call.batch,)
    return jax.ShapeDtypeStruct((*front, *shape), _dtype(call))


def _lanes(call: Call) -> bool:
    """Whether the series go together. A batch of cotangents alone has residuals of one series."""
    n, m = call.operands[5].shape[0], call.operands[0].shape[1]
    return call.batch is not None and any(call.batched) and n <= MOST_IN_LANES and m == 1


def _checkpoints(call: Call) -> jax.ShapeDtypeStruct:
    steps, n = call.operands[0].shape[0], call.operands[5].shape[0]
    return _struct(call, max(steps - 1, 0) // SEGMENT, n + n * n)


def _none(call: Call) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((0,), _dtype(call))


def _name(call: Call, part: str) -> str:
    return f"varax_kalman_{part}_f{8 * _dtype(call).itemsize}"


def _attributes(call: Call) -> dict[str, Any]:
    steps, m = call.operands[0].shape
    batch = 1 if call.batch is None else call.batch
    sizes = (call.operands[5].shape[0], m, steps, batch, _lanes(call))
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
