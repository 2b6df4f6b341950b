"""Score-function derivatives."""

from __future__ import annotations

from typing import Any

import jax

from ..law import Law
from .base import Direct


class Score(Direct):
    """Score-function (likelihood-ratio, REINFORCE) estimator.

        grad E[k(x)] = E[k(x) grad log p(x; theta) + dk/dtheta]

    Written as the weight exp(log p(x) - stop_gradient(log p(x))), which is 1 and whose derivatives
    of any order are right (DiCE). Unbiased for every k and every distribution whose support does
    not depend on theta. No baseline: the variance grows with the size of the objective.

    Williams 1992; Foerster et al. 2018 (DiCE).
    """

    def draw(self, key: jax.Array, law: Law) -> tuple[jax.Array, Any]:
        x = jax.lax.stop_gradient(law.sample(key))
        log_p = law.log_prob(x)
        return x, log_p - jax.lax.stop_gradient(log_p)
