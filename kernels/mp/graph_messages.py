"""Messages of a factor graph: one sweep in plain jnp, and the loop over sweeps as an operation.

A factor over r variables has a table [K, ..., K] of logarithms; factors of the same r form a group,
(variables [F, r], tables [F, K, ..., K]), whose messages to its variables are [F, r, K]. They are
probabilities: normalised to sum one (sum-product) or to maximum one (max-product). A sweep updates
all of them from those before (flooding). The graph is data: nothing is compiled per factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import native
from ..frame import Call, Operation

Groups = Sequence[tuple[Any, Any]]  # (variables, tables) of the factors of each size


def exponentials(logs: Any, axes: int | tuple[int, ...]) -> Any:
    """exp(logs - shift), and the shift: the maximum over `axes`, 0 where that is not finite."""
    top = jax.lax.stop_gradient(logs.max(axes, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.exp(logs - top), top


def products(unary: Any, groups: Groups, messages: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
    """Beliefs and what variables send: products of messages, of all and of all but one.

    In logarithms, where zeros are counted apart: an infinity cannot be taken out of a sum.

    Returns:
        Logarithms of the products of all [V, K] (a finite part, and the number of zeros in it), and
        for each group probabilities of maximum one, [F, r, K].
    """
    gone = jnp.isneginf(unary)
    logs, zeros = jnp.where(gone, 0, unary), gone.astype(jnp.int32)
    parts = []
    for (variables, _), m in zip(groups, messages, strict=True):
        none = m == 0
        log = jnp.log(jnp.where(none, 1, m))
        parts.append((log, none))
        logs = logs.at[variables].add(log)
        zeros = zeros.at[variables].add(none.astype(jnp.int32))
    sent = []
    for (variables, _), (log, none) in zip(groups, parts, strict=True):
        out = zeros[variables] - none > 0
        sent.append(_relative(logs[variables] - log, out)[0])
    return logs, zeros, sent


def _relative(logs: Any, out: Any) -> tuple[Any, Any]:
    """exp(logs) over its maximum along the last axis, 0 where `out`; and that maximum."""
    top = jax.lax.stop_gradient(jnp.where(out, -jnp.inf, logs).max(-1, keepdims=True))
    top = jnp.where(jnp.isneginf(top), 0, top)
    return jnp.where(out, 0, jnp.exp(jnp.where(out, 0, logs - top))), top


def beliefs(logs: Any, zeros: Any) -> tuple[Any, Any]:
    """What `products` gives of variables as probabilities of maximum one; the log maximum."""
    relative, top = _relative(logs, zeros > 0)
    return relative, top[..., 0]


def joint(tables: Any, sent: Any, but: int | None = None) -> Any:
    """exp(tables) times what the variables (all but one) send: [F, K, ..., K], of any scale."""
    size = tables.ndim - 1
    weights, _ = exponentials(tables, tuple(range(1, size + 1)))
    for q in range(size):
        if q != but:
            shape = [1] * size
            shape[q] = tables.shape[1]
            weights = weights * sent[:, q].reshape((len(tables), *shape))
    return weights


def sweep(unary: Any, groups: Groups, messages: Sequence[Any], *, maximum: bool) -> list[Any]:
    """All messages anew."""
    _, _, sent = products(unary, groups, messages)
    reduce = jnp.max if maximum else jnp.sum
    new = []
    for (_, tables), n in zip(groups, sent, strict=True):
        size = tables.ndim - 1
        rows = [
            reduce(joint(tables, n, p), axis=tuple(q + 1 for q in range(size) if q != p))
            for p in range(size)
        ]
        m = jnp.stack(rows, 1)
        norm = reduce(m, axis=-1, keepdims=True)
        new.append(m / jnp.where(norm == 0, 1, norm))
    return new


def _groups_of(operands: Sequence[Any]) -> Groups:
    return list(zip(operands[::2], operands[1::2], strict=True))


def messages_definition(
    unary: Any, *factors: Any, iterations: int, tolerance: float, damping: float, maximum: bool
) -> Any:
    """Messages after sweeps until nothing changes by more than the tolerance.

    Args:
        unary: log weights, [V, K].
        factors: variables and tables of each group in turn.
        iterations, tolerance: when to stop.
        damping: new messages are (1 - damping) times those of the sweep plus damping times the old.
        maximum: max-product instead of sum-product.

    Returns:
        The messages of each group, the number of sweeps, and the last change.
    """
    groups = _groups_of(factors)
    states = unary.shape[1]
    start = 1.0 if maximum else 1.0 / max(states, 1)
    first = [jnp.full((*v.shape, states), start, unary.dtype) for v, _ in groups]
    any_factor = any(v.size for v, _ in groups)
    change = jnp.asarray(jnp.inf if any_factor else 0, unary.dtype)

    def more(state: Any) -> Any:
        _, done, change = state
        return (done < iterations) & (change > tolerance)

    def again(state: Any) -> Any:
        old, done, change = state
        new = sweep(unary, groups, old, maximum=maximum)
        new = [n + damping * (o - n) for n, o in zip(new, old, strict=True)]
        changes = [abs(n - o).max() for n, o in zip(new, old, strict=True) if n.size]
        return new, done + 1, jnp.stack(changes).max() if changes else change

    messages, done, change = jax.lax.while_loop(more, again, (first, jnp.int32(0), change))
    return (*messages, done, change)


def solve_definition(
    unary: Any, *rest: Any, iterations: int, tolerance: float, damping: float, transposed: bool
) -> Any:
    """x with x = J x - b, by x <- x + (1 - damping) (J x - b - x): the derivative of a fixed point.

    Args:
        unary: log weights, [V, K].
        rest: variables and tables of each group in turn, the messages of each group, and its b.
        iterations, damping: as for the messages.
        tolerance: stop when x changes by no more than this times the largest b.
        transposed: J is the slope of a sweep in the messages, or its transpose.
    """
    many = len(rest) // 4
    groups, messages, b = _groups_of(rest[: 2 * many]), rest[2 * many : 3 * many], rest[3 * many :]

    def of_messages(*messages: Any) -> Any:
        return tuple(sweep(unary, groups, messages, maximum=False))

    if transposed:
        _, slope = jax.vjp(of_messages, *messages)
    else:
        _, along = jax.linearize(of_messages, *messages)
        slope = lambda xs: along(*xs)  # noqa: E731
    size = largest(b)

    def more(state: Any) -> Any:
        _, done, change = state
        return (done < iterations) & (change > tolerance * size)

    def again(state: Any) -> Any:
        x, done, _ = state
        step = [(1 - damping) * (y - u - c) for y, u, c in zip(slope(x), x, b, strict=True)]
        x = tuple(u + s for u, s in zip(x, step, strict=True))
        return x, done + 1, largest(step)

    start = tuple(jnp.zeros_like(c) for c in b)
    return jax.lax.while_loop(more, again, (start, jnp.int32(0), jnp.full_like(size, jnp.inf)))[0]


def largest(xs: Any) -> Any:
    """The largest magnitude in some arrays, of which one is not empty."""
    return jnp.stack([abs(x).max() for x in xs if x.size]).max()


def _refuse(call: Call) -> str | None:
    factors = call.operands[1:3]
    if len(call.operands) not in (3, 5) or factors[0].shape[1] != 2:
        return "has pairwise factors only"
    variables, states = call.operands[0].shape
    if (variables + 2 * factors[0].shape[0] + 1) * states * 16 > 2**31:
        return "is for graphs of less than 2^27 messages"
    return None


def _native(call: Call, *operands: Any) -> Any:
    structs = _messages_struct(call)
    front, dtype = structs.shape[:-3], structs.dtype
    more = [jax.ShapeDtypeStruct(front, jnp.int32), jax.ShapeDtypeStruct(front, dtype)]
    return _called(call, "factor_graph", "maximum", [structs, *more], operands)


def _native_solve(call: Call, *operands: Any) -> Any:
    return _called(call, "factor_graph_solve", "transposed", [_messages_struct(call)], operands)


def _messages_struct(call: Call) -> jax.ShapeDtypeStruct:
    front = () if call.batch is None else (call.batch,)
    unary, pairs = call.operands[:2]
    return jax.ShapeDtypeStruct((*front, pairs.shape[0], 2, unary.shape[1]), unary.dtype)


def _called(call: Call, name: str, flag: str, results: Any, operands: Any) -> Any:
    (variables, states), statics = call.operands[0].shape, call.statics
    out = native.call(
        f"varax_{name}_{'f64' if call.operands[0].dtype.name == 'float64' else 'f32'}",
        results,
        *operands,
        batch=np.int64(1 if call.batch is None else call.batch),
        variables=np.int64(variables),
        states=np.int64(states),
        edges=np.int64(call.operands[1].shape[0]),
        iterations=np.int64(statics["iterations"]),
        tolerance=np.float64(statics["tolerance"]),
        damping=np.float64(statics["damping"]),
        **{flag: np.bool_(statics[flag])},
    )
    return tuple(out), ()


class _Messages(Operation):
    """Integers and fixed points: derivatives are implicit, and belong to who uses the messages."""

    def has_derivative(self, i: int, operand: Any) -> bool:
        return False


messages_operation = _Messages(
    "factor_graph",
    messages_definition,
    implementations=(native.native(_native, refuse=_refuse),),
)
solve_operation = _Messages(
    "factor_graph_solve",
    solve_definition,
    implementations=(native.native(_native_solve, refuse=_refuse),),
)
