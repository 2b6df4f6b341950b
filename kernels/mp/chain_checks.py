"""What the public functions of discrete chains ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..errors import KernelDtypeError, KernelShapeError, KernelValueError

NARROW = ("bfloat16", "float16")  # computed in float32


def checked_chain(
    name: str, initial: Any, transitions: Any, log_likelihoods: Any
) -> tuple[list[jax.Array], Any]:
    """The operands in one dtype of their computation, and the dtype that results are to have."""
    given = {"initial": initial, "transitions": transitions, "log_likelihoods": log_likelihoods}
    operands = {what: jnp.asarray(x) for what, x in given.items()}
    for what, x in operands.items():
        if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
            raise KernelDtypeError(f"{name}: {what} must be real.", expected="floats", got=x.dtype)
    _check_shapes(name, **operands)
    for what in ("initial", "transitions"):
        _check_probabilities(name, what, operands[what])
    dtype = jnp.result_type(*operands.values())
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    working = jnp.float32 if dtype.name in NARROW else dtype
    return [x.astype(working) for x in operands.values()], dtype


def narrowed(results: Sequence[jax.Array], dtype: Any) -> Any:
    """Results in the dtype of the arguments."""
    return tuple(x.astype(dtype) for x in results)


def _check_shapes(name: str, initial: Any, transitions: Any, log_likelihoods: Any) -> None:
    if log_likelihoods.ndim != 2 or log_likelihoods.shape[1] == 0:
        raise KernelShapeError(
            f"{name}: log likelihoods are a matrix, of at least one state.",
            expected="log_likelihoods of shape [N, K], K > 0",
            got=log_likelihoods.shape,
            fix="jax.vmap over a batch of chains" if log_likelihoods.ndim > 2 else None,
        )
    steps, states = log_likelihoods.shape
    if initial.shape != (states,):
        raise KernelShapeError(
            f"{name}: the initial distribution does not fit the log likelihoods.",
            expected=f"initial of shape [{states}]",
            got=initial.shape,
        )
    constant, varying = (states, states), (max(steps - 1, 0), states, states)
    if transitions.shape not in (constant, varying):
        raise KernelShapeError(
            f"{name}: the transitions do not fit the log likelihoods.",
            expected=f"transitions of shape {list(constant)}, or {list(varying)} if they vary",
            got=transitions.shape,
        )


def _check_probabilities(name: str, what: str, x: Any) -> None:
    """Every last axis is a distribution, where the values are known; NaNs are let through."""
    if _jax.is_traced(x) or x.size == 0:
        return
    values = np.asarray(x.astype(jnp.float32) if x.dtype.name in NARROW else x)
    least = values.min()
    if least < 0:
        raise KernelValueError(
            f"{name}: {what} has a negative probability.",
            expected="probabilities (not their logarithms)",
            got=f"{least:.6g} at {_where(values, values < 0)}",
        )
    sums = values.sum(-1, dtype=np.float64)
    tolerance = 0.02 if x.dtype.name in NARROW else 1e-3
    wrong = abs(sums - 1) > tolerance
    if wrong.any():
        raise KernelValueError(
            f"{name}: {what} must sum to one"
            + (" along the last axis (from a state, to all states)." if values.ndim > 1 else "."),
            expected="sums of 1",
            got=f"{sums[wrong].flat[0]:.6g}"
            + (f" in row {_where(sums, wrong)}" if values.ndim > 1 else ""),
            fix=f"{what} / {what}.sum(-1, keepdims=True)",
        )


def _where(x: np.ndarray, condition: np.ndarray) -> list[int]:
    """The first place where a condition holds."""
    return [int(i) for i in np.unravel_index(int(np.argmax(condition)), x.shape)]
