"""Products with a covariance matrix in C++ (native/src/covariance_matmul.*)."""

from __future__ import annotations

from typing import Any

import jax

from ..frame import Call
from ..native import native
from . import scaling


def _centre(call: Call, operands: Any) -> tuple[jax.Array, bool]:
    """Taken from x or y, a shared one if there is; and whether it has a batch axis."""
    source = int(call.batched[0])
    return scaling.centre_of(operands[source]), call.batched[source]


def _scaled(call: Call, operands: Any) -> list[jax.Array]:
    """x and y in units of the length scale, with a batch axis if anything in them has one."""
    centre, on_centre = _centre(call, operands)
    _, _, _, length_scale, _, extra = operands
    kind, has = call.statics["kind"], call.batched
    return [
        scaling.scaled(
            kind, operands[i], length_scale, extra, centre, (has[i], has[3], has[5], on_centre)
        )
        for i in (0, 1)
    ]


def _value(call: Call, *operands: Any) -> Any:
    _, _, v, _, variance, extra = operands
    n, m, k = call.operands[0].shape[0], *call.operands[2].shape
    if 0 in (n, m, k, call.batch):
        return scaling.zeros(call, (n, k)), ()
    xs, ys = _scaled(call, operands)
    on_v, on_variance, on_extra = call.batched[2], call.batched[4], call.batched[5]
    flags = (xs.ndim > 2, ys.ndim > 2, on_v, on_extra)
    (out,) = scaling.run(call, "covariance_matmul", [(n, k)], (xs, ys, v, extra), flags)
    return (out * (variance[:, None, None] if on_variance else variance),), ()


def _adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    """One pass for each group of operands: XLA drops the passes that nobody asks for."""
    _, _, v, _, _, extra = operands
    (g,) = cotangents
    n, m, k = call.operands[0].shape[0], *call.operands[2].shape
    if 0 in (n, m, k, call.batch):
        return (None,) * 6
    xs, ys = _scaled(call, operands)
    wide, front = xs.shape[-1], call.batch is not None
    on_x, on_y, on_v, on_extra = xs.ndim > 2, ys.ndim > 2, call.batched[2], call.batched[5]
    of_x, sums = scaling.run(
        call,
        "covariance_gradient",
        [(n, wide), (wide + 2,)],
        (xs, ys, g, v, extra),
        (on_x, on_y, on_v, on_extra, front),
    )
    of_y, _ = scaling.run(
        call,
        "covariance_gradient",
        [(m, wide), (wide + 2,)],
        (ys, xs, v, g, extra),
        (on_y, on_x, front, on_extra, on_v),
    )
    flags = (on_y, on_x, front, on_extra)
    (of_v,) = scaling.run(call, "covariance_matmul", [(m, k)], (ys, xs, g, extra), flags)

    def finish(operands: Any, centre: Any, *found: Any) -> Any:
        return _unscaled(call.statics["kind"], operands, centre, *found)

    centre, on_centre = _centre(call, operands)
    if front:
        axes = tuple(0 if has else None for has in call.batched)
        finish = jax.vmap(finish, (axes, 0 if on_centre else None, 0, 0, 0, 0))
    return finish(tuple(operands), centre, of_x, of_y, of_v, sums)


def _unscaled(
    kind: str, operands: Any, centre: Any, of_x: Any, of_y: Any, of_v: Any, sums: Any
) -> tuple[Any, ...]:
    """Derivatives in the operands from those in scaled points; covariance_matmul.h has `sums`."""
    x, y, _, length_scale, variance, extra = operands
    dx, dy = (
        variance * scaling.of_points(kind, z, found, length_scale, extra, centre)
        for z, found in ((x, of_x), (y, of_y))
    )
    of_extra = variance * sums[-1]
    if kind == "periodic":
        of_extra = scaling.of_period(extra, (x - centre, dx), (y - centre, dy))
    by_scale = variance * scaling.of_length_scale(kind, sums[:-2], length_scale)
    return dx, dy, variance * of_v, by_scale, sums[-2], of_extra


NATIVE = native(_value, _adjoint, refuse=scaling.refuse_no_dimensions)
