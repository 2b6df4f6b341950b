"""Objectives with one scalar for each parameter group: `{"model": ..., "guide": ...}`.

Each scalar is maximised in its own group alone, as `vx.fit` does for params with these keys. What
one group must not touch is detached: `q.detach()` is the guide, constant in its parameters.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ...transforms.choices import Choices, flatten
from ...transforms.errors import show_address
from ..measure import Measure
from .simulation import Guide, Observed, forward_kl
from .tags import tagged
from .weights import explained, log_mean_exp, log_weight, log_weights, require_draws

Groups = dict[str, jax.Array]


@tagged("lower bound", "Rainforth et al. 2018")
def piwae(p: Measure, q: Measure, data: Choices, k: int, m: int) -> Groups:
    """[lower bound] The tight bound for the model, the one with a signal for the guide.

        model: log 1/(km) sum_ij w_ij        guide: 1/m sum_j log 1/k sum_i w_ij

    Rainforth et al. 2018.
    """
    require_draws(m)
    log_w = jax.vmap(lambda _: log_weights(p, q, data, k))(jnp.arange(m))  # [m, k]
    return {"model": log_mean_exp(log_w.ravel()), "guide": log_mean_exp(log_w, 1).mean()}


# ---- reweighted wake-sleep


@tagged("lower bound", "Bornschein and Bengio 2015")
def wake_model(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """[lower bound] `iwelbo` for the model: draws and density of the guide are constants.

        gradient = E[sum_i v_i grad log p(x, z_i)],   v_i = w_i / sum_j w_j

    Bornschein and Bengio 2015.
    """
    return log_mean_exp(log_weights(p, q.detach(), data, k))


@tagged("consistent", "Bornschein and Bengio 2015")
def wake_guide(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """[consistent] E_{p(z | x)}[log q(z)] by k draws of q, their weights and values constant.

        gradient = E[sum_i v_i grad log q(z_i)],   v_i = w_i / sum_j w_j

    It decreases KL(p(z | x) || q), needs no path through discrete choices, and has a bias of order
    1 / k. Bornschein and Bengio 2015.
    """
    log_w, log_q = _weighed(p, q, data, k)
    return (jax.nn.softmax(stop_gradient(log_w)) * log_q).sum()


@tagged("consistent", "Le, Kosiorek, Siddharth, Teh and Wood 2019")
def wake_wake(p: Measure, q: Measure, data: Choices, k: int) -> Groups:
    """[consistent] Reweighted wake-sleep without a sleep phase: both wake phases, the same draws.

        model: log 1/k sum_i w_i        guide: sum_i v_i log q(z_i)

    Le, Kosiorek, Siddharth, Teh and Wood 2019.
    """
    log_w, log_q = _weighed(p, q, data, k)
    guide = (jax.nn.softmax(stop_gradient(log_w)) * log_q).sum()
    return {"model": log_mean_exp(log_w), "guide": guide}


@tagged("unbiased", "Hinton, Dayan, Frey and Neal 1995")
def sleep_guide(p: Measure, guide: Guide, observed: Observed, n: int) -> jax.Array:
    """[unbiased] E_{p(x, z)}[log q(z | x)] by n dreams of the model, its parameters constant.

    Arguments as for `forward_kl`, of which this is the negative. Hinton, Dayan, Frey and Neal 1995.
    """
    return -forward_kl(p.detach(), guide, observed, n)


@tagged("unbiased", "Hinton, Dayan, Frey and Neal 1995")
def wake_sleep(p: Measure, guide: Guide, data: Choices, n: int) -> Groups:
    """[unbiased] The model learns from a draw of the guide, the guide from n dreams of the model.

        model: log p(x, z), z ~ q(z | x)        guide: 1/n sum_i log q(z_i | x_i), z_i, x_i ~ p

    Hinton, Dayan, Frey and Neal 1995.
    """
    observed = [show_address(a) for a in flatten(data)]
    return {
        "model": pwake(p, guide(dict(data)), data),
        "guide": sleep_guide(p, guide, observed, n),
    }


# ---- with any approximation of the posterior


@tagged("unbiased", "Becker et al. 2024")
def pwake(p: Measure, posterior: Measure, data: Choices) -> jax.Array:
    """[unbiased] E_{z ~ r}[log p(x, z)] for the model, r a constant approximation of p(z | x).

    posterior: any measure on the unobserved addresses, such as a guide or `vx.normalize(...)`.

    Becker et al. 2024, as in GenJAX.
    """
    z = posterior.detach().simulate().choices
    with explained(p, z, data):
        return p.log_density({**z, **data})


@tagged("unbiased", "Becker et al. 2024")
def qwake(q: Measure, posterior: Measure) -> jax.Array:
    """[unbiased] E_{z ~ r}[log q(z)] for the guide, r a constant approximation of p(z | x).

    Becker et al. 2024, as in GenJAX.
    """
    return q.log_density(posterior.detach().simulate().choices)


def _weighed(p: Measure, q: Measure, data: Choices, k: int) -> tuple[jax.Array, Any]:
    """log w_i and log q(z_i), [k] each; the draws and the weights are constant in the guide."""
    require_draws(k)

    def one(_: Any) -> tuple[jax.Array, jax.Array]:
        trace = q.detach().simulate()
        return log_weight(p, trace, data), q.log_density(trace.choices)

    return jax.vmap(one)(jnp.arange(k))
