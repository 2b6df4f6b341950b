"""The Kalman filter: log-likelihood and filtered moments of a linear-Gaussian chain."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from ..frame import Operation
from . import kalman_definition, kalman_parallel, kalman_shared, kalman_square_root
from .kalman_adjoint import adjoint
from .kalman_checks import prepared
from .kalman_in_jax import empty, in_jax, too_short

operation = Operation(
    "kalman_filter",
    kalman_definition.definition,
    saving=kalman_definition.saving,
    adjoint=adjoint,
    implementations=(
        kalman_shared.IMPLEMENTATION,
        in_jax("parallel", ("cuda", "tpu"), kalman_parallel, refuse=too_short),
    ),
    differentiable=(True,) * 9 + (False,),
)
# behind "xla": where they are asked for
operation.implementations += [
    in_jax("parallel", ("cpu",), kalman_parallel, refuse=empty),
    in_jax("square_root", (), kalman_square_root, refuse=empty),
]


class Filtered(NamedTuple):
    """What `kalman_filter` gives.

    Attributes:
        log_likelihood: log p(y), of the observed components alone.
        means: `[t, n]`, E[x_t | y_0..y_t].
        covariances: `[t, n, n]`.
    """

    log_likelihood: jax.Array
    means: jax.Array
    covariances: jax.Array


def kalman_filter(
    y: Any,
    A: Any,
    Q: Any,
    H: Any,
    R: Any,
    m0: Any,
    P0: Any,
    *,
    b: Any = None,
    d: Any = None,
    mask: Any = None,
) -> Filtered:
    """Filter a linear-Gaussian chain.

        x_0 ~ N(m0, P0)    x_{t+1} = A x_t + b + N(0, Q)    y_t = H x_t + d + N(0, R)

    Any of A, Q, b may have a leading axis of `t - 1` transitions, any of H, R, d, mask one of `t`
    times. The derivative is an adjoint of its own, about as fast as the filter. Covariances are
    taken by their symmetric part.

    Args:
        y: `[t, m]`, or `[t]` if a single number is observed at a time.
        A: `[n, n]`; Q: `[n, n]`, positive semi-definite.
        H: `[m, n]` (or `[n]` with `y[t]`).
        R: `[m, m]` (or a scalar with `y[t]`), positive semi-definite.
        m0: `[n]`; P0: `[n, n]`, of the state at the first time, before its observation.
        b: `[n]`, d: `[m]`: offsets, zero by default.
        mask: bool, `[t]` or `[t, m]` (or `[m]`): what was observed; y may be anything elsewhere.

    Returns:
        A `Filtered`: the log-likelihood, and means and covariances given the past and present.

    Raises:
        KernelShapeError, KernelDtypeError: the arrays do not fit one another.
        NotPositiveDefiniteError: Q, R or P0 (if its values are known) has a negative minor.

    Source: Sarkka, Bayesian Filtering and Smoothing (2013), theorem 4.2; Joseph's form.
    """
    operands, back = prepared(y, A, Q, H, R, m0, P0, b, d, mask)
    return Filtered(*(back(x) for x in operation(*operands, moments=True)))


def kalman_log_likelihood(
    y: Any,
    A: Any,
    Q: Any,
    H: Any,
    R: Any,
    m0: Any,
    P0: Any,
    *,
    b: Any = None,
    d: Any = None,
    mask: Any = None,
) -> jax.Array:
    """The log-likelihood alone, without memory for the moments; arguments as `kalman_filter`."""
    operands, back = prepared(y, A, Q, H, R, m0, P0, b, d, mask)
    return back(operation(*operands, moments=False)[0])
