"""Eight schools with a log-normal scale: mu ~ N(0, 10), log tau ~ N(5, 1)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def eight_schools(treatment_stddevs: Any, treatment_effects: Any = None) -> None:
    """Effects of coaching at J schools (Rubin 1981)."""
    mu = vx.sample("avg_effect", d.Normal(0.0, 10.0))
    log_tau = vx.sample("log_stddev", d.Normal(5.0, 1.0))
    schools = jnp.shape(treatment_stddevs)  # [J]
    theta = vx.sample("school_effects", d.Normal(mu, jnp.exp(log_tau)).expand(schools))
    vx.sample("treatment_effects", d.Normal(theta, treatment_stddevs), obs=treatment_effects)
