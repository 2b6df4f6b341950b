"""Distributions: all of `numpyro.distributions`, and what it lacks.

`Bernoulli` and `Binomial` with logits are varax's own: NumPyro 0.22 differentiates |logits| and
max(logits, 0), so that its gradient at logits = 0, where parameters often start, is wrong (1 and 0
in the place of 1/2 and -1/2 for a Bernoulli).
"""

# pyright: reportAssignmentType=false, reportWildcardImportFromLibrary=false

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from jax.scipy.special import gammaln, xlog1py, xlogy
from numpyro.distributions import *  # noqa: F403

from .families.flow import Flow as Flow
from .families.implicit import Implicit as Implicit
from .improper import Flat as Flat
from .improper import Restricted as Restricted
from .onehot import OneHotCategorical as OneHotCategorical


class BernoulliLogits(npd.BernoulliLogits):
    """Bernoulli with log odds: log p(1) = -softplus(-logits), log p(0) = -softplus(logits).

    Support: 0 and 1. Exact for infinite logits. A float between 0 and 1 is a relaxed value
    (`varax.estimators.REBAR`, `Concrete`): its log probability is interpolated.
    """

    def log_prob(self, value: Any) -> Any:
        """Log probability; minus infinity outside the support."""
        logits: Any = self.logits
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            log_p = -jax.nn.softplus(jnp.where(value == 1, -logits, logits))
            return jnp.where((value == 0) | (value == 1), log_p, -jnp.inf)
        finite = jnp.where(jnp.isinf(logits), 0.0, logits)
        log_p = value * finite - jax.nn.softplus(finite)
        fixed, sign = jax.lax.stop_gradient((value, logits))  # guards have no derivative
        sure = jnp.where(fixed == jnp.where(sign > 0, 1.0, 0.0), 0.0, -jnp.inf)
        inside = (fixed >= 0) & (fixed <= 1)
        return jnp.where(inside, jnp.where(jnp.isinf(logits), sure, log_p), -jnp.inf)


class BernoulliProbs(npd.BernoulliProbs):
    """Bernoulli with a success probability. Support: 0 and 1.

    A float between 0 and 1 is a relaxed value, as for `BernoulliLogits`.
    """

    def log_prob(self, value: Any) -> Any:
        """Log probability; minus infinity outside the support."""
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return super().log_prob(value)
        probs: Any = self.probs
        log_p = xlogy(value, probs) + xlog1py(1.0 - value, -probs)
        fixed = jax.lax.stop_gradient(value)
        return jnp.where((fixed >= 0) & (fixed <= 1), log_p, -jnp.inf)


class BinomialLogits(npd.BinomialLogits):
    """Binomial with log odds; k successes in n trials have log probability

    log C(n, k) + k logits - n softplus(logits).

    Support: integers 0 to n. Exact for infinite logits.
    """

    def log_prob(self, value: Any) -> Any:
        """Log probability; minus infinity outside the support."""
        logits: Any = self.logits
        n: Any = self.total_count
        k, inside = value, (value >= 0) & (value <= n) & (value == jnp.floor(value))
        ways = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
        finite = jnp.where(jnp.isinf(logits), 0.0, logits)
        log_p = ways + k * finite - n * jax.nn.softplus(finite)
        sign = jax.lax.stop_gradient(logits)  # a guard has no derivative
        sure = jnp.where(k == jnp.where(sign > 0, n, 0), 0.0, -jnp.inf)
        return jnp.where(inside, jnp.where(jnp.isinf(logits), sure, log_p), -jnp.inf)


def Bernoulli(probs: Any = None, logits: Any = None, *, validate_args: Any = None) -> Any:
    """Bernoulli with a success probability or its log odds; values 0 and 1."""
    if probs is not None and logits is None:
        return BernoulliProbs(probs, validate_args=validate_args)
    if logits is None or probs is not None:
        return npd.Bernoulli(probs, logits, validate_args=validate_args)  # its error message
    return BernoulliLogits(logits, validate_args=validate_args)


def Binomial(
    total_count: Any = 1, probs: Any = None, logits: Any = None, *, validate_args: Any = None
) -> Any:
    """Number of successes in `total_count` trials, with a success probability or its log odds."""
    if logits is None or probs is not None:
        return npd.Binomial(total_count, probs, logits, validate_args=validate_args)
    return BinomialLogits(logits, total_count, validate_args=validate_args)
