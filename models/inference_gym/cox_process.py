"""A log-Gaussian Cox process on a grid (Diggle, Moraga, Rowlingson and Taylor 2013).

amplitude ~ LN(-1, 1/2),  length_scale ~ LN(-1, 1),  log_intensity ~ GP(m, Matern-3/2),
counts_i ~ Poisson(extents_i exp(log_intensity_i)),   m = mean of log(counts / extents)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import varax as vx
from varax import dist as d


@vx.model
def cox_process(locations: Any, extents: Any, counts: Any) -> None:
    """locations: [N, 2]; extents, counts: [N]."""
    amplitude = vx.sample("amplitude", d.LogNormal(-1.0, 0.5))
    length_scale = vx.sample("length_scale", d.LogNormal(-1.0, 1.0))
    mean = np.log(counts / extents).mean()
    apart = np.linalg.norm(locations[:, None] - locations, axis=-1)  # [N, N]
    cov = matern(apart, amplitude + 1e-3, length_scale + 1e-3) + 1e-6 * jnp.eye(len(counts))
    law = d.MultivariateNormal(mean * jnp.ones(len(counts)), cov)
    log_intensity = vx.sample("log_intensity", law)  # [N]
    vx.sample("counts", d.Poisson(jnp.exp(log_intensity) * extents), obs=counts)


def matern(distance: Any, amplitude: Any, length_scale: Any) -> jax.Array:
    """Matern covariance of smoothness 3/2."""
    scaled = jnp.sqrt(3.0) * distance / length_scale
    return amplitude**2 * (1.0 + scaled) * jnp.exp(-scaled)
