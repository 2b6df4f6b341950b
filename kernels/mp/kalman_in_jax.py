"""Other forms of the filter in JAX as implementations of the operation."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..frame import Call, Implementation, over_batch
from . import kalman_adjoint

SHORT = 64


def in_jax(
    name: str, platforms: tuple[str, ...], module: ModuleType, refuse: Callable[[Call], str | None]
) -> Implementation:
    """An implementation by `module.filtered`, and `module.adjoint` if there is one."""
    back = getattr(module, "adjoint", kalman_adjoint.adjoint)

    def value(call: Call, *operands: Any) -> Any:
        log_likelihood, *kept = over_batch(call, module.filtered, call.batched)(*operands)
        outputs = (log_likelihood, *kept[:2]) if call.statics["moments"] else (log_likelihood,)
        return outputs, tuple(kept) if call.save else ()

    def adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
        def one(operands: Any, residuals: Any, cotangents: Any) -> Any:
            return back(operands, residuals, cotangents, **call.statics)

        axes = (tuple(call.batched), True, True)
        return over_batch(call, one, axes)(tuple(operands), residuals, cotangents)

    return Implementation(name, platforms, value, adjoint, refuse=refuse)


def empty(call: Call) -> str | None:
    """No steps."""
    return None if call.operands[0].shape[0] else "needs a step"


def too_short(call: Call) -> str | None:
    """Chains for which a loop is no slower."""
    steps = call.operands[0].shape[0]
    return None if steps >= SHORT else f"is for {SHORT} steps or more, not {steps}"
