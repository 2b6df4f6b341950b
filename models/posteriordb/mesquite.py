"""Leaf weight of mesquite bushes on their sizes, flat priors (Gelman, Hill 2006, section 4.6)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def mesquite(
    diam1: Any,
    diam2: Any,
    canopy_height: Any,
    total_height: Any,
    density: Any,
    group: Any,
    weight: Any = None,
) -> None:
    """In metres and grams."""
    beta = vx.sample("beta", d.Flat(7))
    sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
    x = with_one(diam1, diam2, canopy_height, total_height, density, group)  # [N, 7]
    vx.sample("weight", d.Normal(x @ beta, sigma), obs=weight)


@vx.model
def logmesquite_logvas(
    diam1: Any,
    diam2: Any,
    canopy_height: Any,
    total_height: Any,
    density: Any,
    group: Any,
    weight: Any,
) -> None:
    """In logarithms, of volume, area and shape of the canopy."""
    beta = vx.sample("beta", d.Flat(7))
    sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
    one, two, canopy, total, dense = (
        jnp.log(jnp.asarray(x, float)) for x in (diam1, diam2, canopy_height, total_height, density)
    )  # each [N]
    x = with_one(one + two + canopy, one + two, one - two, total, dense, group)  # [N, 7]
    log_weight = jnp.log(jnp.asarray(weight, float))
    vx.sample("log_weight", d.Normal(x @ beta, sigma), obs=log_weight)


def with_one(*columns: Any) -> Any:
    """A design matrix, its first column ones: [N, 1 + K]."""
    return jnp.stack([jnp.ones(len(columns[0])), *columns], axis=1)
