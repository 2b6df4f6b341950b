"""Hidden Markov models: filter, smoother, most likely path, posterior paths.

    z_1 ~ initial,    z_n ~ transitions[z_{n-1}],    log p(x_n | z_n = k) = log_likelihoods[n, k]

    evidence, filtered = hmm_filter(initial, transitions, log_likelihoods)
    jax.grad(lambda *a: hmm_filter(*a)[0], argnums=(0, 1, 2))(...)      # forward-backward

`initial` [K] and `transitions` [K, K], or [N-1, K, K] if they vary in time, are probabilities;
log likelihoods [N, K] are logarithms. Zeros, and log likelihoods of -inf, are fine. Where the data
are impossible, the evidence is -inf and the filtered probabilities are zero from there on. Under
`jax.vmap` a batch of chains is one call. Rabiner (1989), "A tutorial on hidden Markov models".
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from .chain_checks import checked_chain, narrowed
from .chain_decode import draw_operation, viterbi_operation
from .chain_filter import filter_operation
from .chain_smoother import smoother_operation


def hmm_filter(initial: Any, transitions: Any, log_likelihoods: Any) -> tuple[jax.Array, jax.Array]:
    """Log evidence and filtered probabilities.

    Args:
        initial: p(z_1), [K].
        transitions: p(z_n = j | z_{n-1} = i) at [i, j], [K, K]; or at [n, i, j], [N-1, K, K].
        log_likelihoods: log p(x_n | z_n = k), [N, K].

    Returns:
        log p(x_1..N), [], and p(z_n | x_1..n), [N, K].

    Raises:
        KernelShapeError: shapes that do not fit one another, or no states.
        KernelDtypeError: operands that are not real numbers.
        KernelValueError: probabilities below zero, or rows that do not sum to one (checked
            where the values are known, not under jit).
    """
    operands, dtype = checked_chain("hmm_filter", initial, transitions, log_likelihoods)
    return narrowed(filter_operation(*operands), dtype)


def hmm_smoother(
    initial: Any, transitions: Any, log_likelihoods: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log evidence, smoothed probabilities and expected transitions, by forward-backward.

    The derivatives of the log evidence are what smoothing gives: p(z_n = k | x) is that in
    log_likelihoods[n, k], and expected counts are those in the logarithms of the transitions.

    Args:
        initial, transitions, log_likelihoods: as for `hmm_filter`.

    Returns:
        log p(x_1..N), []; p(z_n | x_1..N), [N, K]; and, of the shape of `transitions`, the
        expected number of transitions from i to j, or p(z_n = i, z_{n+1} = j | x) for each n
        where transitions vary.

    Raises:
        KernelShapeError, KernelDtypeError, KernelValueError: as `hmm_filter`.
    """
    operands, dtype = checked_chain("hmm_smoother", initial, transitions, log_likelihoods)
    return narrowed(smoother_operation(*operands), dtype)


def hmm_viterbi(
    initial: Any, transitions: Any, log_likelihoods: Any
) -> tuple[jax.Array, jax.Array]:
    """The most likely path, and the log probability of it and the data.

    Of equally likely paths, that one whose last state is the smallest, then the last but one, and
    so on: the same integers from every implementation. If an operand has a NaN, the log
    probability is NaN and the path zero. The log probability has the derivative of its path's.

    Args:
        initial, transitions, log_likelihoods: as for `hmm_filter`.

    Returns:
        The path, [N] int32, and max_z log p(z_1..N, x_1..N), [].

    Raises:
        KernelShapeError, KernelDtypeError, KernelValueError: as `hmm_filter`.
    """
    operands, dtype = checked_chain("hmm_viterbi", initial, transitions, log_likelihoods)
    path, score = viterbi_operation(_log(operands[0]), _log(operands[1]), operands[2])
    return path, narrowed((score,), dtype)[0]


def hmm_sample(
    key: jax.Array,
    initial: Any,
    transitions: Any,
    log_likelihoods: Any,
    *,
    shape: tuple[int, ...] = (),
) -> jax.Array:
    """Paths from the posterior p(z_1..N | x_1..N): filter forwards, draw backwards.

    Args:
        key: a JAX key; all randomness is N uniforms per path drawn from it here.
        initial, transitions, log_likelihoods: as for `hmm_filter`.
        shape: how many paths; the filter runs once for all of them.

    Returns:
        Paths, [*shape, N] int32; of no meaning where the data are impossible.

    Raises:
        KernelShapeError, KernelDtypeError, KernelValueError: as `hmm_filter`.
    """
    operands, _ = checked_chain("hmm_sample", initial, transitions, log_likelihoods)
    operands = [jax.lax.stop_gradient(x) for x in operands]
    _, filtered = filter_operation(*operands)
    steps = operands[2].shape[0]
    uniforms = jax.random.uniform(key, (math.prod(shape), steps), operands[2].dtype)

    def one(uniforms: Any) -> Any:
        return draw_operation(uniforms, operands[1], filtered)[0]

    return jax.vmap(one)(uniforms).reshape((*shape, steps))


def _log(probabilities: Any) -> Any:
    """A logarithm whose derivative at zero is zero: no path goes there."""
    positive = probabilities > 0
    logs = jnp.log(jnp.where(positive, probabilities, 1))
    return jnp.where(positive, logs, jnp.where(probabilities == 0, -jnp.inf, jnp.nan))
