"""Party identification on ideology, race, age, education, gender and income; flat priors.

National Election Study of one year (Gelman and Hill 2006, section 4.7).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import varax as vx
from varax import dist as d


@vx.model
def nes(
    real_ideo: Any,
    race_adj: Any,
    age_discrete: Any,
    educ1: Any,
    gender: Any,
    income: Any,
    partyid7: Any = None,
) -> None:
    """Ages 30-44, 45-64 and 65 and over are compared with 18-29."""
    beta = vx.sample("beta", d.Flat(9))
    sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
    ages = [age_discrete == 2, age_discrete == 3, age_discrete == 4]
    columns = [real_ideo, race_adj, *ages, educ1, gender, income]  # 8 of [N]
    x = jnp.stack([jnp.ones(len(real_ideo)), *columns], axis=1)  # [N, 9]
    vx.sample("partyid7", d.Normal(x @ beta, sigma), obs=partyid7)
