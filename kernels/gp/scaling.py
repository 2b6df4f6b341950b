"""Points as the C++ loops see them: in units of their length scales, near the origin.

The loops know unit variance and squared distances only. What this means for the derivatives is
elementwise, and written here. The periodic covariance is the squared exponential of points on
circles, |e^(ia) - e^(ib)|^2 = 4 sin^2((a - b) / 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..frame import Call
from ..native import call as native_call
from .profiles import KINDS

SUFFIX = {"float32": "f32", "float64": "f64"}


def centre_of(points: jax.Array) -> jax.Array:
    """A point of the set: differences to it have all the digits that differences of points have."""
    first = points[..., 0, :]
    return lax.stop_gradient(jnp.where(jnp.isfinite(first), first, 0))


def scaled(
    kind: str, z: Any, length_scale: Any, extra: Any, centre: Any, batched: Sequence[bool]
) -> jax.Array:
    """Points in units of the length scale; `batched` says which arrays have the batch axis."""

    def one(z: Any, length_scale: Any, extra: Any, centre: Any) -> jax.Array:
        if kind != "periodic":
            return (z - centre) / length_scale
        cos, sin = _on_circle(z, extra, centre)
        return jnp.concatenate([cos / length_scale, sin / length_scale], -1)

    on_z, on_scale, on_extra, on_centre = batched
    has = (on_z, on_scale, on_extra and kind == "periodic", on_centre)
    f: Any = jax.vmap(one, [0 if b else None for b in has]) if any(has) else one
    return f(z, length_scale, extra if has[2] or kind == "periodic" else 0.0, centre)


def of_points(
    kind: str, z: Any, found: Any, length_scale: Any, extra: Any, centre: Any
) -> jax.Array:
    """Derivative in points [n, d] from that in scaled points."""
    if kind != "periodic":
        return found / length_scale
    (cos, sin), d = _on_circle(z, extra, centre), z.shape[1]
    along = cos * found[:, d:] - sin * found[:, :d]
    return along / length_scale * (2 * jnp.pi / extra)


def of_length_scale(kind: str, sums: Any, length_scale: Any) -> jax.Array:
    """Derivative in length scales [d] from sums of (derivative in u) 2 difference^2."""
    d = length_scale.shape[0]
    return -(sums[:d] + sums[d : 2 * d] if kind == "periodic" else sums) / length_scale


def of_period(period: Any, *points: Any) -> jax.Array:
    """Derivative in the period from those in pairs of (points - centre, derivative in points)."""
    return -sum(jnp.sum(z * dz) for z, dz in points) / period


def _on_circle(z: Any, period: Any, centre: Any) -> tuple[jax.Array, jax.Array]:
    """cos and sin of 2 pi (z - centre) / period.

    Quarters of a turn are taken off exactly: close points are told apart by differences of these
    numbers, in which the rounding of an angle of up to pi would be most of the error.
    """
    turns = (z - centre) / period
    turns = turns - jnp.round(turns)
    quarters = jnp.round(4 * turns)
    angle = 2 * jnp.pi * (turns - quarters / 4)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    cos, sin = (
        jnp.where(quarters % 2 == 0, cos, -sin),
        jnp.where(quarters % 2 == 0, sin, cos),
    )
    half = quarters % 4 >= 2
    return jnp.where(half, -cos, cos), jnp.where(half, -sin, sin)


def run(
    call: Call, name: str, shapes: Sequence[Any], operands: Any, batched: Sequence[bool]
) -> Any:
    """Call a handler that takes a kind and a batch; `batched` in the order of its bits."""
    dtype, kind = operands[0].dtype, call.statics["kind"]
    front = () if call.batch is None else (call.batch,)
    return native_call(
        f"varax_{name}_{SUFFIX[str(dtype)]}",
        [jax.ShapeDtypeStruct((*front, *shape), dtype) for shape in shapes],
        *operands,
        kind=np.int64(0 if kind == "periodic" else KINDS.index(kind)),
        batch=np.int64(1 if call.batch is None else call.batch),
        batched=np.int64(sum(2**i for i, has in enumerate(batched) if has)),
    )


def refuse_no_dimensions(call: Call) -> str | None:
    """Points without coordinates all coincide; the loops want one."""
    return "wants points with coordinates" if call.operands[0].shape[1] == 0 else None


def zeros(call: Call, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Results of a call in which nothing is to be computed."""
    front = () if call.batch is None else (call.batch,)
    return tuple(jnp.zeros((*front, *shape), call.operands[0].dtype) for shape in shapes)
