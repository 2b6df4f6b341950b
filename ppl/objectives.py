"""Variational objectives: short programs over a model `p`, a guide `q` and data.

They are programs themselves: maximise them with `vx.fit`, differentiate them with `vx.grad`, write
your own in the same way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..transforms.choices import Choices, flatten
from ..transforms.errors import (
    AddressError,
    GuideMismatchError,
    NotReparameterizableError,
    show_address,
)
from ..transforms.signals import learning_signals
from ..transforms.source import user_line
from ..transforms.trace import not_pathwise
from .measure import Measure
from .trace import Trace


def elbo(p: Measure, q: Measure, data: Choices) -> jax.Array:
    """Evidence lower bound, E_q[log p(x, z) - log q(z)] <= log p(x).

    Args:
        p: model of all addresses; q: guide of those not in `data`; data: observed choices of p.

    Raises:
        GuideMismatchError: q's addresses and data are not together p's, each once.

    Jordan, Ghahramani, Jaakkola and Saul 1999.
    """
    return log_weight(p, q.simulate(), data)


def iwelbo(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """Importance-weighted bound, E[log 1/k sum_i p(x, z_i) / q(z_i)] <= log p(x), tight as k grows.

    Arguments as for `elbo`; k: number of draws of q. Burda, Grosse and Salakhutdinov 2016.
    """
    log_w = jax.vmap(lambda _: log_weight(p, q.simulate(), data))(jnp.arange(k))  # [k]
    return jax.nn.logsumexp(log_w) - jnp.log(k)


def sticking_the_landing(p: Measure, q: Measure, data: Choices) -> jax.Array:
    """The ELBO with the path derivative of its gradient alone: the guide's score is left out.

    Unbiased; every draw's gradient is exactly zero where q is the posterior. Arguments as for
    `elbo`. Roeder, Wu and Duvenaud 2017.
    """
    trace = q.simulate()
    return log_weight(p, trace, data, of=q.detach().log_density(trace.choices))


def dreg(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """`iwelbo` with the doubly reparameterized gradient.

        grad_guide = E[sum_i v_i^2 d log w_i / d z_i  d z_i / d guide],  v_i = w_i / sum_j w_j

    Unbiased, and its signal does not fade as k grows; the model's gradient is that of `iwelbo`.

    Raises:
        NotReparameterizableError: a choice of the guide is not pathwise.

    Tucker, Lawson, Gu and Maddison 2019.
    """
    _require_pathwise(q)

    def log_w(z: Choices) -> jax.Array:
        return p.log_density(dict(z) | dict(data)) - q.detach().log_density(z)

    z = jax.vmap(lambda _: q.simulate().choices)(jnp.arange(k))  # [k, ...]
    bound = jax.nn.logsumexp(jax.vmap(log_w)(z)) - jnp.log(k)
    v = jax.nn.softmax(jax.lax.stop_gradient(jax.vmap(log_w)(z)))  # [k]

    def damped(z: Choices, v: jax.Array) -> Choices:
        return jax.tree.map(lambda x: v * x + (1 - v) * jax.lax.stop_gradient(x), z)

    surrogate = (v * jax.vmap(log_w)(jax.vmap(damped)(z, v))).sum()
    return jax.lax.stop_gradient(bound - surrogate) + surrogate


def vimco(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """`iwelbo` for guides with discrete choices: each draw has a baseline made of the k - 1 others.

        grad_guide = E[sum_i (L - L_{-i}) grad log q(z_i) + grad L],   L = log 1/k sum_i w_i

    where L_{-i} has the geometric mean of the other weights in the place of w_i. Unbiased.

    Mnih and Rezende 2016.
    """
    log_w = jax.vmap(lambda _: log_weight(p, q.simulate(), data))(jnp.arange(k))  # [k]
    bound = jax.nn.logsumexp(log_w) - jnp.log(k)
    others = (log_w.sum() - log_w) / (k - 1)  # [k]
    without = jnp.where(jnp.eye(k, dtype=bool), others[:, None], log_w)  # [k, k]
    baselines = jax.nn.logsumexp(without, 1) - jnp.log(k)
    return learning_signals(bound, bound - baselines, log_w)


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


def log_weight(p: Measure, trace: Trace, data: Choices, of: jax.Array | None = None) -> jax.Array:
    """log p(x, z) - log q(z) at a guide's trace, or minus another density of it: a scalar."""
    clash = flatten(trace.choices).keys() & flatten(data).keys()
    try:
        if clash:
            raise AddressError(f"{len(clash)} address given twice")
        scored = trace.log_density if of is None else of
        return p.log_density(trace.choices | dict(data)) - scored
    except AddressError as error:
        shown = {
            "model": set(p.addresses),
            "guide": {show_address(a) for a in flatten(trace.choices)},
            "data": {show_address(a) for a in flatten(data)},
        }
        wrong = shown["model"] ^ (shown["guide"] | shown["data"]) | shown["guide"] & shown["data"]
        raise GuideMismatchError(
            "The guide does not match the model.",
            address=", ".join(sorted(wrong)),
            expected=f"guide and data share out the model's addresses {_set(shown['model'])}",
            got=f"guide {_set(shown['guide'])} and data {_set(shown['data'])}",
            where=error.where or user_line(),
            fix="sample each unobserved address of the model, and no other, in the guide",
        ) from error


def _set(names: set[str]) -> str:
    return "{" + ", ".join(sorted(names)) + "}"
