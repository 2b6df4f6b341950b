"""Every private, unstable or version-dependent JAX name that varax needs, and nothing else.

JAX 0.10 to 0.12. The differences met so far: from 0.12 an open and a closed jaxpr are one class,
and `scan` describes its operands by a tree (`ft_in`) instead of two counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax._src.interpreters import ad as ad_internal
from jax._src.interpreters import partial_eval
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, jaxpr_as_fun
from jax.extend.core.primitives import (
    closed_call_p,
    cond_p,
    custom_jvp_call_p,
    custom_vjp_call_p,
    jit_p,
    remat_p,
    scan_p,
    while_p,
)
from jax.interpreters import ad, batching, mlir

__all__ = [
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "closed_call_p",
    "cond_p",
    "custom_jvp_call_p",
    "custom_vjp_call_p",
    "jaxpr_as_fun",
    "jit_p",
    "remat_p",
    "scan_p",
    "while_p",
]

CONCRETIZATION_ERRORS = (
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)


for _folder in ("transforms", "ppl", "kernels"):  # not the user's code, in source lines
    source_info_util.register_exclusion(str(Path(__file__).parent.parent / _folder))


def shown(primitive: Primitive) -> str:
    """A primitive's name as users know it."""
    names = {"remat2": "jax.checkpoint", "custom_jvp_call": "jax.custom_jvp"}
    return (names | {"custom_vjp_call": "jax.custom_vjp"}).get(primitive.name, primitive.name)


def is_traced(x: Any) -> bool:
    """True where `x` has no concrete value yet."""
    return isinstance(x, jax.core.Tracer)


def shaped_array(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.core.ShapedArray(shape, dtype)


def opened(jaxpr: Any) -> tuple[Any, list[Any]]:
    """`(jaxpr, consts)` of an open or closed jaxpr."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def input_vars(jaxpr: Any) -> list[Any]:
    """Variables for `[*consts, *args]`."""
    found = getattr(jaxpr, "all_invars", None)
    return list(found) if found is not None else [*jaxpr.constvars, *jaxpr.invars]


def subjaxprs(eqn: JaxprEqn) -> Iterator[Any]:
    """The jaxprs among an equation's parameters (not those behind thunks)."""
    return jaxprs_among(eqn.params)


def jaxprs_among(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among parameters, also in tuples and lists."""
    for param in params.values():
        for item in param if isinstance(param, (tuple, list)) else (param,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                yield item


def bind_again(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """Evaluate an equation under the current trace, keeping its source line and name scope."""
    stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
    params = eqn.primitive.get_bind_params(eqn.params)
    with (
        source_info_util.user_context(eqn.source_info.traceback, name_stack=stack),
        eqn.ctx.manager,
    ):
        out = eqn.primitive.bind(*operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def source_line(eqn: JaxprEqn) -> str:
    """`file:line (function)` of the user's code that made an equation."""
    return source_info_util.summarize(eqn.source_info)


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """`(number of constants, number of carries)` among a scan's operands."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carry)


def set_rules(
    primitive: Primitive, *, impl: Any, abstract: Any, batch: Any, jvp: Any, lower: Any
) -> None:
    """Register a primitive's rules; `batch(size, operands, dims, **params)` sees every vmap."""
    primitive.def_impl(impl)
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    mlir.register_lowering(primitive, lower)

    def fancy(axis_data: Any, operands: Any, dims: Any, **params: Any) -> Any:
        return batch(axis_data.size, operands, dims, **params)

    batching.fancy_primitive_batchers[primitive] = fancy


def to_front(x: Any, dim: int | None) -> Any:
    """Move a mapped dimension to the front; leave an unmapped operand alone."""
    return x if dim is None else jnp.moveaxis(x, dim, 0)


def guard_derivatives(check: Any) -> None:
    """Call `check(primitive, params)` before JAX differentiates a region (jit, scan, ...)."""
    for primitive in (jit_p, closed_call_p, remat_p, scan_p, cond_p, while_p):
        for table in (ad.primitive_jvps, ad_internal.primitive_linearizations):
            if (rule := table.get(primitive)) is not None:
                table[primitive] = _guarded(rule, primitive, check)


def _guarded(rule: Any, primitive: Primitive, check: Any) -> Any:
    def guarded(*args: Any, **params: Any) -> Any:
        check(primitive, params)
        return rule(*args, **params)

    return guarded


def override_batching(primitive: Primitive, make: Any) -> None:
    """Replace the batching rule of JAX's own `primitive` by `make(original)`."""
    rules = batching.fancy_primitive_batchers
    rules[primitive] = make(rules[primitive])


def params_behind(tracer: Any, primitive: Primitive) -> list[dict[str, Any]]:
    """Parameters of the equations of `primitive` that a tracer depends on, as far as it knows.

    Used for error messages only: where JAX keeps no history the list is empty.
    """
    found, seen, stack = [], set(), [tracer]
    while stack:
        at = stack.pop()
        if id(at) in seen or not is_traced(at):
            continue
        seen.add(id(at))
        if (eqn := getattr(at, "parent", None)) is not None:
            if eqn.primitive is primitive:
                found.append(eqn.params)
            stack.extend(eqn.in_tracers)
        else:
            stack.append(getattr(at, "val", None))
    return found[::-1]


def jvp_of(function: Any, primals: Any, tangents: Any) -> Any:
    """`jax.jvp` where some tangents may be symbolic zeros."""
    return jax.jvp(function, primals, [ad.instantiate_zeros(t) for t in tangents])


def lower_as(function: Any) -> Any:
    """A lowering rule that inlines `function`."""
    return mlir.lower_fun(function, multiple_results=False)


def x64_enabled() -> bool:
    """Whether arrays are float64 by default."""
    return jax.config.read("jax_enable_x64")


def struct(atom: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a jaxpr's variable or literal."""
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def without_dead_code(jaxpr: Any) -> Any:
    """The jaxpr, open, without the equations that none of its outputs needs, at any depth."""
    jaxpr, _ = opened(jaxpr)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)[0]


def outputs_apart(closed: Any) -> Iterator[tuple[Any, list[bool]]]:
    """For each output of a jaxpr, the function of the inputs that it needs, and which they are."""
    jaxpr, consts = opened(closed)
    for i in range(len(jaxpr.outvars)):
        one, needed = partial_eval.dce_jaxpr(jaxpr, [i == j for j in range(len(jaxpr.outvars))])
        yield jaxpr_as_fun(ClosedJaxpr(one, consts)), needed


def frames(eqn: JaxprEqn) -> Iterator[tuple[str, str, int]]:
    """`(file, qualified function, line)` of the calls that made an equation, innermost first.

    JAX cuts them at the function that the equation's jaxpr was traced from, so a jaxpr that is
    cached and met in another place does not show who traced it first.
    """
    if (traceback := eqn.source_info.traceback) is not None:
        for frame in traceback.frames:
            yield frame.file_name, frame.function_name, frame.line_num


def traced_from(jaxpr: Any) -> tuple[str, str]:
    """`(function, file)` that a jaxpr was traced from."""
    info = opened(jaxpr)[0].debug_info
    name, _, place = (info.func_src_info if info is not None else "").partition(" at ")
    return name, place.rpartition(":")[0]


def is_derivative(eqn: JaxprEqn) -> bool:
    """True for an equation that differentiation made."""
    transforms = eqn.source_info.name_stack.stack
    return any(getattr(t, "name", "") in ("jvp", "transpose") for t in transforms)


def operation(eqn: JaxprEqn) -> str:
    """The name of an equation's primitive; from 0.12 some are instances of one primitive."""
    kind = eqn.params.get("_prim")
    return eqn.primitive.name if kind is None else type(kind).__name__.lower()


def instantiated(tangent: Any) -> Any:
    """A tangent as an array, zeros where it is symbolic."""
    return ad.instantiate_zeros(tangent)


def is_reference(atom: Any) -> bool:
    """Whether a variable is a mutable reference (`jax.new_ref`)."""
    return type(getattr(atom, "aval", None)).__name__ == "AbstractRef"
