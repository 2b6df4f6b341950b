"""Terms in the aggregated posterior q(z) = 1/n sum_j q(z | x_j) of a guide over n data points.

    mean_i KL(q(z | x_i) || p(z)) = I(z; x) + KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || p(z_d))

A minibatch of B points with draws z_i ~ q(z | x_i) gives q(z_i) as a weighted sum over its points.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.errors import ObjectiveError, ShapeError
from .tags import tagged
from .weights import require_draws

Weights = Literal["stratified", "weighted"]


class KLTerms(NamedTuple):
    """Index-code mutual information, total correlation, dimension-wise KL: scalars, in nats."""

    mutual_information: jax.Array
    total_correlation: jax.Array
    dimension_wise_kl: jax.Array


@tagged("consistent", "Chen, Li, Grosse and Duvenaud 2018", minimise=True)
def decompose_kl(
    q: Any, z: jax.Array, prior: Any, n: int, weights: Weights = "stratified"
) -> KLTerms:
    """[consistent] The three terms of mean_i KL(q(z | x_i) || p(z)), at one draw for each point.

    Their sum is mean_i log q(z_i | x_i) - log p(z_i) whatever the weights; each is consistent as
    B goes to n, where "stratified" weights are exact.

    Args:
        q: the guide's distribution, batch shape [B, D]: one for each point and dimension.
        z: a draw of q, [B, D].
        prior: distribution whose batch shape broadcasts to [D].
        n: number of data points.
        weights: see `log_aggregated`.

    Raises:
        ShapeError: q's batch is not [B, D], or z is no draw of q.

    Chen, Li, Grosse and Duvenaud 2018.
    """
    _require_dimensions(q, z)
    each = q.log_prob(z[:, None])  # [B, B, D]: log q(z_id | x_j)
    log_q_x = q.log_prob(z).sum(1)  # [B]
    log_q = log_aggregated(each.sum(2), n, weights)  # [B]
    log_q_d = log_aggregated(each, n, weights).sum(1)  # [B]
    log_p = jnp.broadcast_to(prior.log_prob(z), z.shape).sum(1)  # [B]
    return KLTerms((log_q_x - log_q).mean(), (log_q - log_q_d).mean(), (log_q_d - log_p).mean())


@tagged("heuristic", "Chen, Li, Grosse and Duvenaud 2018")
def tc_elbo(
    log_likelihood: jax.Array, terms: KLTerms, beta: Any, alpha: Any = 1.0, gamma: Any = 1.0
) -> jax.Array:
    """[heuristic] beta-TCVAE, mean log p(x | z) - alpha I(z; x) - beta TC - gamma sum_d KL_d.

    The ELBO with all three 1. log_likelihood: log p(x_i | z_i) of a minibatch, [B].

    Chen, Li, Grosse and Duvenaud 2018.
    """
    information, correlation, by_dimension = terms
    return log_likelihood.mean() - alpha * information - beta * correlation - gamma * by_dimension


def log_aggregated(log_q: jax.Array, n: int, weights: Weights = "stratified") -> jax.Array:
    """log sum_j W_ij q(z_i | x_j), an estimate of log q(z_i): [B, ...] from log_q [B, B, ...].

    Args:
        log_q: log q(z_i | x_j), where z_i was drawn from q(z | x_i).
        n: number of data points.
        weights: "stratified", W_ii = 1 / n and the others (n - 1) / (n (B - 1)): unbiased for
            q(z_i), and exact for B = n; or "weighted", all 1 / (n B).

    The paper's stratified weights single out one point of the others; these are their mean over
    which one it is. Chen, Li, Grosse and Duvenaud 2018.
    """
    log_w = jnp.log(_weights(len(log_q), n, weights))
    log_w = log_w.reshape(log_w.shape + (1,) * (log_q.ndim - 2))
    return jax.nn.logsumexp(log_w + log_q, axis=1)


def _weights(batch: int, n: int, weights: str) -> jax.Array:
    if weights not in get_args(Weights) or n < batch:
        raise ObjectiveError(
            "A minibatch cannot be weighted so.",
            expected=f"one of {', '.join(get_args(Weights))}, and n at least {batch}",
            got=f"{weights!r}, n = {n}",
            where=user_line(),
            fix="n is the number of all data points",
        )
    if weights == "weighted":
        return jnp.full((batch, batch), 1 / (n * batch))
    require_draws(batch, least=2)
    return jnp.where(jnp.eye(batch, dtype=bool), 1 / n, (n - 1) / (n * (batch - 1)))


def _require_dimensions(q: Any, z: jax.Array) -> None:
    batch = tuple(q.batch_shape)
    if len(batch) != 2 or q.event_shape or jnp.shape(z) != batch:
        raise ShapeError(
            "The decomposition needs one distribution for each data point and dimension.",
            expected="a guide of batch shape [B, D] and event shape [], and a draw [B, D]",
            got=f"batch shape {batch}, event shape {tuple(q.event_shape)}, draw {jnp.shape(z)}",
            where=user_line(),
            fix="leave out .to_event(1)",
        )


# ---- moments of the aggregated posterior


@tagged("consistent", "Kumar, Sattigeri and Balakrishnan 2018", minimise=True)
def dip_i(mean: jax.Array, off_diagonal: Any = 10.0, diagonal: Any = 100.0) -> jax.Array:
    """[consistent] DIP-VAE-I: a penalty on Cov_x[mu(x)] where it differs from the identity.

    mean: the guide's means over a minibatch, [B, D].
    Kumar, Sattigeri and Balakrishnan 2018.
    """
    return _from_identity(_covariance(mean), off_diagonal, diagonal)


@tagged("consistent", "Kumar, Sattigeri and Balakrishnan 2018", minimise=True)
def dip_ii(
    mean: jax.Array, variance: jax.Array, off_diagonal: Any = 10.0, diagonal: Any = 10.0
) -> jax.Array:
    """[consistent] DIP-VAE-II: a penalty on Cov[z] = E_x[Sigma(x)] + Cov_x[mu(x)], likewise.

    mean: [B, D]; variance: of the guide, [B, D], or covariances [B, D, D].
    Kumar, Sattigeri and Balakrishnan 2018.
    """
    inner = variance.mean(0)
    inner = jnp.diag(inner) if inner.ndim == 1 else inner
    return _from_identity(inner + _covariance(mean), off_diagonal, diagonal)


def _covariance(x: jax.Array) -> jax.Array:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)


def _from_identity(covariance: jax.Array, off_diagonal: Any, diagonal: Any) -> jax.Array:
    """off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2."""
    square = (covariance - jnp.eye(len(covariance))) ** 2
    on = jnp.trace(square)
    return off_diagonal * (square.sum() - on) + diagonal * on
