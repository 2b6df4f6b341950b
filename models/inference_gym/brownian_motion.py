"""Brownian motion, seen with noise, the middle third not at all.

x_t ~ N(x_{t-1}, innovation_noise_scale),  x_0 = 0,   y_t ~ N(x_t, observation_noise_scale)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import varax as vx
from varax import dist as d


@vx.model
def brownian_motion(
    observed_locs: Any, innovation_noise_scale: Any, observation_noise_scale: Any
) -> None:
    """observed_locs: [T], NaN where nothing was seen."""
    walk(observed_locs, innovation_noise_scale, observation_noise_scale)


@vx.model
def brownian_motion_unknown_scales(observed_locs: Any) -> None:
    """Both scales log-normal."""
    innovation = vx.sample("innovation_noise_scale", d.LogNormal(0.0, 2.0))
    observation = vx.sample("observation_noise_scale", d.LogNormal(0.0, 2.0))
    walk(observed_locs, innovation, observation)


def walk(observed_locs: Any, innovation: Any, observation: Any) -> None:
    """The path `locs` [T] and what is seen of it."""

    def step(loc: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        loc = vx.sample("locs", d.Normal(loc, innovation))
        return loc, loc

    _, locs = jax.lax.scan(step, jnp.zeros(()), None, length=len(observed_locs))  # [T]
    seen = ~np.isnan(observed_locs)
    noise = vx.masked(d.Normal(locs, observation), seen)
    vx.sample("observed_locs", noise, obs=np.where(seen, observed_locs, 0.0))
