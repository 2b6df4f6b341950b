"""Every private, unstable or version-dependent JAX name that the kernels need, and nothing else.

JAX 0.10 to 0.12. `transforms/_jax.py` is the same for the transformations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["Primitive", "user_context"]

user_context = jax.make_user_context  # its value is a part of the key of every jit cache

source_info_util.register_exclusion(str(Path(__file__).parent))  # not the user's code


def is_traced(x: Any) -> bool:
    """True where `x` has no concrete value yet."""
    return isinstance(x, jax.core.Tracer)


def shaped(structs: Any) -> list[Any]:
    """Abstract arrays of shapes and dtypes."""
    return [jax.core.ShapedArray(s.shape, s.dtype) for s in structs]


def is_zero(x: Any) -> bool:
    """Whether a tangent or cotangent is a symbolic zero."""
    return type(x) is ad.Zero


def is_linear(x: Any) -> bool:
    """Whether an operand of a transposition is one of those that it is linear in."""
    return ad.is_undefined_primal(x)


def zeros_of(x: Any) -> Any:
    """The symbolic zero of an output, as a tangent."""
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def as_arrays(operands: Any) -> list[Any]:
    """Operands as arrays: a scalar that was written into a jaxpr can come as a Python number."""
    return [x if hasattr(x, "shape") else jnp.asarray(x) for x in operands]


def instantiated(tangent: Any) -> Any:
    """A tangent as an array, zeros where it is symbolic."""
    return ad.instantiate_zeros(tangent)


def set_rules(
    primitive: Primitive,
    *,
    impl: Callable[..., Any],
    abstract: Callable[..., Any],
    batch: Callable[..., Any],
    jvp: Callable[..., Any],
    transpose: Callable[..., Any] | None = None,
) -> None:
    """Register a primitive's rules but its lowering; `batch(size, operands, dims, **params)`."""
    primitive.multiple_results = True
    primitive.def_impl(impl)
    primitive.def_abstract_eval(abstract)

    def of_arrays(primals: Any, tangents: Any, **params: Any) -> Any:
        return jvp(as_arrays(primals), tangents, **params)

    ad.primitive_jvps[primitive] = of_arrays
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose

    def fancy(axis_data: Any, operands: Any, dims: Any, **params: Any) -> Any:
        if all(dim is None for dim in dims):  # fancy rules are asked all the same
            out = primitive.bind(*operands, **params)
            return out, [None] * len(out)
        return batch(axis_data.size, as_arrays(operands), dims, **params)

    batching.fancy_primitive_batchers[primitive] = fancy


def set_lowering(primitive: Primitive, platform: str | None, rule: Callable[..., Any]) -> None:
    """Lower `primitive` on a platform (None: on every other) as the JAX function `rule` gives."""

    def lower(ctx: Any, *operands: Any, **params: Any) -> Any:
        function = rule(ctx.avals_in, **params)
        return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)

    mlir.register_lowering(primitive, lower, platform=platform)


def to_front(x: Any, dim: int | None) -> Any:
    """Move a mapped dimension to the front; leave an unmapped operand alone."""
    return x if dim is None else jnp.moveaxis(x, dim, 0)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, at any depth."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for param in eqn.params.values():
            for item in param if isinstance(param, (tuple, list)) else (param,):
                if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                    yield from equations(item)
