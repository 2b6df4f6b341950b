"""An operation: a definition in plain JAX, and what computes it faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .choice import forced_for
from .implementation import Call, Implementation
from .primitives import Primitives, substituted

OPERATIONS: dict[str, Operation] = {}


def as_tuple(out: Any) -> tuple[Any, ...]:
    """What a function returns, as a tuple."""
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


class Operation:
    """A function of arrays: `operation(*arrays, **statics) -> tuple of arrays`.

    Args:
        name: by which `using` and `explain` know it.
        definition: `(*arrays, **statics) -> array or tuple`, unbatched, in plain JAX. It is the
            implementation "xla" unless one of that name is given, and every derivative beyond
            the first reverse one.
        saving: `(*arrays, **statics) -> (outputs, residuals)`, where an adjoint wants residuals.
        adjoint: `(operands, residuals, cotangents, **statics) -> cotangents`, unbatched, in plain
            JAX: a better derivative than that of the definition. As `Implementation.adjoint`,
            cotangents may be None.
        implementations: in order of preference; "xla" comes last by itself.
        merge: `(operands, dims, statics) -> (operands, finish) | None`: a `vmap` over some operands
            as one larger unbatched call (columns, rows); `finish(outputs)` gives outputs with the
            mapped axis in front. None: an ordinary batch axis.
        differentiable: which operands have derivatives (default: those of floating dtype).
        jumps: `statics -> bool`: whether the floating outputs jump where operands move continuously
            (rounded activations, say), so that derivatives are not those of an expectation.

    Statics are hashable.
    """

    def __init__(
        self,
        name: str,
        definition: Callable[..., Any],
        *,
        saving: Callable[..., Any] | None = None,
        adjoint: Callable[..., Any] | None = None,
        implementations: tuple[Implementation, ...] = (),
        merge: Callable[..., Any] | None = None,
        differentiable: tuple[bool, ...] | None = None,
        jumps: Callable[[dict[str, Any]], bool] = lambda statics: False,
    ):
        self.name = name
        self.definition = lambda *arrays, **statics: as_tuple(definition(*arrays, **statics))
        self.saving = saving
        self.merge = merge
        self.differentiable = differentiable
        self.jumps = jumps
        self._adjoint = adjoint
        self.implementations = [
            dataclasses.replace(i, adjoint=self._xla_adjoint)
            if i.name == "xla" and i.adjoint is None
            else i
            for i in implementations
        ]
        if not any(i.name == "xla" for i in implementations):
            own = Implementation("xla", (), self._xla_value, self._xla_adjoint)
            self.implementations.append(own)
        self.__doc__ = definition.__doc__
        OPERATIONS[name] = self
        self.primitives = Primitives(self)

    def add(self, implementation: Implementation) -> None:
        """Prefer `implementation` to those that are there."""
        self.implementations.insert(0, implementation)

    def __call__(self, *arrays: Any, **statics: Any) -> tuple[jax.Array, ...]:
        operands = [jnp.asarray(a) for a in arrays]
        return tuple(
            self.primitives.value.bind(
                *operands,
                batch=None,
                batched=(False,) * len(operands),
                statics=tuple(sorted(statics.items())),
                save=False,
                forced=forced_for(self.name),
            )
        )

    def __repr__(self) -> str:
        return f"Operation({self.name}: {', '.join(i.name for i in self.implementations)})"

    def outputs_and_residuals(self, save: bool, operands: Any, statics: dict[str, Any]) -> Any:
        """What the value gives, by the definition: `(outputs, residuals)`, unbatched."""
        if save and self.saving is not None:
            outputs, residuals = self.saving(*operands, **statics)
            return as_tuple(outputs), as_tuple(residuals)
        return self.definition(*operands, **statics), ()

    def gradient(
        self, operands: Any, residuals: Any, cotangents: Any, active: Any, statics: Any
    ) -> tuple[Any, ...]:
        """Cotangents of the active operands, by `adjoint` or the definition's own derivative."""
        if self._adjoint is not None:
            found = self._adjoint(operands, residuals, cotangents, **statics)
            return tuple(filled(found[i], operands[i]) for i in active)
        return self.gradient_of_definition(operands, cotangents, active, statics)

    def gradient_of_definition(
        self, operands: Any, cotangents: Any, active: Any, statics: Any
    ) -> tuple[Any, ...]:
        """The same, always by the definition."""

        def of_active(*moving: Any) -> Any:
            out = self.definition(*substituted(operands, active, moving), **statics)
            return tuple(o for o, ct in zip(out, cotangents, strict=True) if ct is not None)

        _, pull = jax.vjp(of_active, *[operands[i] for i in active])
        return tuple(pull(tuple(ct for ct in cotangents if ct is not None)))

    def _xla_value(self, call: Call, *operands: Any) -> Any:
        def one(*operands: Any) -> Any:
            return self.outputs_and_residuals(call.save, operands, dict(call.statics))

        return over_batch(call, one, call.batched)(*operands)

    def _xla_adjoint(self, call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
        active = [i for i, x in enumerate(operands) if self.has_derivative(i, x)]

        def one(operands: Any, residuals: Any, cotangents: Any) -> Any:
            return self.gradient(operands, residuals, cotangents, active, dict(call.statics))

        back = over_batch(call, one, (tuple(call.batched), True, True))
        found = dict(zip(active, back(tuple(operands), residuals, cotangents), strict=True))
        return tuple(found.get(i) for i in range(len(operands)))

    def has_derivative(self, i: int, operand: Any) -> bool:
        """Whether operand i may have a tangent."""
        if self.differentiable is not None and not self.differentiable[i]:
            return False
        return jnp.issubdtype(operand.dtype, jnp.inexact)


def filled(cotangent: Any, operand: Any) -> Any:
    """A cotangent as an array."""
    return jnp.zeros_like(operand) if cotangent is None else cotangent


def over_batch(call: Call, f: Callable[..., Any], has: Any) -> Callable[..., Any]:
    """`f` of one call over the call's batch, if there is one.

    `has` says which of its arguments have the batch axis in front; of one that is a tuple, True or
    False for all of it, or a tuple.
    """
    if call.batch is None:
        return f
    return jax.vmap(f, jax.tree.map(lambda batched: 0 if batched else None, tuple(has)))
