"""Bounds for guides with auxiliary choices, and for models with a chain of them.

q has more addresses than the model leaves unobserved; the others are integrated out by
`vx.marginal`, whose simulate estimates the guide's density from above (docs/nested.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ...transforms.choices import Choices, flatten
from ...transforms.errors import show_address
from ..inference import Using, importance, marginal
from ..measure import Measure
from .bounds import elbo, iwelbo
from .tags import tagged

Reverse = Measure | Callable[[dict[str, Any]], Measure] | None


@tagged("lower bound", "Ranganath, Tran and Blei 2016")
def hvi(p: Measure, q: Measure, data: Choices, reverse: Reverse = None) -> jax.Array:
    """[lower bound] Hierarchical ELBO, log p(x, z) - log q(z, u) + log r(u | z), (z, u) ~ q.

    Args:
        p, data: model and its observed choices.
        q: guide of p's unobserved addresses z and of auxiliary ones u.
        reverse: r, a measure over u or a function from the choices z to one; q's own draw of u
            where there is none.

    Tight in u where r is q(u | z). Ranganath, Tran and Blei 2016.
    """
    return iwhvi(p, q, data, 1, reverse)


@tagged("lower bound", "Sobolev and Vetrov 2019")
def iwhvi(p: Measure, q: Measure, data: Choices, k: int, reverse: Reverse = None) -> jax.Array:
    """[lower bound] log p(x, z) - log 1/k sum_j q(z, u_j) / r(u_j | z), (z, u_1) ~ q, u_j ~ r.

    `hvi` with k draws of the auxiliary choices: the ELBO of q's marginal as k grows.

    Sobolev and Vetrov 2019.
    """
    return elbo(p, _over_latents(p, q, data, importance(k, reverse)), data)


@tagged("lower bound", "Sobolev and Vetrov 2019")
def diwhvi(
    p: Measure, q: Measure, data: Choices, k: int, m: int, reverse: Reverse = None
) -> jax.Array:
    """[lower bound] log 1/k sum_i p(x, z_i) / q_m(z_i), q_m as in `iwhvi` with m draws each.

    Sobolev and Vetrov 2019 (doubly importance weighted).
    """
    return iwelbo(p, _over_latents(p, q, data, importance(m, reverse)), data, k)


@tagged("lower bound", "Naesseth, Linderman, Ranganath and Blei 2018")
def vsmc(p: Measure, data: Choices, using: Using) -> jax.Array:
    """[lower bound] log Z^ of sequential Monte Carlo: FIVO, AESMC, VSMC.

    Args:
        p, data: model whose scan draws, and its observed choices.
        using: `vx.smc(particles, proposal)`.

    Maddison et al. 2017; Le et al. 2018; Naesseth et al. 2018.
    """
    keep = [show_address(a) for a in flatten(data)]
    return marginal(p, keep, using).log_density(data)


def _over_latents(p: Measure, q: Measure, data: Choices, using: Using) -> Measure:
    """q's marginal over p's unobserved addresses."""
    given = {show_address(a) for a in flatten(data)}
    keep = [a for a in p.addresses if a not in given]
    return marginal(q, keep, using)
