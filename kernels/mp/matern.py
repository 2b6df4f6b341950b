"""Gaussian processes with Matern covariances in linear time, as linear-Gaussian chains.

    k(t, t') = variance * M(sqrt(2 nu) |t - t'| / length_scale)     y_i = f(t_i) + noise_sd e_i

f and its first nu - 1/2 derivatives are a Markov process. The native implementation makes the
transitions on the way and never holds A and Q. Its adjoint has the predicted moments of every 64th
time, and filters a segment again while it goes back through the next.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..errors import KernelShapeError, KernelValueError
from ..frame import Call, Operation
from ..native import call as call_native
from ..native import native
from . import kalman_definition
from .kalman_checks import floating
from .matern_transitions import KINDS, transitions

SEGMENT = 64  # times from one kept moment to the next
MAY_BE_LEFT_OUT = (0, 1, 4)  # cotangents of whole series: times, y, noise_sd


def _chain(operands: Any, kind: str) -> Any:
    times, y, variance, length_scale, noise_sd = operands
    A, Q, P0 = transitions(times, kind, variance, length_scale)
    n = P0.shape[-1]
    R = jnp.square(noise_sd)[..., None, None]
    H, zero = jnp.eye(1, n, dtype=y.dtype), jnp.zeros(n, y.dtype)
    return y[:, None], A, Q, H, R, zero, P0, zero, zero[:1], jnp.ones(1, bool)


def _definition(*operands: Any, kind: str) -> Any:
    return kalman_definition.filtered(*_chain(operands, kind))[0]


def _saving(*operands: Any, kind: str) -> Any:
    """Predicted means and packed upper triangles of covariances, where each segment begins."""
    chain = _chain(operands, kind)
    log_likelihood, means, covariances, *_ = kalman_definition.filtered(*chain)
    _, A, Q, _, _, m0, P0 = chain[:7]
    m = jnp.concatenate([m0[None], jnp.einsum("tij,tj->ti", A, means[:-1])])[: len(means)]
    moved = jnp.einsum("tij,tjk,tlk->til", A, covariances[:-1], A) + Q
    P = jnp.concatenate([P0[None], moved])[: len(means)]
    i, j = np.triu_indices(P0.shape[0])
    return (log_likelihood,), (jnp.concatenate([m, P[:, i, j]], 1)[::SEGMENT],)


def _value(call: Call, *operands: Any) -> Any:
    front = () if call.batch is None else (call.batch,)
    steps, dtype, n = call.operands[0].shape[0], call.operands[0].dtype, KINDS[call.statics["kind"]]
    kept = (*front, -(-steps // SEGMENT), n + n * (n + 1) // 2) if call.save else (0,)
    results = [jax.ShapeDtypeStruct(front, dtype), jax.ShapeDtypeStruct(kept, dtype)]
    name = f"varax_matern_value_f{8 * dtype.itemsize}"
    log_likelihood, kept = call_native(name, results, *operands, **_attributes(call))
    return (log_likelihood,), (kept,) if call.save else ()


def _adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
    if cotangents[0] is None:
        return (None,) * len(operands)
    front = () if call.batch is None else (call.batch,)
    results = [jax.ShapeDtypeStruct((*front, *o.shape), o.dtype) for o in call.operands]
    for i in set(MAY_BE_LEFT_OUT) - set(call.wanted):
        results[i] = jax.ShapeDtypeStruct((0,), results[i].dtype)
    name = f"varax_matern_adjoint_f{8 * call.operands[0].dtype.itemsize}"
    found = call_native(name, results, *operands, *residuals, *cotangents, **_attributes(call))
    return tuple(ct if i in call.wanted else None for i, ct in enumerate(found))


def _attributes(call: Call) -> dict[str, Any]:
    order, batch = KINDS[call.statics["kind"]] - 1, 1 if call.batch is None else call.batch
    sizes = (order, call.operands[0].shape[0], batch, call.operands[4].ndim)
    batched = (True,) * 5 if call.batch is None else call.batched
    return {"sizes": np.array(sizes, np.int64), "batched": np.array(batched, np.int64)}


operation = Operation(
    "matern_log_likelihood",
    _definition,
    saving=_saving,
    implementations=(native(_value, _adjoint),),
)


def matern_log_likelihood(
    times: Any, y: Any, kind: str, variance: Any, length_scale: Any, noise_sd: Any
) -> jax.Array:
    """Log-likelihood of a noisily observed Matern process, in time linear in the observations.

    Args:
        times: `[t]`, not decreasing (NaN is the result where traced times decrease).
        y: `[t]`.
        kind: "1/2", "3/2" or "5/2".
        variance: of the process; length_scale: positive; noise_sd: a scalar, or `[t]`.

    Returns:
        log N(y; 0, K + diag(noise_sd^2)), differentiable in everything but `kind`.

    Raises:
        KernelShapeError: the shapes do not fit one another.
        KernelValueError: an unknown kind; times that decrease, or a length scale, variance or
            noise that is not positive, where the values are known.

    Source: Hartikainen and Sarkka, Kalman filtering and smoothing solutions to temporal Gaussian
    process regression models (2010).
    """
    if kind not in KINDS:
        raise KernelValueError("No such Matern kernel.", expected=", ".join(KINDS), got=kind)
    of, back = floating(
        {
            "times": times,
            "y": y,
            "variance": variance,
            "length_scale": length_scale,
            "noise_sd": noise_sd,
        }
    )
    steps = of["times"].shape[:1]
    shapes = {"times": [steps], "y": [steps], "noise_sd": [(), steps]}
    for name, x in of.items():
        if x.shape not in shapes.get(name, [()]) or of["times"].ndim != 1:
            raise KernelShapeError(
                "The arrays of a Matern process do not fit one another.",
                expected="times[t], y[t], noise_sd[t] or a scalar, other parameters scalars",
                got=f"{name}{list(x.shape)}, times{list(of['times'].shape)}",
            )
    _known_values(of)
    return back(operation(*of.values(), kind=kind)[0])


def _known_values(of: dict[str, Any]) -> None:
    for name in ("variance", "length_scale", "noise_sd"):
        if not _jax.is_traced(of[name]):
            x = np.asarray(of[name], np.float64)
            if (x < 0).any() or (name == "length_scale" and (x == 0).any()):
                raise KernelValueError(
                    f"{name} is not positive.", expected="a positive number", got=float(x.min())
                )
    if not _jax.is_traced(of["times"]):
        gaps: Any = np.diff(np.asarray(of["times"], np.float64))
        if (gaps < 0).any():
            at = int(np.argmax(gaps < 0))
            raise KernelValueError(
                "The times decrease.",
                expected="times in order",
                got=f"times[{at + 1}] - times[{at}] = {gaps[at]:.6g}",
                fix="order = jnp.argsort(times); pass times[order], y[order]",
            )
