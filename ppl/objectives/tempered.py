"""The ELBO with a weight on its likelihood or on its divergence, and schedules for the weight.

    kappa E_q[log p(x | z)] - KL(q(z) || p(z)) <= log int p(x | z)^kappa p(z) dz

`analytic_kl` is that of `elbo`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...transforms.choices import Choices
from ..measure import Measure
from .tags import tagged
from .terms import elbo_terms
from .weights import explained


@tagged("lower bound", "Higgins et al. 2017")
def beta_elbo(
    p: Measure, q: Measure, data: Choices, beta: Any, *, analytic_kl: bool = False
) -> jax.Array:
    """[lower bound] E_q[log p(x | z)] - beta KL(q(z) || p(z)).

    At most log p(x) for beta >= 1; in general at most beta log int p(x | z)^(1 / beta) p(z) dz.

    Higgins et al. 2017.
    """
    log_likelihood, kl = elbo_terms(p, q, data, analytic_kl=analytic_kl)
    return log_likelihood - beta * kl


@tagged("lower bound", "Mandt, McInerney, Abrol, Ranganath and Blei 2016")
def tempered_elbo(
    p: Measure, q: Measure, data: Choices, temperature: Any, *, analytic_kl: bool = False
) -> jax.Array:
    """[lower bound] E_q[log p(x | z)] / T - KL(q(z) || p(z)) <= log int p(x | z)^(1/T) p(z) dz.

    The optimal guide is proportional to p(x | z)^(1/T) p(z): flat for a high temperature.

    Mandt, McInerney, Abrol, Ranganath and Blei 2016.
    """
    log_likelihood, kl = elbo_terms(p, q, data, analytic_kl=analytic_kl)
    return log_likelihood / temperature - kl


@tagged("lower bound", "Wenzel et al. 2020")
def cold_elbo(p: Measure, q: Measure, data: Choices, temperature: Any) -> jax.Array:
    """[lower bound] E_q[log p(x, z) / T - log q(z)] <= log int p(x, z)^(1/T) dz.

    The optimal guide is proportional to p(z | x)^(1/T), prior included: a cold posterior for T < 1.

    Wenzel et al. 2020.
    """
    trace = q.simulate()
    with explained(p, trace.choices, data):
        return p.log_density(trace.choices | dict(data)) / temperature - trace.log_density


@tagged("lower bound", "Harvey, Petrov and Hughes 2025")
def data_emphasised_elbo(
    p: Measure, q: Measure, data: Choices, kappa: Any, *, analytic_kl: bool = False
) -> jax.Array:
    """[lower bound] kappa E_q[log p(x | z)] - KL(q(z) || p(z)) <= log int p(x | z)^kappa p(z) dz.

    For models with many more parameters than data, kappa = parameters / data points: the data keep
    their say, and hyperparameters of the prior can be learned with the guide.

    Harvey, Petrov and Hughes 2025.
    """
    log_likelihood, kl = elbo_terms(p, q, data, analytic_kl=analytic_kl)
    return kappa * log_likelihood - kl


@tagged("lower bound", "Mansbridge, Fierimonte, Feige and Barber 2019")
def autogen(
    p: Measure, q: Measure, data: Choices, m: Any, *, analytic_kl: bool = False
) -> jax.Array:
    """[lower bound] AutoGen, (1 + m) E_q[log p(x | z)] - KL(q(z) || p(z)).

    A bound on log int p(x | z)^(1 + m) p(z) dz: the data are generated once, and m times more from
    the same z reconstructed without a fault.

    Mansbridge, Fierimonte, Feige and Barber 2019.
    """
    log_likelihood, kl = elbo_terms(p, q, data, analytic_kl=analytic_kl)
    return (1 + m) * log_likelihood - kl


@tagged("heuristic", "Burgess et al. 2018")
def capacity(p: Measure, q: Measure, data: Choices, gamma: Any, c: Any) -> jax.Array:
    """[heuristic] E_q[log p(x | z)] - gamma |KL(q(z) || p(z)) - C|, C the capacity in nats.

    The divergence is taken in closed form: |KL - C| of an estimate is too large in the mean. So it
    is where the divergence at one address depends on the draw at another.

    Raises:
        ClosedFormError: the divergence at some address has no closed form.

    Burgess et al. 2018.
    """
    log_likelihood, kl = elbo_terms(p, q, data, exact=True)
    return log_likelihood - gamma * jnp.abs(kl - c)


# ---- schedules: weight(step)


def linear_annealing(step: Any, steps: int, start: Any = 0.0, end: Any = 1.0) -> jax.Array:
    """From `start` to `end` in `steps` steps, then constant. Sonderby et al. 2016."""
    return start + (end - start) * jnp.clip(jnp.asarray(step) / steps, 0.0, 1.0)


def logistic_annealing(step: Any, midpoint: Any, width: Any) -> jax.Array:
    """1 / (1 + exp(-(step - midpoint) / width)). Bowman et al. 2016."""
    return jax.nn.sigmoid((jnp.asarray(step) - midpoint) / width)


def cyclical_annealing(step: Any, period: int, rising: float = 0.5) -> jax.Array:
    """In every period from 0 to 1 during its first part `rising`, then 1. Fu et al. 2019."""
    return jnp.minimum(1.0, (jnp.asarray(step) % period) / (period * rising))
