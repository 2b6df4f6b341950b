"""Who repays a credit: logistic, probit and sparse logistic regression on 24 attributes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

import varax as vx
from varax import dist as d


@vx.model
def logistic_regression(features: Any, labels: Any = None) -> None:
    """labels_n ~ Bernoulli(sigmoid(x_n weights)), weights ~ N(0, I)."""
    x = standardised(features)  # [N, K + 1]
    weights = vx.sample("weights", d.Normal(jnp.zeros(x.shape[1]), 1.0))  # [K + 1]
    vx.sample("labels", d.Bernoulli(logits=x @ weights), obs=labels)


@vx.model
def probit_regression(features: Any, labels: Any = None) -> None:
    """labels_n ~ Bernoulli(Phi(x_n weights)), weights ~ N(0, I)."""
    x = standardised(features)  # [N, K + 1]
    weights = vx.sample("weights", d.Normal(jnp.zeros(x.shape[1]), 1.0))  # [K + 1]
    eta = x @ weights
    log_odds = log_ndtr(eta) - log_ndtr(-eta)  # finite where Phi rounds to 0 or 1
    vx.sample("labels", d.Bernoulli(logits=log_odds), obs=labels)


@vx.model
def sparse_logistic_regression(features: Any, labels: Any = None) -> None:
    """Each weight a product: N(0, 1) x its own Gamma(1/2, 1/2) x one Gamma(1/2, 1/2) for all."""
    x = standardised(features)  # [N, K + 1]
    half = 0.5 * jnp.ones(x.shape[1])
    overall = vx.sample("global_scale", d.Gamma(0.5, 0.5))
    local = vx.sample("local_scales", d.Gamma(half, half))  # [K + 1]
    unscaled = vx.sample("unscaled_weights", d.Normal(0.0 * half, 1.0))  # [K + 1]
    vx.sample("labels", d.Bernoulli(logits=x @ (unscaled * local * overall)), obs=labels)


def standardised(features: Any) -> Any:
    """Columns of mean 0 and standard deviation 1, and a last one of ones: [N, K + 1]."""
    x = np.asarray(features, float)
    x = (x - x.mean(0)) / x.std(0)
    return jnp.asarray(np.column_stack([x, np.ones(len(x))]))
