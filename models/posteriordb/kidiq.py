"""Test scores of children on their mothers' education and IQ (Gelman and Hill 2006, chapters 3, 4).

Linear regressions with flat priors on the coefficients; on sigma C+(0, 2.5) or a flat one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def kidscore_momiq(mom_iq: Any, kid_score: Any = None) -> None:
    """On the mother's IQ."""
    beta = vx.sample("beta", d.Flat(2))
    sigma = vx.sample("sigma", d.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_iq  # [N]
    vx.sample("kid_score", d.Normal(mean, sigma), obs=kid_score)


@vx.model
def kidscore_interaction(mom_hs: Any, mom_iq: Any, kid_score: Any = None) -> None:
    """On IQ, high school and their product, all as they are: correlations near one."""
    beta = vx.sample("beta", d.Flat(4))
    sigma = vx.sample("sigma", d.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq  # [N]
    vx.sample("kid_score", d.Normal(mean, sigma), obs=kid_score)


@vx.model
def kidscore_interaction_z(mom_hs: Any, mom_iq: Any, kid_score: Any = None) -> None:
    """The same regression on standardised predictors; sigma's prior is flat."""
    beta = vx.sample("beta", d.Flat(4))
    sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
    hs, iq = by_two_sds(mom_hs), by_two_sds(mom_iq)  # [N], [N]
    mean = beta[0] + beta[1] * hs + beta[2] * iq + beta[3] * hs * iq  # [N]
    vx.sample("kid_score", d.Normal(mean, sigma), obs=kid_score)


def by_two_sds(x: Any) -> jax.Array:
    """Centred and divided by twice the sample standard deviation (Gelman 2008)."""
    x = jnp.asarray(x, float)
    return (x - x.mean()) / (2 * x.std(ddof=1))
