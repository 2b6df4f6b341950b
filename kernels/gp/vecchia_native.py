"""Nearest-neighbour weights in C++ (native/src/nearest_neighbour.*)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..frame import Call
from ..native import native
from . import scaling

MOST = 128


def _refuse(call: Call) -> str | None:
    m = call.operands[1].shape[1]
    if m > MOST:
        return f"is for up to {MOST} neighbours, not {m}"
    return scaling.refuse_no_dimensions(call)


def _scaled(call: Call, operands: Any) -> jax.Array:
    x, _, length_scale, _, _, extra = operands
    has = (call.batched[0], call.batched[2], call.batched[5], call.batched[0])
    return scaling.scaled(call.statics["kind"], x, length_scale, extra, scaling.centre_of(x), has)


def _value(call: Call, *operands: Any) -> Any:
    _, neighbours, _, variance, noise, extra = operands
    n, m = call.operands[1].shape
    if 0 in (n, call.batch):
        return scaling.zeros(call, (n, m), (n,)), ()
    xs, has = _scaled(call, operands), call.batched
    flags = (xs.ndim > 2, has[1], has[3], has[4], has[5])
    given = (xs, neighbours, variance, noise, extra)
    found = scaling.run(call, "nearest_neighbour_weights", [(n, m), (n,)], given, flags)
    return tuple(found), ()


def _adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    x, neighbours, length_scale, variance, noise, extra = operands
    n, m = call.operands[1].shape
    if 0 in (n, call.batch):
        return (None,) * 6
    kind, has, front = call.statics["kind"], call.batched, call.batch is not None
    xs = _scaled(call, operands)
    lead = () if call.batch is None else (call.batch,)
    shapes = ((*lead, n, m), (*lead, n))
    of_weights, of_variances = (
        jnp.zeros(shape, xs.dtype) if ct is None else ct
        for shape, ct in zip(shapes, cotangents, strict=True)
    )
    wide = xs.shape[-1]
    dx, sums = scaling.run(
        call,
        "nearest_neighbour_adjoint",
        [(n, wide), (wide + 3,)],
        (xs, neighbours, variance, noise, extra, of_weights, of_variances),
        (xs.ndim > 2, has[1], has[3], has[4], has[5], front, front),
    )

    def finish(x: Any, length_scale: Any, extra: Any, centre: Any, dx: Any, sums: Any) -> Any:
        dx = scaling.of_points(kind, x, dx, length_scale, extra, centre)
        of_extra = sums[-1]
        if kind == "periodic":
            of_extra = scaling.of_period(extra, (x - centre, dx))
        by_scale = scaling.of_length_scale(kind, sums[:-3], length_scale)
        return dx, by_scale, sums[-3], sums[-2], of_extra

    if front:
        axes = [0 if b else None for b in (has[0], has[2], has[5], has[0])]
        finish = jax.vmap(finish, (*axes, 0, 0))
    of_x, *others = finish(x, length_scale, extra, scaling.centre_of(x), dx, sums)
    return of_x, None, *others


NATIVE = native(_value, _adjoint, refuse=_refuse)
