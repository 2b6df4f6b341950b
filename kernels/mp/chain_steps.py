"""What the forms of the discrete chain's filter share: shifts, sums, pieces of the adjoint."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..frame import Call

MOST = 80.0  # exp(80) is finite in float32; only states that are out of reach get there


def shift_of(predicted: Any, logs: Any, axis: int | None = None) -> Any:
    """What to subtract from the log likelihoods of a step before they are exponentiated.

    With `axis`, that of the states, for a chain in each place of the other axes; it is kept.
    """
    keep = axis is not None
    top = _finite(logs.max(axis, keepdims=keep))
    usual = (predicted * jnp.exp(logs - top)).sum(axis, keepdims=keep) > least_usual(logs.dtype)
    reachable = _finite(jnp.where(predicted > 0, logs, -jnp.inf).max(axis, keepdims=keep))
    return jax.lax.stop_gradient(jnp.where(usual, top, reachable))


def _finite(x: Any) -> Any:
    return jnp.where(jnp.isfinite(x), x, 0)


def evidence_of(shift: Any, scale: Any) -> Any:
    """log p(x_1..N) from the shifts and scales of all steps."""
    logs = jnp.where(scale == 0, -jnp.inf, jnp.log(jnp.where(scale == 0, 1, scale)))
    return blocked_sum(shift) + blocked_sum(logs)


def least_usual(dtype: Any) -> float:
    """Of joint probabilities that sum to more, what underflows is lost in rounding anyway."""
    return float(jnp.finfo(dtype).tiny) ** 0.4


def blocked_sum(x: Any) -> Any:
    """The sum of a vector, in blocks: a running sum in float32 loses tens of nats at 1e6 terms."""
    block = 1024
    return jnp.pad(x, (0, -len(x) % block)).reshape(-1, block).sum(1).sum()


def bounded(x: Any) -> Any:
    """No infinities.

    How much better a state would explain the data, that cannot be there, is a slope without bound:
    it meets with zeros.
    """
    most = float(jnp.finfo(x.dtype).max) / 256  # sums stay finite too
    return jnp.clip(x, -most, most)


def gains_and_weights(logs: Any, shift: Any, scale: Any, evidence_bar: Any) -> Any:
    """What a step adds of the evidence's cotangent, and w / c."""
    weights = jnp.exp(jnp.minimum(logs - shift[:, None], MOST))
    weights = bounded(weights / jnp.where(scale == 0, 1, scale)[:, None])
    return jnp.where(scale == 0, 0, evidence_bar), weights


def slopes_and_weights(logs: Any, shift: Any, scale: Any) -> Any:
    """For the slope of the evidence itself."""
    return gains_and_weights(logs, shift, scale, jnp.ones((), logs.dtype))


def smoother_bars(
    transitions: Any, S: Any, evidence_bar: Any, p: Any, dp: Any, b: Any, db: Any, q: Any, dq: Any
) -> Any:
    """The smoother's cotangents, from what it consists of and tangents along its cotangents."""
    dq = bounded(dq + bounded(evidence_bar * q))
    logs_bar = dp * b + p * (db + evidence_bar * b)
    transitions_bar = transitions_bar_of(transitions, p, dq[1:])
    transitions_bar += transitions_bar_of(transitions, dp, q[1:])
    transitions_bar += S * transitions_bar_of(transitions, p, q[1:])
    return dq[0], bounded(transitions_bar), logs_bar


def transitions_bar_of(transitions: Any, filtered: Any, q: Any) -> Any:
    """The cotangent of the transitions, from those of what was predicted."""
    if transitions.ndim == 3:
        return filtered[:-1, :, None] * q[:, None, :]
    return bounded(jnp.einsum("ti,tj->ij", filtered[:-1], q))


def attributes(call: Call) -> dict[str, Any]:
    """What the native handlers of chains are told; operand 2 is [N, K]."""
    steps, states = call.operands[2].shape
    return {
        "batch": np.int64(1 if call.batch is None else call.batch),
        "steps": np.int64(steps),
        "states": np.int64(states),
        "varying": np.bool_(len(call.operands[1].shape) == 3),
    }


def suffix(call: Call) -> str:
    """How the handlers of a dtype are called."""
    return {"float32": "f32", "float64": "f64"}[call.operands[2].dtype.name]
