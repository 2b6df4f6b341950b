"""What computes an operation on some platforms, and what it is told of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Call:
    """One use of an operation, as seen by the code that lowers it.

    Attributes:
        operands: shapes and dtypes of the operands *without* the batch axis.
        batch: length of the batch axis, or None.
        batched: which operands have the batch axis in front; the others are shared by all.
        statics: the operation's parameters that are no arrays.
        save: whether the residuals of the derivative are wanted.
        platform: "cpu", "cuda", "tpu" or another of JAX's names.
        summed: of an adjoint, the shared operands whose cotangents are wanted summed over the batch
            or not at all.
        wanted: of an adjoint, the operands whose cotangents are wanted; others may be None.
    """

    operands: tuple[jax.ShapeDtypeStruct, ...]
    batch: int | None
    batched: tuple[bool, ...]
    statics: Mapping[str, Any]
    save: bool
    platform: str
    summed: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()

    @property
    def dtypes(self) -> set[str]:
        """Names of the operands' dtypes."""
        return {str(operand.dtype) for operand in self.operands}


def accepts(call: Call) -> str | None:
    """Refuse nothing."""
    return None


Value = Callable[..., tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]]
Adjoint = Callable[..., tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: by which users force it ("native", "pallas", "xla", ...).
        platforms: where it runs; empty: anywhere.
        value: `(call, *operands) -> (outputs, residuals)`; operands that `call.batched` marks and
            all outputs have the batch axis in front. Residuals are () unless `call.save`.
        adjoint: `(call, operands, residuals, cotangents) -> cotangents of the operands`, or None
            where the definition's derivative is to be used. The cotangent of an output may be
            None, meaning zero; that of an operand may be None, meaning that it has none. With a
            batch axis, all results have it, also those of shared operands; what `call.summed`
            lists may come summed, without it, or the frame sums it.
        refuse: `call -> reason`, or None if the call is served.
        refuse_adjoint: the same for the adjoint.
    """

    name: str
    platforms: tuple[str, ...]
    value: Value
    adjoint: Adjoint | None = None
    refuse: Callable[[Call], str | None] = accepts
    refuse_adjoint: Callable[[Call], str | None] = accepts

    def reason_against(self, call: Call, *, adjoint: bool = False) -> str | None:
        """Why this implementation does not serve the call, or None."""
        if self.platforms and call.platform not in self.platforms:
            return f"runs on {', '.join(self.platforms)}"
        if adjoint and self.adjoint is None:
            return "has no derivative of its own"
        return self.refuse(call) or (self.refuse_adjoint(call) if adjoint else None)
