"""Bounds whose value is known and whose gradient is estimated with less variance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ...transforms.choices import Choices
from ...transforms.errors import NotReparameterizableError
from ...transforms.signals import learning_signals
from ...transforms.trace import not_pathwise
from ..measure import Measure
from .tags import tagged
from .weights import explained, log_mean_exp, log_weight, log_weights, require_draws


@tagged("lower bound", "Roeder, Wu and Duvenaud 2017")
def sticking_the_landing(p: Measure, q: Measure, data: Choices) -> jax.Array:
    """[lower bound] The ELBO with the path derivative alone: the guide's score is left out.

    Unbiased; every draw's gradient is exactly zero where q is the posterior. Arguments as for
    `elbo`.

    Raises:
        CapabilityError: the guide's density is an estimate.

    Roeder, Wu and Duvenaud 2017.
    """
    q.require_exact("sticking_the_landing")
    trace = q.simulate()
    return log_weight(p, trace, data, of=q.detach().log_density(trace.choices))


@tagged("lower bound", "Tucker, Lawson, Gu and Maddison 2019")
def dreg(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """[lower bound] `iwelbo` with the doubly reparameterized gradient.

        grad_guide = E[sum_i v_i^2 d log w_i / d z_i  d z_i / d guide],  v_i = w_i / sum_j w_j

    Unbiased, and its signal does not fade as k grows; the model's gradient is that of `iwelbo`.

    Raises:
        NotReparameterizableError: a choice of the guide is not pathwise.
        CapabilityError: the guide's density is an estimate.

    Tucker, Lawson, Gu and Maddison 2019.
    """
    require_draws(k)
    q.require_exact("dreg")
    _require_pathwise(q)

    def log_w(z: Choices) -> jax.Array:
        with explained(p, z, data):
            return p.log_density(dict(z) | dict(data)) - q.detach().log_density(z)

    z = jax.vmap(lambda _: q.simulate().choices)(jnp.arange(k))  # [k, ...]
    bound = log_mean_exp(jax.vmap(log_w)(z))
    v = jax.nn.softmax(jax.lax.stop_gradient(jax.vmap(log_w)(z)))  # [k]

    def damped(z: Choices, v: jax.Array) -> Choices:
        return jax.tree.map(lambda x: v * x + (1 - v) * jax.lax.stop_gradient(x), z)

    surrogate = (v * jax.vmap(log_w)(jax.vmap(damped)(z, v))).sum()
    return jax.lax.stop_gradient(bound - surrogate) + surrogate


@tagged("lower bound", "Mnih and Rezende 2016")
def vimco(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """[lower bound] `iwelbo` for discrete guides: each draw's baseline is made of the k - 1 others.

        grad_guide = E[sum_i (L - L_{-i}) grad log q(z_i) + grad L],   L = log 1/k sum_i w_i

    where L_{-i} has the geometric mean of the other weights in the place of w_i. Unbiased.

    Raises:
        DrawCountError: k < 2.

    Mnih and Rezende 2016.
    """
    require_draws(k, least=2)
    log_w = log_weights(p, q, data, k)  # [k]
    bound = log_mean_exp(log_w)
    others = (log_w.sum() - log_w) / (k - 1)  # [k]
    without = jnp.where(jnp.eye(k, dtype=bool), others[:, None], log_w)  # [k, k]
    return learning_signals(bound, bound - log_mean_exp(without, 1), log_w)


def _require_pathwise(q: Measure) -> None:
    for site in not_pathwise(q.program):
        raise NotReparameterizableError(
            "The doubly reparameterized gradient needs pathwise choices.",
            address=site.address,
            expected="a distribution with a differentiable sampler, with Reparam() or by default",
            got=repr(site.estimator) if site.estimator else "a distribution without one",
            where=site.line,
            fix="objectives.vimco for a guide with discrete choices, or objectives.iwelbo",
        )
