"""The three primitives of an operation and their rules.

    value      operands                                -> outputs, residuals (if `save`)
    tangent    operands, residuals, tangents           -> tangents of the outputs
    adjoint    operands, residuals, cotangents         -> cotangents of the active operands

Parameters of all: `batch` (length of the batch axis, or None), `batched` (which of the equation's
operands have it), `statics` (sorted items) and `forced`. `active` are the positions of the operands
that have tangents, `given` says which outputs have cotangents, `summed` which active operands are
shared by the batch and have their cotangents summed over it.

Residuals are functions of the operands and serve the adjoint alone: the tangent is `jax.jvp` of the
definition in the operands, so nothing is lost when tangents of residuals are taken to be zero.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import _jax
from .batching import batch_again, split
from .choice import choose
from .implementation import PLATFORMS, Call

if TYPE_CHECKING:
    from .operation import Operation


OWNERS: dict[Any, tuple[Operation, str]] = {}  # primitive -> operation, and which part of it


class Primitives:
    """`value`, `tangent` and `adjoint` of one operation."""

    def __init__(self, operation: Operation):
        self.operation = operation
        self.value = _jax.Primitive(operation.name)
        self.tangent = _jax.Primitive(f"{operation.name}_tangent")
        self.adjoint = _jax.Primitive(f"{operation.name}_adjoint")
        OWNERS.update({p: (operation, part) for part, p in self.by_part().items()})
        rules = {
            self.value: (self._value_abstract, self._value_batch, self._value_jvp, None),
            self.tangent: (
                self._tangent_abstract,
                functools.partial(_batch, self.tangent),
                self._tangent_jvp,
                self._tangent_transpose,
            ),
            self.adjoint: (
                self._adjoint_abstract,
                self._adjoint_batch,
                self._adjoint_jvp,
                None,
            ),
        }
        for primitive, (abstract, batch, jvp, transpose) in rules.items():
            impl = functools.partial(_run, primitive)
            _jax.set_rules(
                primitive, impl=impl, abstract=abstract, batch=batch, jvp=jvp, transpose=transpose
            )
        for platform in (*PLATFORMS, None):
            lower_value = functools.partial(self._lower_value, platform or "other")
            lower_adjoint = functools.partial(self._lower_adjoint, platform or "other")
            _jax.set_lowering(self.value, platform, lower_value)
            _jax.set_lowering(self.adjoint, platform, lower_adjoint)
        _jax.set_lowering(self.tangent, None, lambda avals, **p: self._tangent_of(**p))

    def by_part(self) -> dict[str, Any]:
        """The primitives by name."""
        return {"value": self.value, "tangent": self.tangent, "adjoint": self.adjoint}

    # The value.

    def _structs(self, call: Call) -> tuple[list[Any], list[Any]]:
        """Outputs and residuals as shapes and dtypes, with the batch axis."""

        def one(*operands: Any) -> Any:
            return self.operation.outputs_and_residuals(call.save, operands, dict(call.statics))

        outputs, residuals = jax.eval_shape(one, *call.operands)
        return _with_batch(outputs, call.batch), _with_batch(residuals, call.batch)

    def _value_abstract(self, *avals: Any, forced: Any, **params: Any) -> Any:
        outputs, residuals = self._structs(_call(avals, "any", **params))
        return _jax.shaped([*outputs, *residuals])

    def _value_batch(self, size: int, operands: Any, dims: Any, **params: Any) -> Any:
        merge = self.operation.merge
        if merge is not None and params["batch"] is None and not params["save"]:
            merged = merge(operands, dims, dict(params["statics"]))
            if merged is not None:
                new, finish = merged
                params["batched"] = (False,) * len(new)
                out = finish(tuple(self.value.bind(*new, **params)))
                return list(out), [0] * len(out)
        return _batch(self.value, size, operands, dims, **params)

    def _value_jvp(self, primals: Any, tangents: Any, *, save: bool, **params: Any) -> Any:
        operation = self.operation
        active = tuple(
            i
            for i, (x, t) in enumerate(zip(primals, tangents, strict=True))
            if not _jax.is_zero(t) and operation.has_derivative(i, x)
        )
        out = self.value.bind(*primals, save=True, **params)
        call = _call(primals, "any", save=False, **_without_choice(params))
        count = len(self._structs(call)[0])
        outputs, residuals = out[:count], out[count:]
        moved = [_jax.zeros_of(x) for x in outputs]
        if active:
            batched = params["batched"]
            kept = (params["batch"] is not None,) * len(residuals)
            params["batched"] = (*batched, *kept, *(batched[i] for i in active))
            moving = [_jax.instantiated(tangents[i]) for i in active]
            operands = (*primals, *residuals, *moving)
            moved = self.tangent.bind(*operands, arity=len(primals), active=active, **params)
        if save:
            return out, [*moved, *(_jax.zeros_of(x) for x in residuals)]
        return outputs, moved

    def _lower_value(self, platform: str, avals: Any, *, forced: Any, **params: Any) -> Any:
        call = _call(avals, platform, **params)
        chosen = choose(self.operation.name, self.operation.implementations, call, forced)

        def run(*operands: Any) -> list[Any]:
            outputs, residuals = chosen.value(call, *operands)
            return [*outputs, *residuals]

        return run

    # The tangent.

    def _tangent_of(
        self, *, arity: int, active: Any, batch: Any, batched: Any, statics: Any, forced: Any
    ) -> Callable[..., list[Any]]:
        """The tangent as a function in plain JAX."""

        def one(*everything: Any) -> list[Any]:
            operands, moving = everything[:arity], everything[len(everything) - len(active) :]

            def of_active(*at: Any) -> Any:
                arrays = substituted(operands, active, at)
                return self.operation.definition(*arrays, **dict(statics))

            return list(jax.jvp(of_active, tuple(operands[i] for i in active), moving)[1])

        return one if batch is None else _mapped(one, batched)

    def _tangent_abstract(self, *avals: Any, **params: Any) -> Any:
        structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        return _jax.shaped(jax.eval_shape(self._tangent_of(**params), *structs))

    def _tangent_jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        out = self.tangent.bind(*primals, **params)
        arity, moving = params["arity"], len(primals) - len(params["active"])
        tangents = [t if i < arity or i >= moving else None for i, t in enumerate(tangents)]
        return out, _derivative(self._tangent_of(**params), primals, tangents, out)

    def _tangent_transpose(self, cotangents: Any, *everything: Any, **params: Any) -> Any:
        arity, active = params.pop("arity"), params.pop("active")
        first = len(everything) - len(active)
        wanted = [k for k in range(len(active)) if _jax.is_linear(everything[first + k])]
        given = tuple(not _jax.is_zero(ct) for ct in cotangents)
        results: list[Any] = [None] * len(everything)
        if not any(given):
            return results
        batched, batch = params["batched"], params["batch"]
        present = [ct for ct in cotangents if not _jax.is_zero(ct)]
        params["batched"] = (*batched[:first], *(batch is not None for _ in present))
        found = self.adjoint.bind(
            *everything[:first],
            *present,
            arity=arity,
            given=given,
            active=tuple(active[k] for k in wanted),
            summed=tuple(batch is not None and not batched[first + k] for k in wanted),
            **params,
        )
        for k, ct in zip(wanted, found, strict=True):
            results[first + k] = ct
        return results

    # The adjoint.

    def _adjoint_abstract(
        self, *avals: Any, arity: int, active: Any, summed: Any, **params: Any
    ) -> Any:
        operands = _cores(avals[:arity], params["batched"][:arity])
        each = _with_batch([operands[i] for i in active], params["batch"])
        whole = [operands[i] for i in active]
        return _jax.shaped([w if s else e for w, e, s in zip(whole, each, summed, strict=True)])

    def _adjoint_batch(
        self, size: int, operands: Any, dims: Any, *, summed: Any, **params: Any
    ) -> Any:
        apart = (False,) * len(summed)
        out, at = _batch(self.adjoint, size, operands, dims, summed=apart, **params)
        return [x.sum(1) if s else x for x, s in zip(out, summed, strict=True)], at

    def _lower_adjoint(self, platform: str, avals: Any, *, forced: Any, **params: Any) -> Any:
        arity, batch, batched = params["arity"], params["batch"], params["batched"]
        active, summed = params["active"], params["summed"]
        call = _call(avals[:arity], platform, batch, batched[:arity], params["statics"], save=True)
        apart = {i for i, s in zip(active, summed, strict=True) if not s}
        together = (i for i, has in enumerate(batched[:arity]) if not has and i not in apart)
        sums = tuple(together) if batch is not None else ()
        call = dataclasses.replace(call, summed=sums, wanted=active)
        name, implementations = self.operation.name, self.operation.implementations
        chosen = choose(name, implementations, call, forced, adjoint=True)

        def run(*everything: Any) -> list[Any]:
            rest = [
                x if batch is None or has else jnp.broadcast_to(x, (batch, *x.shape))
                for x, has in zip(everything[arity:], batched[arity:], strict=True)
            ]
            residuals, cotangents = _cotangents(rest, params["given"])
            assert chosen.adjoint is not None  # `choose` has seen to that
            found = chosen.adjoint(call, everything[:arity], residuals, cotangents)
            full = [_filled(found[i], call.operands[i], batch, everything[i]) for i in active]
            return [
                x.sum(0) if s and x.ndim > call.operands[i].ndim else x
                for i, x, s in zip(active, full, summed, strict=True)
            ]

        return run

    def _adjoint_jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        out = self.adjoint.bind(*primals, **params)
        arity, given, active = params["arity"], params["given"], params["active"]
        first = len(primals) - sum(given)

        def one(*everything: Any) -> Any:
            _, cotangents = _cotangents(everything[arity:], given)
            operands, statics = everything[:arity], dict(params["statics"])
            gradient = self.operation.gradient_of_definition
            return list(gradient(operands, cotangents, active, statics))

        function = one if params["batch"] is None else _mapped(one, params["batched"])
        function = _with_sums(function, params["summed"])
        tangents = [t if i < arity or i >= first else None for i, t in enumerate(tangents)]
        return out, _derivative(function, primals, tangents, out)


def substituted(operands: Sequence[Any], active: Sequence[int], at: Sequence[Any]) -> list[Any]:
    """The operands with those of the positions `active` replaced."""
    new = dict(zip(active, at, strict=True))
    return [new.get(i, x) for i, x in enumerate(operands)]


def _cores(avals: Sequence[Any], batched: Sequence[bool]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes without the batch axis."""
    return tuple(
        jax.ShapeDtypeStruct(a.shape[int(has) :], a.dtype)
        for a, has in zip(avals, batched, strict=True)
    )


def _call(
    avals: Any, platform: str, batch: int | None, batched: Any, statics: Any, save: bool
) -> Call:
    operands = _cores(avals, batched)
    return Call(operands, batch, tuple(batched), dict(statics), save, platform)


def _without_choice(params: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in params.items() if k != "forced"}


def _with_batch(structs: Any, batch: int | None) -> list[jax.ShapeDtypeStruct]:
    front = () if batch is None else (batch,)
    return [jax.ShapeDtypeStruct((*front, *s.shape), s.dtype) for s in structs]


def _mapped(f: Callable[..., Any], batched: Sequence[bool]) -> Callable[..., Any]:
    return jax.vmap(f, in_axes=tuple(0 if has else None for has in batched))


def _with_sums(f: Callable[..., Any], summed: Sequence[bool]) -> Callable[..., Any]:
    return lambda *xs: [y.sum(0) if s else y for y, s in zip(f(*xs), summed, strict=True)]


def _cotangents(rest: Sequence[Any], given: Sequence[bool]) -> tuple[Any, tuple[Any, ...]]:
    """Residuals, and one cotangent per output, None where it is zero."""
    first = len(rest) - sum(given)
    present = iter(rest[first:])
    return tuple(rest[:first]), tuple(next(present) if has else None for has in given)


def _filled(cotangent: Any, operand: Any, batch: int | None, like: Any) -> Any:
    """A cotangent as an array of the operand's shape and dtype, zeros for None."""
    (struct,) = _with_batch([operand], batch)
    if cotangent is None:
        return jnp.zeros(struct.shape, struct.dtype)
    return cotangent.astype(like.dtype)


def _derivative(function: Callable[..., Any], primals: Any, tangents: Any, out: Any) -> list[Any]:
    """Tangents of `function` along those tangents that are neither None nor zero."""
    active = [i for i, t in enumerate(tangents) if t is not None and not _jax.is_zero(t)]
    if not active:
        return [_jax.zeros_of(x) for x in out]

    def of_active(*at: Any) -> Any:
        return function(*substituted(primals, active, at))

    moving = tuple(_jax.instantiated(tangents[i]) for i in active)
    return list(jax.jvp(of_active, tuple(primals[i] for i in active), moving)[1])


def _batch(
    primitive: Any, size: int, operands: Any, dims: Any, *, batch: Any, batched: Any, **params: Any
) -> Any:
    new, total, has = batch_again(size, operands, dims, batch, batched)
    out = primitive.bind(*new, batch=total, batched=has, **params)
    return split(out, size, batch)


def _run(primitive: Any, *operands: Any, **params: Any) -> Any:
    return _compiled(primitive, tuple(sorted(params.items())))(*operands)


@functools.lru_cache(maxsize=4096)
def _compiled(primitive: Any, params: Any) -> Callable[..., Any]:
    return jax.jit(lambda *operands: primitive.bind(*operands, **dict(params)))
