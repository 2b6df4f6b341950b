"""Variational importance sampling: the proposal with the least forward chi-square divergence.

    chi2(p(z | x) || q) = E_q[w^2] / p(x)^2 - 1

is the relative variance of the importance-sampled likelihood 1/k sum_i w_i, times k.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...transforms.choices import Choices
from ..measure import Measure
from .groups import Groups
from .tags import tagged
from .weights import log_mean_exp, log_weight, require_draws


@tagged("consistent", "Li, Wang, Li and Wu 2024", minimise=True)
def forward_chi2(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """[consistent] log E_q[w^2] = log p(x)^2 (1 + chi2(p(z | x) || q)), k draws; minimise.

        gradient = -sum_i u_i grad log q(z_i),   u_i = w_i^2 / sum_j w_j^2

    in the log domain and with constant draws, as E_s[p(x, z)^2 / (q(z) s(z))] with s = q constant,
    so that the guide may have discrete choices. `cubo` with n = 2 has half this value and the
    pathwise gradient.

    Raises:
        CapabilityError: a density is an estimate, whose variance would count as divergence.

    Li, Wang, Li and Wu 2024.
    """
    log_w, log_v = _ratios(p, q, data, k)
    return log_mean_exp(log_w + log_v)


@tagged("consistent", "Li, Wang, Li and Wu 2024")
def vis(p: Measure, q: Measure, data: Choices, k: int) -> Groups:
    """[consistent] The importance-sampled likelihood for the model, -log E_q[w^2] for the guide.

        model: log 1/k sum_i w_i        guide: -log 1/k sum_i w_i^2

    Li, Wang, Li and Wu 2024.
    """
    log_w, log_v = _ratios(p, q, data, k)
    return {"model": log_mean_exp(log_w), "guide": -log_mean_exp(log_w + log_v)}


def _ratios(p: Measure, q: Measure, data: Choices, k: int) -> tuple[jax.Array, jax.Array]:
    """log p(x, z_i) / s(z_i) and log p(x, z_i) / q(z_i), z_i ~ s = q constant: [k] each."""
    require_draws(k)
    for m in (p, q):
        m.require_exact("forward_chi2")

    def one(_: Any) -> tuple[jax.Array, jax.Array]:
        trace = q.detach().simulate()
        log_q = q.log_density(trace.choices)
        return log_weight(p, trace, data), log_weight(p, trace, data, of=log_q)

    return jax.vmap(one)(jnp.arange(k))
