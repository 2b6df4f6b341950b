"""Many series of one model in C++: what does not depend on data is computed once.

A filter's covariances and gains depend on A, Q, H, R, P0 and the mask alone. Where the series of a
batch share these and differ in observations, offsets or initial mean, one series without data is
filtered for its covariances, and the means of all follow by the gains, side by side. The way back
likewise: the adjoint is linear in the series' contributions to a step, so the cotangents of the
covariances go back once, with the sums over series of

    u m_f~'    k u'    l u u'        (the letters of kalman_adjoint.py)

in the places where one series has its own. Cotangents of A, Q, H, R and P0 come summed; where each
series' own is wanted, lanes find it (kalman_native.py), whose residuals these are.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..frame import Call
from ..native import call as call_native
from ..native import native
from . import kalman_native
from .kalman_adjoint import block_sum
from .kalman_definition import CORE_DIMS, OPERANDS, symmetric
from .kalman_native import SEGMENT, attributes, handler, struct

TOGETHER = 32  # series in one group of the kernel
SHARED = [OPERANDS.index(name) for name in ("A", "Q", "H", "R", "P0", "mask")]
OF_MEANS = ("y", "m0", "b", "d")


def serves(call: Call) -> bool:
    """Whether the series of a batch have the same covariances."""
    apart = any(call.batched[i] for i in SHARED)
    return call.batch is not None and any(call.batched) and not apart


def value(call: Call, *operands: Any) -> tuple[Any, Any]:
    """As `kalman_native.value`."""
    if not serves(call):
        return kalman_native.value(call, *operands)
    of = dict(zip(OPERANDS, operands, strict=True))
    steps, m = call.operands[0].shape
    n = call.operands[5].shape[0]
    moments, lanes = call.statics["moments"], kalman_native.lanes_serve(call)
    once = _covariances(call, of)
    nothing = jax.ShapeDtypeStruct((0,), of["y"].dtype)
    every_mean = moments or (call.save and not lanes)
    results = [
        struct(call),
        struct(call, steps, n) if every_mean else nothing,
        struct(call, steps, m) if call.save and not lanes else nothing,
        struct(call, _segments(steps), n) if call.save and lanes else nothing,
    ]
    squares, means, white, starts = call_native(
        handler(call, "means"), results, *operands, once.gains, once.precisions, **attributes(call)
    )
    log_likelihood = once.log_likelihood - 0.5 * squares

    def each(x: Any) -> Any:
        return jnp.broadcast_to(x, (call.batch, *x.shape))

    filtered = (means, each(once.covariances))
    outputs = (log_likelihood, *(filtered if moments else ()))
    if not call.save:
        return outputs, ()
    if not lanes:
        return outputs, (*filtered, each(once.gains), white, each(once.precisions))
    A, Q, P = _at_ends(of["A"], 2), _at_ends(of["Q"], 2), once.covariances[SEGMENT - 1 :: SEGMENT]
    predicted = symmetric(A @ P[: _segments(steps)] @ jnp.swapaxes(A, -1, -2) + Q)
    both = [starts, each(predicted.reshape(_segments(steps), n * n))]
    kept = kalman_native.in_lanes(call, filtered if moments else None, jnp.concatenate(both, -1))
    return outputs, kept


def adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    """As `kalman_native.adjoint`; cotangents of A, Q, H, R and P0 are sums over the batch."""
    if not (serves(call) and set(SHARED) <= set(call.summed)):
        return kalman_native.adjoint(call, operands, residuals, cotangents)
    of = dict(zip(OPERANDS, operands, strict=True))
    steps, m = call.operands[0].shape
    n = call.operands[5].shape[0]
    once = _covariances(call, of)  # in one program with the value, these are its own
    if kalman_native.lanes_serve(call):
        starts = kalman_native.checkpoints_of(call, residuals)[..., :n]
    else:
        ends = residuals[0][:, SEGMENT - 1 :: SEGMENT][:, : _segments(steps)]
        starts = (_at_ends(of["A"], 2) @ ends[..., None])[..., 0]
        of_each = call.batched[OPERANDS.index("b")]
        starts += jax.vmap(_at_ends, (0, None))(of["b"], 1) if of_each else _at_ends(of["b"], 1)
    l, dm, dP = (*cotangents, None, None)[:3]
    given = [jnp.zeros((0,), of["y"].dtype) if c is None else c for c in (l, dm)]
    assert call.batch is not None
    groups = dataclasses.replace(call, batch=-(-call.batch // TOGETHER))
    shapes = {name: s.shape for name, s in zip(OPERANDS, call.operands, strict=True)}
    results = [
        *(struct(call, *shapes[name]) for name in OF_MEANS),
        *(struct(groups, *shapes[name]) for name in "AH"),
        struct(groups, steps, n * m + 2 * m * m),
    ]
    dy, dm0, db, dd, dA, dH, sums = call_native(
        handler(call, "means_adjoint"),
        results,
        *operands,
        once.gains,
        once.precisions,
        starts,
        *given,
        **attributes(call),
    )
    alone, without_data = _without_data(call, of)
    found = kalman_native.adjoint(
        alone,
        without_data,
        once.residuals,
        [None if l is None else block_sum(l), None, None if dP is None else block_sum(dP)],
        sums=block_sum(sums),
    )
    back = dict(zip(OPERANDS, found, strict=True))
    back |= {"y": dy, "m0": dm0, "b": db, "d": dd}
    back |= {"A": back["A"] + block_sum(dA), "H": back["H"] + block_sum(dH)}
    return tuple(back[name] for name in OPERANDS)


IMPLEMENTATION = native(value, adjoint, refuse=kalman_native.refuse)


class _Once(NamedTuple):
    """What the filter of a series without data gives."""

    log_likelihood: Any
    residuals: tuple[Any, ...]

    @property
    def covariances(self) -> Any:
        return self.residuals[1]

    @property
    def gains(self) -> Any:
        return self.residuals[2]

    @property
    def precisions(self) -> Any:
        return self.residuals[4]


def _covariances(call: Call, of: dict[str, Any]) -> _Once:
    alone, operands = _without_data(call, of)
    (log_likelihood, *_), residuals = kalman_native.value(alone, *operands)
    return _Once(log_likelihood, residuals)


def _without_data(call: Call, of: dict[str, Any]) -> tuple[Call, list[Any]]:
    """One series whose observations, means and offsets are zero."""
    shapes = {name: s.shape for name, s in zip(OPERANDS, call.operands, strict=True)}
    shapes |= {name: shapes[name][-CORE_DIMS[name] :] for name in ("b", "d")}
    zeros = {name: jnp.zeros(shapes[name], of["y"].dtype) for name in OF_MEANS}
    operands = [zeros[name] if name in zeros else of[name] for name in OPERANDS]
    structs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
    batched = (False,) * len(operands)
    alone = dataclasses.replace(call, operands=structs, batch=None, batched=batched, save=True)
    return dataclasses.replace(alone, statics={"moments": True}, summed=()), operands


def _segments(steps: int) -> int:
    return max(steps - 1, 0) // SEGMENT


def _at_ends(x: Any, core: int) -> Any:
    """A parameter at the transitions into a new segment; one entry if it does not vary."""
    return x[None] if x.ndim == core else x[SEGMENT - 1 :: SEGMENT]
