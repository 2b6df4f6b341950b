"""Divergences by name, and the forward one on simulations of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.choices import Choices, flatten, nest
from ...transforms.errors import DivergenceError, UnknownAddressError, show_address
from ..measure import Measure
from .tags import tagged
from .weights import log_mean_exp, log_weight, require_draws

Guide = Callable[[dict[str, Any]], Measure]  # data -> measure on the other addresses
Observed = str | Iterable[str]  # addresses: "x", or "local/x" and "local" for what is nested


@tagged("unbiased", "Papamakarios and Murray 2016", minimise=True)
def forward_kl(p: Measure, guide: Guide, observed: Observed, n: int) -> jax.Array:
    """[unbiased] E_{p(x)} KL(p(z | x) || q(z | x)) less the entropy of z given x; minimise.

        -E_{p(x, z)}[log q(z | x)]

    by n simulations of the model, which needs no density: neural posterior estimation.

    Args:
        p: a model that observes nothing.
        guide: function from data, a dict with the observed addresses, to a measure on the others.
        observed: the addresses of p that are data.
        n: number of simulations.

    Raises:
        UnknownAddressError: p has no such address.

    Papamakarios and Murray 2016.
    """
    require_draws(n)

    def one(_: Any) -> jax.Array:
        data, z = _split(p.simulate().choices, observed)
        return guide(data).log_density(z)

    return -jax.vmap(one)(jnp.arange(n)).mean()


# D_f(p || q) = E_q[f(r)], r = p / q, as functions of log r
DIVERGENCES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "forward_kl": lambda t: jnp.exp(t) * t,  # KL(p || q)
    "reverse_kl": lambda t: -t,  # KL(q || p)
    "chi2": lambda t: jnp.expm1(t) ** 2,  # int p^2 / q - 1
    "hellinger": lambda t: jnp.expm1(t / 2) ** 2 / 2,  # squared: 1 - int sqrt(p q)
    "jensen_shannon": lambda t: (jnp.exp(t) * (t - _log_middle(t)) - _log_middle(t)) / 2,
    "total_variation": lambda t: jnp.abs(jnp.expm1(t)) / 2,  # 1/2 int |p - q|
}


def _log_middle(t: jax.Array) -> jax.Array:
    """log (1 + r) / 2."""
    return jax.nn.softplus(t) - jnp.log(2.0)


@tagged("consistent", "Csiszar 1967", minimise=True)
def f_divergence(
    p: Measure,
    q: Measure,
    data: Choices,
    k: int,
    f: str | Callable[[jax.Array], jax.Array],
    *,
    proposal: Measure | None = None,
    log_evidence: Any = None,
) -> jax.Array:
    """[consistent] D_f(p(z | x) || q) = E_q[f(p(z | x) / q(z))] by k importance samples; minimise.

    Args:
        p, q, data: as for `elbo`.
        k: number of draws.
        f: a name of `DIVERGENCES` (forward_kl, reverse_kl, chi2, hellinger, jensen_shannon,
            total_variation), or a convex f with f(1) = 0 as a function of the log ratio.
        proposal: where the draws come from, q by default.
        log_evidence: log p(x), 0 for a p that is normalised. With it the estimate is unbiased;
            otherwise p(x) is the mean of the same weights, and the bias of order 1 / k.

    Raises:
        DivergenceError: no divergence of this name.
        CapabilityError: a density is an estimate, whose noise f would see.

    Csiszar 1967; Ali and Silvey 1966.
    """
    require_draws(k)
    generator = _generator(f)
    for m in (p, q, proposal or q):
        m.require_exact("f_divergence")

    def one(_: Any) -> tuple[jax.Array, jax.Array]:
        if proposal is None:
            return log_weight(p, q.simulate(), data), jnp.zeros(())
        trace = proposal.simulate()
        log_q = q.log_density(trace.choices)
        return log_weight(p, trace, data, of=log_q), log_q - trace.log_density

    log_w, log_v = jax.vmap(one)(jnp.arange(k))  # log p / q and log q / proposal: [k]
    log_z = log_mean_exp(log_w + log_v) if log_evidence is None else log_evidence
    return (jnp.exp(log_v) * generator(log_w - log_z)).mean()


def _generator(f: Any) -> Callable[[Any], Any]:
    if callable(f):
        return f
    if f not in DIVERGENCES:
        raise DivergenceError(
            "There is no divergence of this name.",
            expected=", ".join(DIVERGENCES),
            got=repr(f),
            where=user_line(),
            fix="give a convex f with f(1) = 0, as a function of log p(z | x) / q(z)",
        )
    return DIVERGENCES[f]


def _split(choices: Choices, observed: Observed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choices at and under the observed addresses, and the others."""
    flat = flatten(choices)
    names = [observed] if isinstance(observed, str) else observed
    wanted = [tuple(a.split("/")) for a in names]
    for address in wanted:
        if not any(a[: len(address)] == address for a in flat):
            raise UnknownAddressError(
                "The model has no such address to observe.",
                address=address,
                expected=", ".join(map(show_address, flat)),
                got=show_address(address),
                where=user_line(),
            )
    data = {a: v for a, v in flat.items() if any(a[: len(w)] == w for w in wanted)}
    return nest(data), nest({a: v for a, v in flat.items() if a not in data})
