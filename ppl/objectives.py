"""Variational objectives: short programs over a model `p`, a guide `q` and data.

They are programs themselves: maximise them with `vx.fit`, differentiate them with `vx.grad`, write
your own in the same way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..transforms.choices import Choices, flatten
from ..transforms.errors import AddressError, GuideMismatchError, show_address
from ..transforms.source import user_line
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


def log_weight(p: Measure, trace: Trace, data: Choices) -> jax.Array:
    """log p(x, z) - log q(z) at a guide's trace: a scalar."""
    clash = flatten(trace.choices).keys() & flatten(data).keys()
    try:
        if clash:
            raise AddressError(f"{len(clash)} address given twice")
        return p.log_density(trace.choices | dict(data)) - trace.log_density
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
