"""Posterior draws of a linear-Gaussian chain: filter forward, sample backward.

Gains and factors of the conditionals (kalman_backward.py) are made at once; what is left to be done
in order is an affine map a step, which many draws share.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..errors import KernelShapeError
from .kalman_backward import conditionals
from .kalman_checks import prepared
from .kalman_definition import OPERANDS, symmetric
from .kalman_filter import operation
from .small import factor, times


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
            got=f"noise{list(noise.shape)}",
        )
    if steps == 0:
        return back(noise)
    _, means, covariances = operation(*operands, moments=True)
    G, shift, left = conditionals(of["A"], of["Q"], of["b"], means, covariances)
    roots = factor(jnp.concatenate([left, symmetric(covariances[-1:])]))

    def draw(noise: jax.Array) -> jax.Array:
        moved = times(roots, noise.astype(roots.dtype)[..., None])[..., 0]
        last = means[-1] + moved[-1]

        def step(x: jax.Array, now: Any) -> Any:
            G, c = now
            x = (G * x).sum(-1) + c
            return x, x

        _, xs = jax.lax.scan(step, last, (G, shift + moved[:-1]), reverse=True)
        return jnp.concatenate([xs, last[None]])

    flat = noise.reshape((-1, steps, n))
    draws = draw(flat[0])[None] if len(flat) == 1 else jax.vmap(draw)(flat)
    return back(draws.reshape(noise.shape))
