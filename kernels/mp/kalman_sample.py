"""Posterior draws of a linear-Gaussian chain: filter forward, sample backward.

Gains and factors of the conditionals (kalman_backward.py) are shared by any number of draws; a draw
is an affine map a step. In JAX these are made at once, in C++ one after the other as they are used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import KernelShapeError
from ..frame import Call, Operation
from ..native import call as call_native
from ..native import native
from . import kalman_native, kalman_shared
from .kalman_backward import conditionals
from .kalman_checks import prepared
from .kalman_definition import OPERANDS, symmetric
from .kalman_filter import operation as filter_operation
from .small import factor, times


def _definition(*operands: Any) -> Any:
    """States `[draws, t, n]`, t > 0, of noise `[draws, t, n]`, the last operand."""
    *model, noise = operands
    of = dict(zip(OPERANDS, model, strict=True))
    _, means, covariances = filter_operation(*model, moments=True)
    G, shift, left = conditionals(of["A"], of["Q"], of["b"], means, covariances)
    roots = factor(jnp.concatenate([left, symmetric(covariances[-1:])]))

    def draw(noise: jax.Array) -> jax.Array:
        moved = times(roots, noise[..., None])[..., 0]
        last = means[-1] + moved[-1]

        def step(x: jax.Array, now: Any) -> Any:
            G, c = now
            x = (G * x).sum(-1) + c
            return x, x

        _, xs = jax.lax.scan(step, last, (G, shift + moved[:-1]), reverse=True)
        return jnp.concatenate([xs, last[None]])

    return draw(noise[0])[None] if len(noise) == 1 else jax.vmap(draw)(noise)


def _native(call: Call, *operands: Any) -> Any:
    *model, noise = operands
    shape, batched = noise.shape, call.batched[:-1]
    of_model = dataclasses.replace(
        call, operands=call.operands[:-1], batched=batched, statics={"moments": True}, save=False
    )
    if call.batch is not None and not any(batched):  # draws of one series
        of_model = dataclasses.replace(of_model, batch=None)
        noise = noise.reshape((-1, *shape[-2:]))
    elif call.batch is not None and not call.batched[-1]:
        noise = jnp.broadcast_to(noise, (call.batch, *shape))
        shape = noise.shape
    (_, means, covariances), _ = kalman_shared.value(of_model, *model)
    result = jax.ShapeDtypeStruct(noise.shape, means.dtype)
    name, attributes = kalman_native.handler(call, "sample"), kalman_native.attributes(of_model)
    (draws,) = call_native(name, [result], *model, means, covariances, noise, **attributes)
    return (draws.reshape(shape),), ()


operation = Operation(
    "kalman_sample",
    _definition,
    implementations=(native(_native, refuse=kalman_native.refuse),),
    differentiable=(True,) * 9 + (False, True),
)


def kalman_sample(
    noise: Any,
    y: Any,
    A: Any,
    Q: Any,
    H: Any,
    R: Any,
    m0: Any,
    P0: Any,
    *,
    b: Any = None,
    d: Any = None,
    mask: Any = None,
) -> jax.Array:
    """Draw the states given all observations; model as `kalman_filter`.

    Args:
        noise: standard normal, `[t, n]`, or `[..., t, n]` for as many draws:
            `jax.random.normal(key, (draws, t, n))`. The draw is a differentiable function of it.
        y, A, Q, H, R, m0, P0, b, d, mask: as `kalman_filter`.

    Returns:
        States, `[..., t, n]`.

    Raises:
        KernelShapeError: `noise` does not fit; and what `kalman_filter` raises.

    Source: Fruhwirth-Schnatter, Data augmentation and dynamic linear models (1994).
    """
    operands, back = prepared(y, A, Q, H, R, m0, P0, b, d, mask)
    of = dict(zip(OPERANDS, operands, strict=True))
    steps, n = len(of["y"]), len(of["m0"])
    noise = jnp.asarray(noise)
    if noise.shape[-2:] != (steps, n):
        raise KernelShapeError(
            "The noise does not fit the states.",
            expected=f"noise[..., t, n], t = {steps}, n = {n}",
            got=f"noise{list(noise.shape)} of {noise.dtype}",
            fix=f"jax.random.normal(key, ({steps}, {n})), or (draws, {steps}, {n})",
        )
    if noise.size == 0:
        return back(noise)
    flat = noise.reshape((-1, steps, n)).astype(of["y"].dtype)
    return back(operation(*operands, flat)[0].reshape(noise.shape))
