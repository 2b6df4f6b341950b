"""A Lorenz system with noise, of which the convection alone is seen, its middle third not at all.

    x_0 ~ N(0, I),  x_t ~ N(x_{t-1} + h f(x_{t-1}), h^{1/2} innovation_scale),
    f(x, y, z) = (10 (y - x), x (28 - z) - y, x y - 8/3 z),   observed_t ~ N(x_t, observation_scale)

Ambrogioni, Hinne and van Gerven 2020.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import varax as vx
from varax import dist as d

Array = jax.Array


@vx.model
def lorenz_bridge(
    observed_values: Any, step_size: float, innovation_scale: Any, observation_scale: Any
) -> None:
    """observed_values: [T], NaN where nothing was seen."""
    bridge(observed_values, step_size, innovation_scale, observation_scale)


@vx.model
def lorenz_bridge_unknown_scales(observed_values: Any, step_size: float) -> None:
    """Both scales log-normal."""
    innovation = vx.sample("innovation_scale", d.LogNormal(-1.0, 1.0))
    observation = vx.sample("observation_scale", d.LogNormal(-1.0, 1.0))
    bridge(observed_values, step_size, innovation, observation)


def bridge(observed_values: Any, step_size: float, innovation: Any, observation: Any) -> None:
    """The path `latents` [T, 3] and what is seen of it.

    It is drawn state by state, not by its innovations: those of chaotic dynamics decide early which
    way the path goes, and each way is a mode of its own.
    """
    scales = jnp.full(len(observed_values), jnp.sqrt(step_size) * innovation).at[0].set(1.0)

    def step(state: Array, scale: Array) -> tuple[Array, Array]:
        mean = state + step_size * drift(state)
        state = vx.sample("latents", d.Normal(mean, scale))  # [3]
        return state, state

    _, latents = jax.lax.scan(step, jnp.zeros(3), scales)  # [T, 3]; the drift of 0 is 0
    seen = ~np.isnan(observed_values)
    law = vx.masked(d.Normal(latents[:, 0], observation), seen)
    vx.sample("observed_values", law, obs=np.where(seen, observed_values, 0.0))


def drift(state: Array) -> Array:
    """f, [3]."""
    x, y, z = state
    return jnp.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])
