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

from .data import Truth


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


def exact_posterior(observed_locs: Any) -> dict[str, Truth]:
    """The moments of `brownian_motion_unknown_scales`, by quadrature over the two scales.

    Given the scales, the path and what is seen of it are jointly normal. The gym's own ground truth
    for this target is off by up to 18 of its standard errors, and the gym skips its own test of it.
    """
    times = np.arange(1.0, len(observed_locs) + 1)
    seen = ~np.isnan(observed_locs)
    cov = np.minimum.outer(times, times)  # of the path with innovations of variance 1
    w, vectors = np.linalg.eigh(cov[np.ix_(seen, seen)])
    y, load = vectors.T @ observed_locs[seen], cov[:, seen] @ vectors  # [S], [T, S]
    logs = np.stack(np.meshgrid(np.linspace(-6, 2, 161), np.linspace(-15, 2, 341)), -1)
    logs = logs.reshape(-1, 2)  # of the scales, far into the tails: [G, 2]
    v_path, v_noise = np.exp(2 * logs).T[..., None]  # [G, 1] each
    total = v_path * w + v_noise  # [G, S]
    log_p = -0.5 * (y**2 / total + np.log(total)).sum(1) - (logs**2).sum(1) / 8  # [G]
    p = np.exp(log_p - log_p.max())
    p = p / p.sum()
    mean = v_path * (y / total) @ load.T  # of the path, [G, T]
    variance = v_path * np.diag(cov) - v_path**2 * (1 / total) @ (load**2).T
    locs = p @ mean
    sd = np.sqrt(p @ (variance + (mean - locs) ** 2))
    found = {"locs": Truth(locs, np.zeros(len(times)), sd)}
    for name, scale in zip(("innovation", "observation"), np.exp(logs).T, strict=True):
        average = p @ scale
        spread = np.sqrt(p @ (scale - average) ** 2)
        found[f"{name}_noise_scale"] = Truth(average, np.zeros(()), spread)
    return found
